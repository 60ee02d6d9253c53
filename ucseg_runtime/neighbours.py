"""Many series with one open engine: while one is in the network, the next is read and the one before is written.

Reading and writing have a process each, and not a thread. Not for speed: on two cores that were busy with other work,
threads took as long or less. Three studies of 133 slices took 23.6 s of the processor with threads, 26.9 s with
processes and 24 s one after the other; a process takes one second to start, a study half a second to be passed on. But
for safety: the filter of warnings and pydicom's validation mode, with which `dicom.headers.quiet_pydicom` keeps values
of headers out of warnings, belong to the whole process, and any library may switch the filter meanwhile. And a thread
can neither be stopped by a signal nor die alone.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from ucseg_runtime.backends.base import Backend
from ucseg_runtime.backends.opening import open_backend
from ucseg_runtime.backends.triton_volume import check_volume_server
from ucseg_runtime.clip_steps import ReadClip
from ucseg_runtime.config import WHATEVER_FITS, InferenceOptions, InputOptions, OutputOptions
from ucseg_runtime.dicom.headers import quiet_pydicom
from ucseg_runtime.errors import InputError, OutputError, UcsegError
from ucseg_runtime.input_steps import InferredInput, ReadInput, infer_input, read_input, write_input
from ucseg_runtime.inputs import Source, found_in
from ucseg_runtime.manifest import Manifest
from ucseg_runtime.model_folder import Model
from ucseg_runtime.pipeline import Progress
from ucseg_runtime.publish import check_output_folder
from ucseg_runtime.series_outputs import require_packages
from ucseg_runtime.series_steps import (
    SeriesResult,
    StageTimes,
    check_outputs,
)
from ucseg_runtime.worker import Worker, WorkerDiedError

_LOGGER = logging.getLogger(__name__)
_DIED_READING = "UCSEG-E106"
DIED_WRITING = "UCSEG-E154"
"""Of one input alone: others can be written all the same."""


@dataclass(frozen=True)
class SeriesJob:
    """One input and where its results go.

    Attributes:
        source: Folder, DICOM file, DICOMDIR, zip archive or NIfTI file; or files that were found before.
        folder: Folder for the results; made when missing.
        wanted: Which series of it, and what that may lack.
    """

    source: Source
    folder: Path
    wanted: InputOptions = WHATEVER_FITS


@dataclass(frozen=True)
class Segmented:
    """A job that is done.

    Attributes:
        ordinal: Place among the jobs, from 1.
        result: What is published.
    """

    ordinal: int
    result: SeriesResult


@dataclass(frozen=True)
class Refused:
    """A job that failed; nothing of it is left.

    Attributes:
        ordinal: Place among the jobs, from 1.
        error: Why.
    """

    ordinal: int
    error: UcsegError


Outcome = Segmented | Refused


def segment_neighbours(
    jobs: Iterable[SeriesJob | None],
    model: Model,
    inference: InferenceOptions,
    outputs: OutputOptions,
    report: Callable[[Outcome], None],
    progress: Progress | None = None,
) -> None:
    """Segment the one fitting series of each of many inputs; what is written is what `segment_series` writes.

    At most three series are in memory: one that is read or waits for the network, one in the network, one that is being
    written. A job is taken from `jobs` when it is to be read, not before. One that fails never stops the others. When
    this function is left by an exception, every job is done completely or not at all.

    Args:
        jobs: Any number; their folders must differ. None in between says that none is at hand just now: what has been
            begun is finished and reported before the next is asked for.
        model: Verified model folder.
        inference: Engine, precision, threads; without a memory budget, which is for one series alone.
        outputs: Which objects are written.
        report: Told of every job when it is done or has failed, in the order of the jobs.
        progress: Told after every batch how many tiles of the series in the network are done.

    Raises:
        ValueError: There is a memory budget.
        ModelError: The engine cannot be used for the model, whatever the input.
        BackendError: It cannot be opened; or a package is missing for what is to be written.
    """
    if inference.max_memory_mb:
        raise ValueError("a memory budget is for one series")
    require_packages(outputs)
    with Worker() as reading, Worker() as writing:
        reader = _Reader(reading, jobs, model.manifest, outputs)
        writer = _Writer(writing, inference, outputs, report)
        with _opened_once(model, inference) as opening:
            for ordinal, job in reader:
                try:
                    # One expression, so that the volume goes with it.
                    inferred = infer_input(reader.take(), model, opening, inference, outputs, progress)
                except UcsegError as error:
                    writer.refuse(ordinal, error)
                else:
                    writer.write(ordinal, job, inferred)
                    del inferred
                if reader.is_idle:
                    writer.finish()


@contextmanager
def _opened_once(model: Model, inference: InferenceOptions) -> Iterator[AbstractContextManager[Backend]]:
    """An engine that is open already and stays open, to be entered for every series; unopened where none is entered.

    A server for whole volumes is entered for none. It has to answer once all the same: that it is away is no failure of
    the first series, and of every other one.
    """
    if inference.server is not None and inference.server.mode == "volume":
        check_volume_server(model, inference.server, gate=inference.gate)
        yield open_backend(model, inference)
    else:
        with open_backend(model, inference) as backend:
            yield nullcontext(backend)


class _Reader:
    """Reads one series ahead.

    Iterating gives the jobs with their ordinals; `take` has to be called once for each.
    """

    def __init__(
        self,
        worker: Worker,
        jobs: Iterable[SeriesJob | None],
        manifest: Manifest,
        outputs: OutputOptions,
    ) -> None:
        self._worker = worker
        self._settings = manifest, outputs
        self._upcoming = iter(jobs)
        self._ordinals = itertools.count(1)
        self._started: list[tuple[int, SeriesJob]] = []  # at most one
        self._ended = False
        self._start_next()

    def __iter__(self) -> Iterator[tuple[int, SeriesJob]]:
        while not self._ended:
            if self.is_idle:
                self._start_next()
            else:
                yield self._started[0]

    @property
    def is_idle(self) -> bool:
        """Whether no job is begun; there may be more."""
        return not self._started

    def take(self) -> ReadInput:
        """The series of the current job; the next one is begun.

        Raises:
            UcsegError: It cannot be segmented.
        """
        self._started.pop()
        read = self._answer()
        self._start_next()
        if isinstance(read, UcsegError):
            raise read
        return read

    def _answer(self) -> ReadInput | UcsegError:
        try:
            with quiet_pydicom():  # headers come with it, and pydicom looks at their values once more
                return cast(ReadInput, self._worker.answer())  # what `_read` returns
        except UcsegError as error:
            return error
        except WorkerDiedError as death:
            return InputError(
                f"the process that read the study {death}.",
                hint="Segment it alone; see whether there is memory enough for it.",
                code=_DIED_READING,
            )

    def _start_next(self) -> None:
        """Begin with the next job, if one is at hand."""
        try:
            job = next(self._upcoming)
        except StopIteration:
            self._ended = True
            return
        if job is not None:
            self._started.append((next(self._ordinals), job))
            self._worker.start(_read, job, *self._settings)


class _Writer:
    """Writes one series at a time, and reports outcomes in the order in which they are given."""

    def __init__(
        self, worker: Worker, inference: InferenceOptions, outputs: OutputOptions, report: Callable[[Outcome], None]
    ) -> None:
        self._worker = worker
        self._inference = inference
        self._outputs = outputs
        self._report = report
        self._started: list[tuple[int, SeriesJob]] = []  # at most one

    def write(self, ordinal: int, job: SeriesJob, inferred: InferredInput) -> None:
        """Begin to write, once the one before is written."""
        self.finish()
        self._started.append((ordinal, job))
        self._worker.start(write_input, inferred, job.folder, self._inference, self._outputs)

    def refuse(self, ordinal: int, error: UcsegError) -> None:
        """Report a failure, once the one before is written."""
        self.finish()
        self._report(Refused(ordinal, error))

    def finish(self) -> None:
        """Wait for what is being written, and report it."""
        while self._started:
            ordinal, job = self._started.pop()
            self._report(self._outcome(ordinal, job))

    def _outcome(self, ordinal: int, job: SeriesJob) -> Outcome:
        try:
            result = self._answer(job)
        except UcsegError as error:
            return Refused(ordinal, error)
        _LOGGER.info("study %d: %.2f s", ordinal, sum(result.seconds.values()))
        return Segmented(ordinal, result)

    def _answer(self, job: SeriesJob) -> SeriesResult:
        try:
            return cast(SeriesResult, self._worker.answer())  # what `write_input` returns
        except WorkerDiedError as death:
            check_output_folder(job.folder, overwrite=True)  # undoes what the process has left
            message = f"the process that wrote the results {death}."
            hint = "Run it again; see whether there is memory enough for it."
            raise OutputError(message, hint=hint, code=DIED_WRITING) from death


def _read(job: SeriesJob, manifest: Manifest, outputs: OutputOptions) -> ReadInput:
    """All that comes before the network. Runs in a child."""
    check_outputs(job.folder, outputs)
    times = StageTimes()
    with ExitStack() as stack:
        with times.stage("scan"):
            found = stack.enter_context(found_in(job.source, manifest, job.wanted))
        read = read_input(found, times)
    _require_lasting_files(read)
    return read


def _require_lasting_files(read: ReadInput) -> None:
    """Frames are read while they are segmented, and those of a zip archive are gone by then."""
    if isinstance(read, ReadClip) and not read.found.selection.chosen.instances[0].path.exists():
        raise InputError(
            "a clip in a zip archive cannot be one of several inputs.", hint="Give it alone, or as a folder."
        )
