"""Who segments the series of a batch: this process, or actors on a cluster (`ray_run`). All do it by `neighbours`."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Protocol, TypeAlias

from ucseg_runtime.backends.opening import engine_of
from ucseg_runtime.config import InferenceOptions, OutputOptions
from ucseg_runtime.errors import UcsegError
from ucseg_runtime.model_folder import Model
from ucseg_runtime.neighbours import Outcome, Refused, SeriesJob, segment_neighbours
from ucseg_runtime.segmentation import EngineInfo

Finished: TypeAlias = Callable[[int, UcsegError | None], None]
"""Told the place of a job among the jobs, from 1, once it is done, or why it has failed."""


class Runner(Protocol):
    """Segments series, wherever it does that."""

    def engine(self) -> EngineInfo | None:
        """What it computes with; None where a server does, of whose engine nothing is known beforehand.

        Raises:
            ModelError: No engine may serve the model.
            BackendError: The engine that was asked for cannot be had.
        """
        ...

    def segment(self, jobs: Iterable[SeriesJob | None], finished: Finished) -> None:
        """Segment all jobs, replacing earlier results; one that fails never stops the others.

        Args:
            jobs: As `segment_neighbours` takes them.
            finished: Told of every job, in any order.

        Raises:
            ModelError: The engine cannot be used for the model.
            BackendError: It cannot be opened.
        """
        ...


@dataclass(frozen=True)
class LocalRunner:
    """Segments in this process and its two children.

    Attributes:
        model: Verified model folder.
        inference: Engine, precision, threads, server.
        outputs: Which objects are written.
    """

    model: Model
    inference: InferenceOptions
    outputs: OutputOptions

    def engine(self) -> EngineInfo | None:
        """See `Runner.engine`."""
        return None if self.inference.server is not None else engine_of(self.model, self.inference)

    def segment(self, jobs: Iterable[SeriesJob | None], finished: Finished) -> None:
        """See `Runner.segment`."""

        def report(outcome: Outcome) -> None:
            finished(outcome.ordinal, outcome.error if isinstance(outcome, Refused) else None)

        # The batch itself decides what may be replaced.
        segment_neighbours(jobs, self.model, self.inference, replace(self.outputs, overwrite=True), report)
