"""A batch in several processes of this machine, side by side: each has the model open, and its share of the cores.

One process does not keep all cores busy: between two series, and where it stitches, its network has nothing to do. A
lane is `segment_neighbours` in a process of its own, which asks for a job when it is about to read one. This process
keeps the leases and hands the jobs out.
"""

from __future__ import annotations

import os
import select
import signal
import threading
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from multiprocessing import Pipe
from multiprocessing.connection import Connection, wait
from types import TracebackType
from typing import TypeAlias, cast

from ucseg_runtime.backends.cores import usable_cores
from ucseg_runtime.batch.runners import Finished, LocalRunner, Runner
from ucseg_runtime.batch.tasks import Task, Tasks
from ucseg_runtime.errors import BackendError, UcsegError
from ucseg_runtime.neighbours import SeriesJob
from ucseg_runtime.segmentation import EngineInfo
from ucseg_runtime.worker import Worker, WorkerDiedError

_MOST_DEATHS_IN_A_ROW = 10
"""Deaths without a finished series in between, for each lane; then it is not the series."""


@dataclass(frozen=True)
class _Asks:
    """A lane is about to read a series."""


@dataclass(frozen=True)
class _Finished:
    """What became of a job, by its place among those of the lane, from 1."""

    ordinal: int
    error: UcsegError | None


@dataclass(frozen=True)
class _Breaks:
    """The lane cannot go on; its worker says why."""


@dataclass(frozen=True)
class _Died:
    """In place of a message; how the process ended."""

    how: str


_Message: TypeAlias = _Asks | _Finished | _Breaks
_Answer: TypeAlias = SeriesJob | None


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
        with _Lanes(self.runners) as lanes:
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
        with far_end:  # so that the channel ends when the process does
            self._worker = Worker(inherited=(far_end.fileno(),))
            self._worker.start(_work, runner, far_end.fileno())

    @property
    def has_room(self) -> bool:
        """Whether it may be given a new task; not while it has one that has to be alone."""
        return not any(task.deaths for task in self.tasks.values())

    def give(self, task: Task) -> None:
        """Answer a question with a task."""
        self._given += 1
        self.tasks[self._given] = task
        self.answer(task.job)

    def answer(self, answer: _Answer) -> None:
        """Answer a question; a process that has died meanwhile is found out by `message`."""
        try:
            self.channel.send(answer)
        except (BrokenPipeError, ConnectionResetError):
            return

    def message(self) -> _Asks | _Finished | _Died:
        """What it says next.

        Raises:
            UcsegError: It cannot segment anything, whatever the series.
        """
        try:
            message = cast(_Message, self.channel.recv())
        except (EOFError, OSError):  # OSError: it died while it said something
            return _Died(self._end())
        return _Died(self._end()) if isinstance(message, _Breaks) else message

    def terminate(self) -> None:
        """Ask the process to end."""
        self._worker.terminate()

    def close(self) -> None:
        """End the process, and wait for that."""
        self.channel.close()
        with self._worker:
            pass

    def _end(self) -> str:
        try:
            self._worker.answer()
        except WorkerDiedError as death:
            return str(death)
        raise RuntimeError("a lane ended before it was told to")


class _Lanes:
    """All lanes, for the length of a ``with`` block."""

    def __init__(self, runners: Iterable[Runner]) -> None:
        self._deaths_in_a_row = 0
        self._lanes: list[_Lane] = []
        with self._ended_on_error():
            for runner in runners:
                self._lanes.append(_Lane(runner))
        self._size = len(self._lanes)

    def __enter__(self) -> _Lanes:
        return self

    def __exit__(
        self, _type: type[BaseException] | None, _value: BaseException | None, _trace: TracebackType | None
    ) -> None:
        self._end()

    def __iter__(self) -> Iterator[_Lane]:
        return iter(self._lanes)

    @property
    def in_work(self) -> bool:
        """Whether anything is."""
        return any(lane.tasks for lane in self._lanes)

    def messages(self) -> Iterator[tuple[_Lane, _Asks | _Finished | _Died]]:
        """Wait for messages, one of each lane that has some."""
        by_channel = {lane.channel: lane for lane in self._lanes}
        for channel in wait(list(by_channel)):
            lane = by_channel[cast("Connection[_Answer, _Message]", channel)]
            yield lane, lane.message()

    def revive(self) -> None:
        """A series was finished: deaths before it count no more."""
        self._deaths_in_a_row = 0

    def replace(self, dead: _Lane, how: str) -> None:
        """Start another one.

        Raises:
            BackendError: Too many have died in a row.
        """
        self._lanes.remove(dead)
        dead.close()
        self._deaths_in_a_row += 1
        if self._deaths_in_a_row > _MOST_DEATHS_IN_A_ROW * self._size:
            raise BackendError(
                f"{self._deaths_in_a_row} processes have died one after the other; the last {how}.",
                hint="See whether there is memory enough, or ask for fewer --lanes.",
            )
        self._lanes.append(_Lane(dead.runner))

    @contextmanager
    def _ended_on_error(self) -> Iterator[None]:
        try:
            yield
        except BaseException:
            self._end()
            raise

    def _end(self) -> None:
        """All are asked before one is waited for."""
        for lane in self._lanes:
            lane.terminate()
        with ExitStack() as stack:
            for lane in self._lanes:
                stack.callback(lane.close)


def _hand_out(tasks: Tasks, lanes: _Lanes) -> None:
    """Give all tasks to lanes as they ask, until every one is finished.

    Raises:
        UcsegError: A lane cannot work, or they die one after the other.
    """
    asking: list[_Lane] = []
    while True:
        asking = [lane for lane in asking if not _answered(lane, tasks)]
        if tasks.ended and not lanes.in_work:
            return
        for lane, message in lanes.messages():
            if isinstance(message, _Asks):
                asking.append(lane)
            elif isinstance(message, _Finished):
                lanes.revive()
                tasks.finish(lane.tasks.pop(message.ordinal), message.error)
            else:
                asking = [other for other in asking if other is not lane]
                tasks.survive(lane.tasks.values(), "processes")
                lanes.replace(lane, message.how)


def _answered(lane: _Lane, tasks: Tasks) -> bool:
    """Answer a lane that asks. One with nothing in work waits for the answer, the others have to go on."""
    task = None if lane.tasks else tasks.alone()
    if task is None and lane.has_room:
        task = tasks.upcoming()
    if task is not None:
        lane.give(task)
    elif lane.tasks:
        lane.answer(None)
    return task is not None or bool(lane.tasks)


def _work(runner: Runner, descriptor: int) -> None:
    """The far end: segment what is given, for ever. Runs in the process of the lane."""
    channel: Connection[_Message, _Answer] = Connection(descriptor)

    def asked_for() -> Iterator[SeriesJob | None]:
        while True:
            channel.send(_Asks())
            yield channel.recv()

    threading.Thread(target=_end_with, args=(descriptor,), name="parent", daemon=True).start()
    try:
        runner.segment(asked_for(), lambda ordinal, error: channel.send(_Finished(ordinal, error)))
    except Exception:
        channel.send(_Breaks())  # closing it would say nothing, as the thread still watches it
        raise


def _end_with(descriptor: int) -> None:
    """Wait until the near end is gone, and end this process in order: nobody would take what it does."""
    hang_up = select.poll()
    hang_up.register(descriptor, 0)
    hang_up.poll()
    os.kill(os.getpid(), signal.SIGTERM)
