"""From an input to published results: one series or image, start to end."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from ucseg_runtime.backends.choice import choose
from ucseg_runtime.backends.load import REMOTE_LOAD, engine_load
from ucseg_runtime.backends.opening import open_backend
from ucseg_runtime.clip_steps import ReadClip
from ucseg_runtime.config import WHATEVER_FITS, InferenceOptions, InputOptions, OutputOptions
from ucseg_runtime.input_steps import InferredInput, infer_input, read_input, write_input
from ucseg_runtime.inputs import Found, found_in, grid_of, slices_at_a_time
from ucseg_runtime.model_folder import Model
from ucseg_runtime.pipeline import Progress
from ucseg_runtime.planning import plan_run
from ucseg_runtime.series_steps import SeriesResult, StageTimes, check_outputs
from ucseg_runtime.slice_stack import straight_grid


def segment_series(
    source: Path,
    folder: Path,
    model: Model,
    inference: InferenceOptions,
    outputs: OutputOptions,
    wanted: InputOptions = WHATEVER_FITS,
    progress: Progress | None = None,
) -> SeriesResult:
    """Segment the one series of an input that fits the model, or its one image, and publish all results or none.

    Args:
        source: Folder, DICOM file, DICOMDIR, zip archive or NIfTI file.
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
    inferred = _inferred(source, model, inference, outputs, wanted, progress)
    return write_input(inferred, folder, inference, outputs)


def _inferred(
    source: Path,
    model: Model,
    inference: InferenceOptions,
    outputs: OutputOptions,
    wanted: InputOptions,
    progress: Progress | None,
) -> InferredInput:
    """All but writing; a function of its own, so that the volume is gone before anything is written."""
    times = StageTimes()
    with ExitStack() as stack:
        with times.stage("scan"):
            found = stack.enter_context(found_in(source, model.manifest, wanted))
            inference = _within_memory(found, model, inference, outputs)
        read = read_input(found, times)
        if isinstance(read, ReadClip):  # its frames are read while it is segmented
            return infer_input(read, model, open_backend(model, inference), inference, outputs, progress)
    return infer_input(read, model, open_backend(model, inference), inference, outputs, progress)


def _within_memory(found: Found, model: Model, inference: InferenceOptions, outputs: OutputOptions) -> InferenceOptions:
    """The options with so many tiles at the same time as fit the memory budget, where there is one."""
    if not inference.max_memory_mb:
        return inference
    on_server = inference.server is not None
    load = REMOTE_LOAD if on_server else engine_load(model, choose(model, inference), inference)
    plan = plan_run(
        straight_grid(grid_of(found)),
        model.manifest,
        outputs,
        load,
        inference.max_memory_mb,
        slices_at_a_time=slices_at_a_time(found, model.manifest),
    )
    return replace(inference, most_parallel_tiles=plan.parallel_tiles)
