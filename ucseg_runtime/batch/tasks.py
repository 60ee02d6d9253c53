"""Series on their way to processes that may die over them: numbered, tried again, and given up."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Collection, Iterable
from dataclasses import dataclass

from ucseg_runtime.batch.runners import Finished
from ucseg_runtime.errors import BackendError, UcsegError
from ucseg_runtime.neighbours import SeriesJob

_MOST_DEATHS = 3
"""Processes that may die over one series before it counts as failed."""


@dataclass(eq=False)
class Task:
    """A job on its way.

    Attributes:
        ordinal: Place among the jobs, from 1.
        job: The same.
        deaths: Processes that have died over it. After the first it has to be alone in its process, so that no other
            dies with it.
    """

    ordinal: int
    job: SeriesJob
    deaths: int = 0


class Deaths:
    """Deaths of processes one after the other, without a series that was finished in between.

    Args:
        processes: What they are called.
        most: After which it is not the series.
        hint: What to do then.
    """

    def __init__(self, processes: str, most: int, hint: str) -> None:
        self._processes = processes
        self._most = most
        self._hint = hint
        self._in_a_row = 0

    def count(self) -> None:
        """One more has died.

        Raises:
            BackendError: Too many.
        """
        self._in_a_row += 1
        if self._in_a_row > self._most:
            raise BackendError(f"{self._in_a_row} {self._processes} have died one after the other.", hint=self._hint)

    def forget(self) -> None:
        """A series was finished."""
        self._in_a_row = 0


class Tasks:
    """Jobs as they come, and those that have to be tried again.

    Args:
        jobs: As `segment_neighbours` takes them.
        finished: Told of every job once.
    """

    def __init__(self, jobs: Iterable[SeriesJob | None], finished: Finished) -> None:
        self._jobs = iter(jobs)
        self._finished = finished
        self._ordinals = itertools.count(1)
        self._again: deque[Task] = deque()
        self._ended = False

    @property
    def any_waits_to_be_alone(self) -> bool:
        """Whether one is to be tried again, in a process that has nothing else."""
        return bool(self._again)

    @property
    def ended(self) -> bool:
        """Whether all have been handed out; one that is in work may come back."""
        return self._ended and not self._again

    def alone(self) -> Task | None:
        """One to be tried again."""
        return self._again.popleft() if self._again else None

    def upcoming(self) -> Task | None:
        """A new one; None where none is at hand just now, or ever again."""
        if self._ended:
            return None
        try:
            job = next(self._jobs)
        except StopIteration:
            self._ended = True
            return None
        return None if job is None else Task(next(self._ordinals), job)

    def finish(self, task: Task, error: UcsegError | None) -> None:
        """It is done, or has failed."""
        self._finished(task.ordinal, error)

    def take_back(self, tasks: Collection[Task], processes: str) -> None:
        """A process has died: what it had is tried again, or has failed where too many have died over it.

        Args:
            tasks: That it was given and has not finished.
            processes: What they are called.
        """
        for task in tasks:
            task.deaths += 1
            if task.deaths < _MOST_DEATHS:
                self._again.append(task)
                continue
            message = f"{task.deaths} {processes} died over this series."
            hint = "Segment it alone; see whether there is memory enough for it."
            self.finish(task, BackendError(message, hint=hint))
