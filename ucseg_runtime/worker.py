"""The parent's side of a worker: a child process that runs one function after the other, and may die without harm.

The child is a program of its own and not a fork, because engines have threads. What goes through the pipes is unpickled
as it is pickled, so that a large array is held once on each side and not twice.
"""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BufferedReader, BufferedWriter
from pathlib import Path
from types import TracebackType
from typing import ParamSpec, TypeVar, cast

from ucseg_runtime.errors import UcsegError

_CHILD_MODULE = "ucseg_runtime.worker_child"
_IMPORT_ROOT = str(Path(__file__).resolve().parents[1])
_SECONDS_TO_CLEAN_UP = 10.0

_Arguments = ParamSpec("_Arguments")
_Value = TypeVar("_Value")


class WorkerDiedError(Exception):
    """The child ended before it answered; the message says how it ended, and nothing about its work."""


class ChildTracebackError(Exception):
    """Stands in for the cause of a defect in the child: its traceback as text, which can hold values of headers."""


@dataclass(frozen=True)
class Done:
    """What the function returned."""

    value: object


@dataclass(frozen=True)
class Failed:
    """What the function raised.

    Attributes:
        error: The exception; one of another type where it cannot be pickled.
        traceback: As text.
    """

    error: Exception
    traceback: str


class Worker:
    """A child process that runs one function call at a time; used with ``with``.

    A child that dies is replaced at the next call. The child is ended with the ``with`` block, however that ends, and
    undoes what it has begun.

    Args:
        inherited: File descriptors that the child gets under the same numbers.
    """

    def __init__(self, inherited: Collection[int] = ()) -> None:
        self._inherited = inherited
        self._process = _start(inherited)

    def __enter__(self) -> Worker:
        return self

    def __exit__(
        self, _type: type[BaseException] | None, _value: BaseException | None, _trace: TracebackType | None
    ) -> None:
        self.end()

    def end(self, within_s: float = _SECONDS_TO_CLEAN_UP) -> None:
        """End the child.

        Args:
            within_s: That it gets to undo what it has begun, before it is killed.
        """
        self.terminate()
        try:
            self._process.wait(within_s)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        finally:
            _close(self._process)

    @property
    def pid(self) -> int:
        """Process id of the child."""
        return self._process.pid

    def start(
        self, function: Callable[_Arguments, object], *arguments: _Arguments.args, **options: _Arguments.kwargs
    ) -> None:
        """Let the child call a function. `answer` has to be asked for before the next call.

        Args:
            function: One that can be imported by its name.
            arguments: What can be pickled.
            options: The same.
        """
        if self._process.poll() is not None:
            _close(self._process)
            self._process = _start(self._inherited)
        try:
            requests = cast(BufferedWriter, self._process.stdin)
            pickle.dump((function, arguments, options), requests, protocol=5)
            requests.flush()
        except BrokenPipeError:
            self._process.wait()  # `answer` finds that it died, and says how

    def terminate(self) -> None:
        """Ask the child to end, without waiting for it."""
        self._process.terminate()

    def answer(self) -> object:
        """What the function returned.

        Raises:
            UcsegError: The function raised it: same type, code, message and hint.
            Exception: A defect of the function: its exception, with the child's traceback as its cause.
            WorkerDiedError: The child died.
        """
        try:
            # Written by our own program on the other end of an anonymous pipe.
            answer = cast(Done | Failed, pickle.load(cast(BufferedReader, self._process.stdout)))  # noqa: S301
        except (EOFError, pickle.UnpicklingError) as error:
            self._process.kill()
            raise WorkerDiedError(_end(self._process.wait())) from error
        if isinstance(answer, Done):
            return answer.value
        if isinstance(answer.error, UcsegError):
            raise answer.error
        raise answer.error from ChildTracebackError(answer.traceback)


def child_environment() -> dict[str, str]:
    """The parent's environment; this very package importable, no threads but those of engines, who are told theirs."""
    path = os.pathsep.join(filter(None, (_IMPORT_ROOT, os.environ.get("PYTHONPATH"))))
    return {**os.environ, "PYTHONPATH": path, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}


def _start(inherited: Collection[int]) -> subprocess.Popen[bytes]:
    with _without_interrupts():
        return subprocess.Popen(
            [sys.executable, "-P", "-m", _CHILD_MODULE],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,  # what libraries print can hold values of headers
            env=child_environment(),
            pass_fds=inherited,
        )


@contextmanager
def _without_interrupts() -> Iterator[None]:
    """A child started inside never sees the interrupt of the terminal, which is for its parent to handle."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _close(process: subprocess.Popen[bytes]) -> None:
    cast(BufferedReader, process.stdout).close()
    try:
        cast(BufferedWriter, process.stdin).close()
    except BrokenPipeError:
        return  # the rest of a request that nobody reads any more; the pipe is closed all the same


def _end(status: int) -> str:
    if status < 0:
        return f"was ended by signal {-status} ({signal.Signals(-status).name})"
    return f"ended with status {status}"
