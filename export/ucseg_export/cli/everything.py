"""``ucseg-export all``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ucseg_export.cli.options import (
    CalibrationOption,
    CapabilityOption,
    EnginePrecisionOption,
    EnginesOption,
    MaxBatchOption,
    ModelArgument,
    TilesPerCaseOption,
)
from ucseg_export.cli.prove import print_proofs
from ucseg_export.cli.tensorrt import calibrated, print_engines
from ucseg_runtime.cli.reporting import reported

_PROVE_ON = typer.Option("--prove-on", help="Folder to compare engines on; for CT the demo's chest CT when not given.")


def everything(
    model: ModelArgument,
    cases: CalibrationOption,
    tiles_per_case: TilesPerCaseOption = 6,
    prove_on: Annotated[Path | None, _PROVE_ON] = None,
    precision: EnginePrecisionOption = "fp16",
    max_batch: MaxBatchOption = 4,
    compute_capability: CapabilityOption = None,
    out: EnginesOption = None,
) -> None:
    """Make everything that a model folder can have: the int8 graph, TensorRT engines, and proofs of what runs here."""
    with reported(as_json=False):
        from ucseg_export.prove import candidates, prove, require_passed, write_proofs
        from ucseg_export.prove_cases import volumes_to_compare_on
        from ucseg_export.quantize import add_int8_graph
        from ucseg_export.tensorrt_builder import BuildOptions, load_builder
        from ucseg_export.to_tensorrt import build_engines
        from ucseg_runtime.cache import engines_folder
        from ucseg_runtime.model_folder import load_model

        builder = load_builder()
        add_int8_graph(model, cases, tiles_per_case)
        loaded = load_model(model, whoever_made_it=True)
        options = BuildOptions(precision, max_batch, compute_capability)
        calibration = calibrated(loaded, options, cases, tiles_per_case)
        folder, engines = build_engines(loaded, options, builder, out or engines_folder(), calibration)
        print_engines(folder, engines, options, builder)
        volumes = volumes_to_compare_on(prove_on, loaded.manifest)
        proofs = prove(loaded, volumes, candidates(loaded, "auto", "auto"))
        write_proofs(loaded, proofs)
        print_proofs(loaded.manifest, proofs)
        require_passed(loaded, proofs)
