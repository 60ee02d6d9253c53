"""A batch in several processes of this machine, side by side: each has the model open, and its share of the cores.

One process does not keep all cores busy: between two series, and where it stitches, its network has nothing to do. A
lane is `segment_neighbours` in a process of its own, which asks for a job when it is about to read one. This process
keeps the leases and hands the jobs out.
"""

from __future__ import annotations

import fcntl
import logging
import os
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from multiprocessing import Pipe
from multiprocessing.connection import Connection, wait
from typing import cast

from ucseg_runtime.backends.cores import usable_cores
from ucseg_runtime.batch.lane import Answer, Asks, Ended, Logs, Message, NoneAtHand, work
from ucseg_runtime.batch.runners import Finished, LocalRunner, Runner
from ucseg_runtime.batch.tasks import Deaths, Task, Tasks
from ucseg_runtime.neighbours import SeriesJob
from ucseg_runtime.segmentation import EngineInfo
from ucseg_runtime.worker import Worker, WorkerDiedError

_LOGGER = logging.getLogger(__name__)

_SECONDS_TO_END = 25.0
"""That lanes get to undo what they have begun; each ends two children of its own, with ten seconds for each."""

_MOST_DEATHS_IN_A_ROW = 10
"""Deaths without a finished series in between, for each lane; then it is not the series."""


@dataclass(frozen=True)
class _Died:
    """In place of a message: the process has ended; how."""

    how: str


@dataclass(frozen=True)
class LaneRunner:
    """Segments in some processes side by side; see `Runner`.

    A lane that dies is replaced. What it had is tried again, and fails when several have died over it.

    Attributes:
        runners: One for each lane; each goes to its process.
    """

    runners: tuple[Runner, ...]

    def engine(self) -> EngineInfo | None:
        """See `Runner.engine`."""
        return self.runners[0].engine()

    def segment(self, jobs: Iterable[SeriesJob | None], finished: Finished) -> None:
        """See `Runner.segment`.

        Raises:
            BackendError: Also where lanes die one after the other.
        """
        with _open_lanes(self.runners) as lanes:
            _hand_out(Tasks(jobs, finished), lanes)


