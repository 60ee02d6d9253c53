"""From an input with DICOM files to published results: one series, start to end."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from ucseg_runtime.backends.choice import choose
from ucseg_runtime.backends.load import EngineLoad, engine_load
from ucseg_runtime.backends.opening import open_backend
from ucseg_runtime.config import WHATEVER_FITS, InferenceOptions, InputOptions, OutputOptions
from ucseg_runtime.dicom.instances import Series
from ucseg_runtime.dicom.stacking import volume_geometry
from ucseg_runtime.model_folder import Model
from ucseg_runtime.pipeline import Progress
from ucseg_runtime.planning import plan_run
from ucseg_runtime.series_steps import (
    SeriesResult,
    StageTimes,
    check_outputs,
    find_series,
    infer_series,
    read_series,
    write_series,
)

_NOTHING_HERE = EngineLoad(parallel_tiles=1, opened_mb=0.0, tile_mb=0.0, seconds_per_tile=None)
"""What an engine takes of this machine's memory while a server computes."""


def segment_series(
    source: Path,
    folder: Path,
    model: Model,
    inference: InferenceOptions,
    outputs: OutputOptions,
    wanted: InputOptions = WHATEVER_FITS,
    progress: Progress | None = None,
) -> SeriesResult:
    """Segment the one series of an input that fits the model, and publish all results or none.

    Args:
        source: Folder or file with DICOM images.
        folder: Folder for the results; made when missing.
        model: Verified model folder.
        inference: Engine, precision, threads.
        outputs: Which objects are written.
        wanted: Which series, and what it may lack.
        progress: Told after every batch how many tiles are done.

    Raises:
        InputError: The input cannot be segmented as it is.
        BackendError: The engine failed.
        OutputError: The results could not be written; nothing of them is left.
    """
    check_outputs(folder, outputs)
    times = StageTimes()
    with times.stage("scan"):
        found = find_series(source, model.manifest.modality, wanted)
        inference = _within_memory(found.selection.chosen, model, inference, outputs)
    # One statement, so that the volume is gone before anything is written.
    inferred = infer_series(
        read_series(found, times), model, open_backend(model, inference), inference, outputs, progress
    )
    return write_series(inferred, folder, inference, outputs)


def _within_memory(
    series: Series, model: Model, inference: InferenceOptions, outputs: OutputOptions
) -> InferenceOptions:
    """The options with so many tiles at the same time as fit the memory budget, where there is one."""
    if not inference.max_memory_mb:
        return inference
    on_server = inference.server is not None
    load = _NOTHING_HERE if on_server else engine_load(model, choose(model, inference), inference)
    plan = plan_run(volume_geometry(series), model.manifest, outputs, load, inference.max_memory_mb)
    return replace(inference, most_parallel_tiles=plan.parallel_tiles)
