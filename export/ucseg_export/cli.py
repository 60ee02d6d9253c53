"""``ucseg-export``: trained trio to model folder. Parsing and printing only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from ucseg_runtime.cli.options import EngineOption, PrecisionOption
from ucseg_runtime.cli.reporting import print_json, print_table, reported

if TYPE_CHECKING:
    from ucseg_runtime.accuracy_gate import EngineProof
    from ucseg_runtime.manifest import Manifest

app = typer.Typer(
    name="ucseg-export",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

_CHECKPOINT = typer.Argument(help="Checkpoint that ucseg-train wrote (safetensors).")
_OUT = typer.Option("--out", help="Model folder to make.")
_SPEC = typer.Option("--spec", help="JSON file that replaces the description stored in the checkpoint.")
_QUALITY = typer.Option("--quality", help="Measured quality as JSON, or as lines of ucseg-train evaluate.")
_TILES = typer.Option("--tiles", help="NumPy file with tiles (tiles, channels, *tile), network input units.")
_CASES = typer.Option("--cases", help="Folder of training cases (NPZ) to compare graphs and networks on.")
_COUNT = typer.Option("--tiles-per-set", min=1, help="Random tiles, phantom tiles, and most tiles per case.")
_MODEL = typer.Argument(help="Model folder.")
_VOLUMES = typer.Option("--cases", help="Folder with DICOM series or training cases (NPZ); for CT the demo's chest CT.")
_CALIBRATION = typer.Option("--cases", help="Folder with DICOM series or training cases (NPZ) to calibrate on.")
_TILES_PER_CASE = typer.Option("--tiles-per-case", min=1, help="Most tiles of each case to calibrate on.")
_ENGINE_PRECISION = typer.Option("--precision", help="fp16: convolutions in float16, what is sensitive in float32.")
_MAX_BATCH = typer.Option("--max-batch", min=1, help="Most tiles of a call.")
_CAPABILITY = typer.Option("--compute-capability", help="GPU to build for, such as 8.6, where there is none here.")
_VERSION_COMPATIBLE = typer.Option("--version-compatible", help="Later releases may load the engines.")
_HARDWARE_COMPATIBLE = typer.Option("--hardware-compatible", help="Later GPUs may run the engines.")
_ENGINES = typer.Option("--out", help="Folder of all engines; one in the cache folder when not given.")
_OVERWRITE = typer.Option("--overwrite", help="Replace a model folder that is there already.")
_JSON = typer.Option("--json", help="One JSON object on standard output instead of a table.")


@app.callback()
def _root() -> None:
    """Export trained trios to model folders that ucseg runs."""


@app.command()
def onnx(
    checkpoint: Annotated[Path, _CHECKPOINT],
    out: Annotated[Path, _OUT],
    spec: Annotated[Path | None, _SPEC] = None,
    quality: Annotated[Path | None, _QUALITY] = None,
    tiles: Annotated[Path | None, _TILES] = None,
    cases: Annotated[Path | None, _CASES] = None,
    tiles_per_set: Annotated[int, _COUNT] = 2,
    overwrite: Annotated[bool, _OVERWRITE] = False,
    as_json: Annotated[bool, _JSON] = False,
) -> None:
    """Write four ONNX stages, the merged graph and the manifest, after proving them against torch."""
    with reported(as_json):
        # Imported here because `ucseg-export --help` must not wait for torch.
        from ucseg_export.export_model import ExportRequest, export_model

        manifest = export_model(ExportRequest(checkpoint, out, spec, quality, tiles, cases, tiles_per_set, overwrite))
        if as_json:
            print_json(_summary(manifest))
        else:
            _print_summary(manifest)


@app.command()
def tensorrt(
    model: Annotated[Path, _MODEL],
    precision: Annotated[Literal["fp32", "tf32", "fp16"], _ENGINE_PRECISION] = "fp16",
    max_batch: Annotated[int, _MAX_BATCH] = 4,
    compute_capability: Annotated[str | None, _CAPABILITY] = None,
    version_compatible: Annotated[bool, _VERSION_COMPATIBLE] = False,
    hardware_compatible: Annotated[bool, _HARDWARE_COMPATIBLE] = False,
    out: Annotated[Path | None, _ENGINES] = None,
    as_json: Annotated[bool, _JSON] = False,
) -> None:
    """Build TensorRT engines of the four stages and the merged graph."""
    with reported(as_json):
        from ucseg_export.to_tensorrt import BuildOptions, build_engines, load_builder, trtexec_line
        from ucseg_runtime.model_folder import load_model
        from ucseg_runtime.packaged_data import cache_folder

        loaded, builder = load_model(model), load_builder()
        options = BuildOptions(precision, max_batch, compute_capability, version_compatible, hardware_compatible)
        folder, engines = build_engines(loaded, options, builder, out or cache_folder() / "engines")
        lines = {key: trtexec_line(key, loaded.manifest, options) for key in engines}
        if as_json:
            found = {key: {"bytes": len(item.plan), "layers": dict(item.layers)} for key, item in engines.items()}
            print_json({"folder": str(folder), "builder": builder.name, "engines": found, "trtexec": lines})
            return
        rows = [(key, f"{len(item.plan) / 1e6:.2f}", _convolutions(item.layers)) for key, item in engines.items()]
        print_table(f"{builder.name} {builder.version}, {precision}", ("graph", "MB", "convolutions"), rows)
        for line in lines.values():
            typer.echo(line)
        typer.echo(f"written to {folder}; these engines have never run on a GPU")


def _convolutions(layers: Mapping[str, int]) -> str:
    kinds = {key.partition(" ")[2]: count for key, count in layers.items() if key.startswith("CONVOLUTION")}
    return ", ".join(f"{count} {precision}" for precision, count in kinds.items()) or "–"


@app.command()
def int8(
    model: Annotated[Path, _MODEL],
    cases: Annotated[Path, _CALIBRATION],
    tiles_per_case: Annotated[int, _TILES_PER_CASE] = 6,
) -> None:
    """Add a graph with 8-bit integers to a model folder, calibrated on real tiles; then prove the model again."""
    with reported(as_json=False):
        from ucseg_export.quantize import add_int8_graph
        from ucseg_runtime.manifest import INT8_MERGED

        manifest = add_int8_graph(model, cases, tiles_per_case)
        artifact = manifest.artifacts[INT8_MERGED]
        typer.echo(f"{artifact.file}: {artifact.size / 1e6:.2f} MB. Next: ucseg-export prove, or nothing serves it.")


@app.command()
def prove(
    model: Annotated[Path, _MODEL],
    engine: EngineOption = "auto",
    precision: PrecisionOption = "auto",
    cases: Annotated[Path | None, _VOLUMES] = None,
    as_json: Annotated[bool, _JSON] = False,
) -> None:
    """Compare engines with the reference on whole volumes; only those that pass may serve the model."""
    with reported(as_json):
        from ucseg_export.prove import candidates, prove, require_passed, write_proofs
        from ucseg_export.prove_cases import volumes_to_compare_on
        from ucseg_runtime.model_folder import load_model

        loaded = load_model(model)
        options = candidates(loaded, engine, precision)
        proofs = prove(loaded, volumes_to_compare_on(cases, loaded.manifest.modality), options)
        write_proofs(loaded, proofs)
        if as_json:
            print_json([proof.model_dump(mode="json") for proof in proofs])
        else:
            _print_proofs(loaded.manifest, proofs)
        require_passed(loaded, proofs)


def _print_proofs(manifest: Manifest, proofs: Sequence[EngineProof]) -> None:
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


def _summary(manifest: Manifest) -> dict[str, object]:
    fields = manifest.model_dump(mode="json", include={"name", "version", "artifacts", "parity"})
    return {**fields, "largest_difference": _largest_difference(manifest)}


def _print_summary(manifest: Manifest) -> None:
    rows = [(key, f"{item.size / 1e6:.2f}", item.sha256[:12]) for key, item in sorted(manifest.artifacts.items())]
    print_table(f"{manifest.name} {manifest.version}", ("graph", "MB", "sha256"), rows)
    typer.echo(
        f"{len(manifest.parity)} comparisons with torch passed; largest difference {_largest_difference(manifest):.1e}"
    )


def _largest_difference(manifest: Manifest) -> float:
    return max(row.max_abs_difference for row in manifest.parity)


def main() -> None:
    """Entry point of the console script."""
    app()