def lanes_of(runner: LocalRunner, count: int) -> LaneRunner:
    """So many lanes that share the cores, unless the number of threads was chosen.

    Args:
        runner: What a single process would do.
        count: Of lanes; where there are several servers, each begins with another one.
    """
    inference = runner.inference
    if not (inference.threads or inference.server):
        inference = replace(inference, threads=max(1, usable_cores() // count))

    def lane(number: int) -> LocalRunner:
        server = inference.server and inference.server.beginning_with(number)
        return replace(runner, inference=replace(inference, server=server))

    return LaneRunner(tuple(map(lane, range(count))))


class _Lane:
    """The near end of one lane.

    Attributes:
        runner: What it was started with.
        channel: To its process.
        tasks: That it was given and has not finished, by their place among its jobs, from 1.
    """

    def __init__(self, runner: Runner) -> None:
        self.runner = runner
        self.tasks: dict[int, Task] = {}
        self._given = 0
        self.channel, far_end = Pipe()
        with far_end, _above_standard(far_end.fileno()) as number:  # so that the channel ends with the process
            self._worker = Worker(inherited=(number,))
            self._worker.start(work, runner, number, _LOGGER.getEffectiveLevel())

    @property
    def has_room(self) -> bool:
        """Whether it may be given a new task; not while it has one that has to be alone."""
        return not any(task.deaths for task in self.tasks.values())

    def give(self, task: Task) -> None:
        """Answer a question with a task."""
        self._given += 1
        self.tasks[self._given] = task
        self._answer(task.job)

    def let_finish(self) -> None:
        """Answer a question with nothing."""
        self._answer(NoneAtHand())

    def message(self) -> Message | _Died:
        """What it says next; waits for that.

        Raises:
            UcsegError: It has ended, since it cannot segment anything, whatever the series.
        """
        try:
            return cast(Message, self.channel.recv())
        except (EOFError, OSError):  # OSError: it died while it said something
            return _Died(self._end())

    def terminate(self) -> None:
        """Ask the process to end."""
        self._worker.terminate()

    def close(self, deadline: float) -> None:
        """End the process.

        Args:
            deadline: Until which it may undo what it has begun, by `time.monotonic`, before it is killed.
        """
        self.channel.close()
        self._worker.end(max(0.0, deadline - time.monotonic()))

    def _answer(self, answer: Answer) -> None:
        try:
            self.channel.send(answer)
        except (BrokenPipeError, ConnectionResetError):
            return  # the process has died, as `message` will say

    def _end(self) -> str:
        try:
            self._worker.answer()
        except WorkerDiedError as death:
            return str(death)
        raise RuntimeError("a lane ended before it was told to")


class _Lanes:
    """All lanes."""

    def __init__(self, size: int) -> None:
        self._lanes: list[_Lane] = []
        hint = "See whether there is memory enough, or ask for fewer --lanes."
        self.deaths = Deaths("processes", _MOST_DEATHS_IN_A_ROW * size, hint)

    @property
    def any_works(self) -> bool:
        """Whether one has a task."""
        return any(lane.tasks for lane in self._lanes)

    def start(self, runner: Runner) -> None:
        """Start one."""
        self._lanes.append(_Lane(runner))

    def messages(self) -> Iterator[tuple[_Lane, Message | _Died]]:
        """Wait for messages, one of each lane that has some."""
        by_channel = {lane.channel: lane for lane in self._lanes}
        for channel in wait(list(by_channel)):
            lane = by_channel[cast("Connection[Answer, Message]", channel)]
            yield lane, lane.message()

    def replace(self, dead: _Lane, how: str) -> None:
        """Start another one.

        Raises:
            BackendError: Too many have died in a row.
        """
        _LOGGER.warning("a process of this batch %s; what it had is tried again", how)
        self._lanes.remove(dead)
        dead.close(time.monotonic())
        self.deaths.count()
        self.start(dead.runner)

    def end(self) -> None:
        """End all; all are asked before one is waited for, and they have one limit."""
        deadline = time.monotonic() + _SECONDS_TO_END
        for lane in self._lanes:
            lane.terminate()
        with ExitStack() as stack:
            for lane in self._lanes:
                stack.callback(lane.close, deadline)


@contextmanager
def _open_lanes(runners: Sequence[Runner]) -> Iterator[_Lanes]:
    lanes = _Lanes(len(runners))
    try:
        for runner in runners:
            lanes.start(runner)
        yield lanes
    finally:
        lanes.end()


@contextmanager
def _above_standard(descriptor: int) -> Iterator[int]:
    """A copy whose number no standard stream of a child takes: this process may have been started without some."""
    number = fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, 3)
    try:
        yield number
    finally:
        os.close(number)


def _hand_out(tasks: Tasks, lanes: _Lanes) -> None:
    """Give all tasks to lanes as they ask, until every one is finished.

    Raises:
        UcsegError: A lane cannot work, or they die one after the other.
    """
    asking: list[_Lane] = []
    while True:
        asking = [lane for lane in asking if not _answer(lane, tasks)]
        if tasks.ended and not lanes.any_works:
            return
        for lane, message in lanes.messages():
            if isinstance(message, Asks):
                asking.append(lane)
            elif isinstance(message, Ended):
                lanes.deaths.forget()
                tasks.finish(lane.tasks.pop(message.ordinal), message.error)
            elif isinstance(message, Logs):
                _LOGGER.log(message.level, "%s", message.line)
            else:
                asking = [other for other in asking if other is not lane]
                tasks.take_back(lane.tasks.values(), "processes")
                lanes.replace(lane, message.how)


def _answer(lane: _Lane, tasks: Tasks) -> bool:
    """Answer a lane that asks; False where it has nothing in work and has to wait."""
    task = _task_for(lane, tasks)
    if task is not None:
        lane.give(task)
    elif lane.tasks:
        lane.let_finish()
    else:
        return False
    return True


def _task_for(lane: _Lane, tasks: Tasks) -> Task | None:
    task = None if lane.tasks else tasks.alone()
    return tasks.upcoming() if task is None and lane.has_room else task
