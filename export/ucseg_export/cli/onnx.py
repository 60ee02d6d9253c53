"""``ucseg-export onnx``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ucseg_runtime.cli.options import JsonOption
from ucseg_runtime.cli.reporting import print_json, print_table, reported

if TYPE_CHECKING:
    from ucseg_runtime.manifest import Manifest

_CHECKPOINT = typer.Argument(help="Checkpoint that ucseg-train wrote (safetensors).")
_OUT = typer.Option("--out", help="Model folder to make.")
_QUALITY = typer.Option("--quality", help="Measured quality as JSON, or as lines of ucseg-train evaluate.")
_TILES = typer.Option("--tiles", help="NumPy file with tiles (tiles, channels, *tile), network input units.")
SpecOption = Annotated[
    Path | None, typer.Option("--spec", help="JSON file that replaces the description stored in the checkpoint.")
]
CasesOption = Annotated[
    Path | None, typer.Option("--cases", help="Folder of training cases (NPZ) to compare graphs on, too.")
]
TilesOption = Annotated[
    int, typer.Option("--tiles-per-set", min=1, help="Random tiles, phantom tiles, and most tiles per case.")
]
OverwriteOption = Annotated[bool, typer.Option("--overwrite", help="Replace a model folder that is there already.")]


def onnx(
    checkpoint: Annotated[Path, _CHECKPOINT],
    out: Annotated[Path, _OUT],
    spec: SpecOption = None,
    quality: Annotated[Path | None, _QUALITY] = None,
    tiles: Annotated[Path | None, _TILES] = None,
    cases: CasesOption = None,
    tiles_per_set: TilesOption = 2,
    overwrite: OverwriteOption = False,
    as_json: JsonOption = False,
) -> None:
    """Write four ONNX stages, the merged graph and the manifest, after proving them against torch."""
    with reported(as_json):
        # Imported here because `ucseg-export --help` must not wait for torch.
        from ucseg_export.export_model import ExportRequest, export_model

        manifest = export_model(ExportRequest(checkpoint, out, spec, quality, tiles, cases, tiles_per_set, overwrite))
        print_folder(manifest, as_json)


def print_folder(manifest: Manifest, as_json: bool) -> None:
    """What a new model folder holds, as a table or as one JSON document."""
    if as_json:
        print_json(_summary(manifest))
    else:
        _print_summary(manifest)


def _summary(manifest: Manifest) -> dict[str, object]:
    fields = manifest.model_dump(mode="json", include={"name", "version", "artifacts", "parity"})
    return {**fields, "largest_difference": _largest_difference(manifest)}


def _print_summary(manifest: Manifest) -> None:
    rows = [(key, f"{item.size / 1e6:.2f}", item.sha256[:12]) for key, item in sorted(manifest.artifacts.items())]
    print_table(f"{manifest.name} {manifest.version}", ("graph", "MB", "sha256"), rows)
    against = "torch" if manifest.fusion == "upg" else "torch and NumPy"
    largest = _largest_difference(manifest)
    typer.echo(f"{len(manifest.parity)} comparisons with {against} passed; largest difference {largest:.1e}")


def _largest_difference(manifest: Manifest) -> float:
    return max(row.max_abs_difference for row in manifest.parity)
