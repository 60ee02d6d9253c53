"""The steps from an input to published results, whatever the input is: a volume or a clip."""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path

from ucseg_runtime.backends.base import Backend
from ucseg_runtime.clip_steps import InferredClip, ReadClip, infer_clip, read_clip, write_clip
from ucseg_runtime.config import InferenceOptions, OutputOptions
from ucseg_runtime.inputs import Found, FoundClip
from ucseg_runtime.model_folder import Model
from ucseg_runtime.pipeline import Progress
from ucseg_runtime.series_steps import (
    InferredSeries,
    ReadSeries,
    SeriesResult,
    StageTimes,
    infer_series,
    read_series,
    write_series,
)

ReadInput = ReadSeries | ReadClip
InferredInput = InferredSeries | InferredClip


def read_input(found: Found, times: StageTimes) -> ReadInput:
    """See `read_series` and `read_clip`."""
    return read_clip(found, times) if isinstance(found, FoundClip) else read_series(found, times)


def infer_input(
    read: ReadInput,
    model: Model,
    opening: AbstractContextManager[Backend],
    inference: InferenceOptions,
    outputs: OutputOptions,
    progress: Progress | None = None,
) -> InferredInput:
    """See `infer_series` and `infer_clip`."""
    if isinstance(read, ReadClip):
        return infer_clip(read, model, opening, inference, outputs, progress)
    return infer_series(read, model, opening, inference, outputs, progress)


def write_input(
    inferred: InferredInput, folder: Path, inference: InferenceOptions, outputs: OutputOptions
) -> SeriesResult:
    """See `write_series` and `write_clip`."""
    if isinstance(inferred, InferredClip):
        return write_clip(inferred, folder, inference, outputs)
    return write_series(inferred, folder, inference, outputs)
