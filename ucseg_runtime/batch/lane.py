"""The far end of a lane: a process that segments what it asks for, and says what became of it."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import TypeAlias

from ucseg_runtime.batch.runners import Runner
from ucseg_runtime.errors import UcsegError
from ucseg_runtime.neighbours import SeriesJob

_LOGGER_NAME = "ucseg_runtime"


@dataclass(frozen=True)
class Asks:
    """A lane is about to read a series."""


@dataclass(frozen=True)
class Ended:
    """What became of a job, by its place among those of the lane, from 1."""

    ordinal: int
    error: UcsegError | None


@dataclass(frozen=True)
class Logs:
    """A lane says something to people."""

    level: int
    line: str


@dataclass(frozen=True)
class NoneAtHand:
    """Answer to a lane that has work: it has to finish that before it asks again."""


Message: TypeAlias = Asks | Ended | Logs
Answer: TypeAlias = SeriesJob | NoneAtHand


def work(runner: Runner, descriptor: int, log_level: int) -> None:
    """The far end: segment what is given, for ever. Runs in the process of the lane."""
    with _FarEnd(descriptor) as parent:
        logger = logging.getLogger(_LOGGER_NAME)
        logger.setLevel(log_level)
        logger.addHandler(_ToParent(parent))
        runner.segment(parent.jobs(), parent.finished)


class _FarEnd:
    """The channel as the lane has it; used with ``with``. Threads of an engine may log beside each other."""

    def __init__(self, descriptor: int) -> None:
        self._channel: Connection[Message, Answer] = Connection(descriptor)
        self._lock = threading.Lock()

    def __enter__(self) -> _FarEnd:
        return self

    def __exit__(self, *_: object) -> None:
        self._channel.close()

    def jobs(self) -> Iterator[SeriesJob | None]:
        """Asked for when they are wanted, for ever."""
        while True:
            self.send(Asks())
            answer = self._channel.recv()
            yield None if isinstance(answer, NoneAtHand) else answer

    def finished(self, ordinal: int, error: UcsegError | None) -> None:
        """See `Finished`."""
        self.send(Ended(ordinal, error))

    def send(self, message: Message) -> None:
        """Say something."""
        with self._lock:
            self._channel.send(message)


class _ToParent(logging.Handler):
    """What this process logs is logged by its parent: its own standard error goes nowhere."""

    def __init__(self, parent: _FarEnd) -> None:
        super().__init__()
        self._parent = parent

    def emit(self, record: logging.LogRecord) -> None:
        """See `logging.Handler`."""
        self._parent.send(Logs(record.levelno, record.getMessage()))
