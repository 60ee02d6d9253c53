"""Every series of an export that fits the model, segmented once; what is done already is left alone."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from typing import Literal, TypeAlias

from ucseg_runtime.batch.export_index import ExportSeries
from ucseg_runtime.batch.leases import Leases, held_leases
from ucseg_runtime.batch.plan import BatchPlan, SeriesOutcome, State
from ucseg_runtime.batch.runners import Runner
from ucseg_runtime.errors import OutputError, SeriesSelectionError, UcsegError
from ucseg_runtime.neighbours import SeriesJob
from ucseg_runtime.publish import reported_as_output_error

STATE_FOLDER = ".ucseg-batch"

_PAUSE_S = 2.0
"""Between two looks at series that other runners work on."""

Report: TypeAlias = Callable[[SeriesOutcome], None]


def run_batch(plan: BatchPlan, runner: Runner, report: Report) -> None:
    """Segment what is not done yet. One series that fails never stops the others; a full disk stops all.

    Any number of runners may work on the same folder of results, on any number of machines.

    Args:
        plan: Which series.
        runner: Segments them.
        report: Told of every series once, when it is known what became of it.

    Raises:
        OutputError: Results cannot be written at all.
        ModelError: The engine cannot be used for the model.
        BackendError: It cannot be opened, or the server is gone.
    """
    for outcome in plan.unsuitable:
        report(outcome)
    with ExitStack() as stack:
        with reported_as_output_error():
            folder = plan.places.out / STATE_FOLDER / "leases"
            leases = stack.enter_context(held_leases(folder, plan.options.lease_s))
        jobs = _Jobs(plan, leases, report)
        first = next(iter(jobs), None)
        if first is not None:
            runner.segment(itertools.chain([first], jobs), jobs.finished)


class _Jobs:
    """Hands out the series that are to be done, each under a lease, and takes back what became of them."""

    def __init__(self, plan: BatchPlan, leases: Leases, report: Report) -> None:
        self._plan = plan
        self._leases = leases
        self._report = report
        self._started: dict[int, ExportSeries] = {}
        self._jobs = self._hand_out()

    def __iter__(self) -> Iterator[SeriesJob | None]:
        return self._jobs

    def finished(self, ordinal: int, error: UcsegError | None) -> None:
        """A job is done or has failed.

        Raises:
            OutputError: Nothing can be written any more.
        """
        series = self._started.pop(ordinal)
        self._leases.release(self._plan.places.key_of(series))
        if error is None:
            self._tell(series, "segmented")
            return
        unsuitable = isinstance(error, SeriesSelectionError)
        self._tell(series, "unsuitable" if unsuitable else "failed", error)
        if isinstance(error, OutputError) and error.code == "UCSEG-E150":
            raise error

    def _hand_out(self) -> Iterator[SeriesJob | None]:
        """All series once, then again and again those that other runners had.

        None while only those are left and own ones are in work. Nobody waits with leases in the hand: two runners, each
        with the other's last series, would wait for ever.
        """
        ordinal = 0
        waiting: Sequence[ExportSeries] = self._plan.series
        while waiting:
            of_others = []
            for series in waiting:
                state = self._state_of(series)
                if state is None:
                    ordinal += 1
                    self._started[ordinal] = series
                    yield self._job(series)
                elif state == "leased":
                    of_others.append(series)
                else:
                    self._tell(series, state)
            waiting = of_others
            if waiting and self._started:
                yield None
            elif waiting:
                time.sleep(_PAUSE_S)

    def _state_of(self, series: ExportSeries) -> State | Literal["leased"] | None:
        """Why a series is not to be segmented now; None where it is, and its lease is taken."""
        age_s = time.time() - self._plan.index.newest_ns(series) / 1e9
        if 0 <= age_s < self._plan.options.settle_s:
            return "unsettled"
        if not self._plan.why_not_done(series):
            return "done"
        key = self._plan.places.key_of(series)
        with reported_as_output_error():
            claimed = self._leases.claim(key)
        if not claimed:
            return "leased"
        if not self._plan.why_not_done(series):  # another runner was just done with it
            self._leases.release(key)
            return "done"
        return None

    def _job(self, series: ExportSeries) -> SeriesJob:
        source = self._plan.index.source_of(series)
        return SeriesJob(source, self._plan.places.folder_of(series), self._plan.wanted(series))

    def _tell(self, series: ExportSeries, state: State, error: UcsegError | None = None) -> None:
        code, reason = (error.code, str(error)) if error is not None else ("", "")
        self._report(SeriesOutcome(series, self._plan.places.folder_of(series), state, code, reason))
