"""One checkpoint to one model folder: export, prove, write; a folder appears complete or not at all."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from ucseg_export.manifest_writer import build_manifest, manifest_json, model_spec, quality_rows, read_json
from ucseg_export.parity import parity_rows, parity_table, require_parity
from ucseg_export.parity_engines import installed_parity_engines
from ucseg_export.parity_tiles import TileSet, case_tiles, phantom_tiles, random_tiles, tiles_from_file
from ucseg_export.to_onnx import OPSETS, onnx_graphs
from ucseg_runtime.errors import OutputError, OutputExistsError
from ucseg_runtime.manifest import CHECKPOINT_SHA256, MANIFEST_NAME, TRAINING_PLAN_SHA256, Manifest, ModelSpec
from ucseg_runtime.model_folder import load_model
from ucseg_training.checkpoint import TrioCheckpoint, load_checkpoint

PARITY_NAME = "parity.md"

_STAGING_PREFIX = ".ucseg-export-"


@dataclass(frozen=True)
class ExportRequest:
    """What to export, and on what to prove it.

    Attributes:
        checkpoint: Trained trio with its description.
        out: Model folder to make.
        spec: JSON file that replaces the checkpoint's own description of the model.
        quality: JSON file, or one with a row per line, that replaces the measured quality.
        tiles: NumPy file with tiles to compare on, beside the made-up ones.
        cases: Folder of training cases to compare on, beside the made-up ones.
        tiles_per_set: Random tiles, phantom tiles, and most tiles of each case.
        overwrite: Whether a model folder at `out` is replaced.
    """

    checkpoint: Path
    out: Path
    spec: Path | None = None
    quality: Path | None = None
    tiles: Path | None = None
    cases: Path | None = None
    tiles_per_set: int = 2
    overwrite: bool = False


def export_model(request: ExportRequest) -> Manifest:
    """Write the model folder and return its manifest.

    Raises:
        OutputExistsError: Something is at the place of the folder, and may not be replaced.
        ModelError: The checkpoint cannot be used, or its graphs cannot.
        ManifestError: The description of the model is missing, wrong, or fits other networks.
        InputError: Tiles to compare on cannot be read.
        AccuracyGateError: A graph does not compute what torch computes.
        BackendError: An engine is missing or cannot run a graph.
        OutputError: The folder cannot be written.
    """
    check_place(request.out, request.overwrite)
    checkpoint = load_checkpoint(request.checkpoint)
    spec = spec_of(request.spec, request.quality, checkpoint)
    tile_sets = _tile_sets(request, spec)
    graphs = onnx_graphs(checkpoint.net)
    manifest = build_manifest(spec, graphs, (), checkpoint_provenance(request.checkpoint, checkpoint))
    rows = parity_rows(checkpoint.net, manifest, graphs, tile_sets, installed_parity_engines())
    require_parity(rows)
    manifest = manifest.model_copy(update={"parity": rows})
    write_model_folder(request.out, manifest, graphs, overwrite=request.overwrite)
    return manifest


def write_model_folder(folder: Path, manifest: Manifest, graphs: Mapping[str, bytes], *, overwrite: bool) -> None:
    """Write graphs, parity table and manifest, read them back as the runtime does, and put the folder in its place.

    Args:
        folder: Target; its parent is made when missing.
        manifest: Names the graphs.
        graphs: ONNX files by artifact key.
        overwrite: Whether an existing model folder is replaced.

    Raises:
        OutputExistsError: Something is at the place of the folder, and may not be replaced.
        ModelError: What was written does not match the manifest.
        OutputError: The folder cannot be written.
    """
    check_place(folder, overwrite)
    with _staging_folder(folder.absolute().parent) as staging:
        complete = staging / "new"
        complete.mkdir()
        for key, content in graphs.items():
            (complete / manifest.artifacts[key].file).write_bytes(content)
        (complete / PARITY_NAME).write_text(parity_table(manifest.parity, manifest.fusion), encoding="utf-8")
        (complete / MANIFEST_NAME).write_text(manifest_json(manifest), encoding="utf-8")
        load_model(complete, whoever_made_it=True)
        _swap(folder, complete, staging / "old")


def _swap(folder: Path, complete: Path, aside: Path) -> None:
    """Put the new folder in its place; where that fails, the old one is back."""
    replaces = folder.exists()
    if replaces:
        os.replace(folder, aside)
    try:
        os.replace(complete, folder)
    except OSError:
        if replaces:
            os.replace(aside, folder)
        raise


def check_place(folder: Path, overwrite: bool) -> None:
    """Check before any work that a model folder can be put in its place.

    Raises:
        OutputExistsError: Something is there, and may not be replaced.
    """
    if not os.path.lexists(folder):
        return
    if not overwrite:
        raise OutputExistsError("the model folder exists already.", hint="Give another folder, or --overwrite.")
    if folder.is_symlink() or not (folder / MANIFEST_NAME).is_file():
        raise OutputExistsError(
            f"what is at the place of the model folder holds no {MANIFEST_NAME} and is not replaced.",
            hint="Give another folder.",
        )


def spec_of(replacement: Path | None, quality: Path | None, checkpoint: TrioCheckpoint) -> ModelSpec:
    """What a checkpoint's model is.

    Args:
        replacement: JSON file that replaces the checkpoint's own description.
        quality: JSON file, or one with a row per line, that replaces the measured quality.
        checkpoint: Networks and description.

    Raises:
        ManifestError: The description is missing, wrong, or fits other networks.
    """
    description = read_json(replacement, "--spec") if replacement else checkpoint.model_spec
    spec = model_spec(description, checkpoint.net.config)
    if quality is None:
        return spec
    return spec.model_copy(update={"quality": quality_rows(read_json(quality, "--quality"))})


def _tile_sets(request: ExportRequest, spec: ModelSpec) -> list[TileSet]:
    sets = [random_tiles(spec, request.tiles_per_set), phantom_tiles(spec, request.tiles_per_set)]
    if request.cases is not None:
        sets.append(case_tiles(spec, request.cases, request.tiles_per_set))
    if request.tiles is not None:
        sets.append(tiles_from_file(spec, request.tiles))
    return sets


def checkpoint_provenance(path: Path, checkpoint: TrioCheckpoint) -> dict[str, str]:
    """Which file was exported, and the run that made it."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {
        CHECKPOINT_SHA256: digest,
        **({TRAINING_PLAN_SHA256: checkpoint.plan} if checkpoint.plan else {}),
        "training_steps": str(checkpoint.step),
        "exporter": f"torch {torch.__version__}, torch.export, opset {OPSETS['dynamo']}",
    }


@contextmanager
def _staging_folder(parent: Path) -> Iterator[Path]:
    """A folder on the same disk as the target, gone afterwards; failures of the disk as `OutputError`."""
    try:
        parent.mkdir(parents=True, exist_ok=True)
        staging = Path(tempfile.mkdtemp(prefix=_STAGING_PREFIX, dir=parent))
        try:
            yield staging
        finally:
            shutil.rmtree(staging)
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else type(error).__name__
        raise OutputError(
            f"the model folder could not be written: {reason}.", hint="Check space and permissions of --out."
        ) from error
