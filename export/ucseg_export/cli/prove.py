"""``ucseg-export prove``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ucseg_export.cli.options import ModelArgument
from ucseg_runtime.cli.options import DeviceOption, EngineOption, JsonOption, PrecisionOption
from ucseg_runtime.cli.reporting import print_json, print_table, reported

if TYPE_CHECKING:
    from ucseg_runtime.accuracy_gate import EngineProof
    from ucseg_runtime.manifest import Manifest

_VOLUMES = typer.Option("--cases", help="Folder with DICOM series or training cases (NPZ); for CT the demo's chest CT.")


def prove(
    model: ModelArgument,
    engine: EngineOption = "auto",
    precision: PrecisionOption = "auto",
    cases: Annotated[Path | None, _VOLUMES] = None,
    device: DeviceOption = 0,
    as_json: JsonOption = False,
) -> None:
    """Compare engines with the reference on whole volumes; only those that pass may serve the model."""
    with reported(as_json):
        from ucseg_export.prove import candidates, prove, require_passed, write_proofs
        from ucseg_export.prove_cases import volumes_to_compare_on
        from ucseg_runtime.model_folder import load_model

        loaded = load_model(model, whoever_made_it=True)
        options = candidates(loaded, engine, precision, device)
        proofs = prove(loaded, volumes_to_compare_on(cases, loaded.manifest), options)
        write_proofs(loaded, proofs)
        if as_json:
            print_json([proof.model_dump(mode="json") for proof in proofs])
        else:
            print_proofs(loaded.manifest, proofs)
        require_passed(loaded, proofs)


def print_proofs(manifest: Manifest, proofs: Sequence[EngineProof]) -> None:
    """A table of figures and verdicts."""
    rows = []
    for proof in proofs:
        objection = proof.objection(manifest.budget(proof.precision))
        dice = min((item.dice for case in proof.cases for item in case.classes if item.dice is not None), default=None)
        rows.append(
            (
                f"{proof.engine} {proof.version}",
                proof.precision,
                f"{proof.seconds_per_tile:.3f}",
                "–" if dice is None else f"{dice:.4f}",
                f"{max(case.uncertainty_p99 for case in proof.cases):.4f}",
                f"REFUSED: {objection}" if objection else "passed",
            )
        )
    header = ("engine", "precision", "s per tile", "least Dice", "uncertainty p99", "result")
    print_table(f"{manifest.name} {manifest.version} against {proofs[0].reference}", header, rows)
