"""What workers are asked to do in tests; the child imports it by name."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import NoReturn

from ucseg_runtime.config import InferenceOptions, OutputOptions
from ucseg_runtime.errors import SpacingError
from ucseg_runtime.manifest import Manifest
from ucseg_runtime.neighbours import SeriesJob
from ucseg_runtime.neighbours import _read as read
from ucseg_runtime.publish import SEGMENTATION, staged_results
from ucseg_runtime.series_steps import InferredSeries, ReadSeries, SeriesResult, write_series

DOOMED = "doomed"
"""Name of the source or of the output folder with which the functions below fail."""


class StubbornError(Exception):
    """Cannot be made from what it is pickled as."""

    def __init__(self, first: str, second: str) -> None:
        super().__init__(first + second)


def refuse() -> NoReturn:
    raise SpacingError("slices are missing.", hint="Export again.", code="UCSEG-E117")


def be_stubborn() -> NoReturn:
    raise StubbornError("canary", "name")


def read_unless_doomed(job: SeriesJob, manifest: Manifest, outputs: OutputOptions) -> ReadSeries:
    if job.source.name == DOOMED:
        os.kill(os.getpid(), signal.SIGKILL)
    return read(job, manifest, outputs)


def read_with_a_defect(job: SeriesJob, manifest: Manifest, outputs: OutputOptions) -> ReadSeries:
    if job.source.name == DOOMED:
        raise KeyError("canary of a defect")
    return read(job, manifest, outputs)


def write_unless_doomed(
    inferred: InferredSeries, folder: Path, inference: InferenceOptions, outputs: OutputOptions
) -> SeriesResult:
    if folder.name == DOOMED:
        with staged_results(folder, outputs.overwrite) as staging:
            staging.path(SEGMENTATION).write_bytes(b"half")
            os.kill(os.getpid(), signal.SIGKILL)
    return write_series(inferred, folder, inference, outputs)
