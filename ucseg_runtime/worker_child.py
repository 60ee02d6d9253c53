"""The program of a worker: calls what it is asked to call until its parent is gone or ends it."""

from __future__ import annotations

import ctypes
import os
import pickle
import signal
import sys
import traceback
from collections.abc import Callable
from types import FrameType
from typing import BinaryIO

from ucseg_runtime.worker import Done, Failed

_ENDING = (signal.SIGTERM, signal.SIGHUP)
_PR_SET_PDEATHSIG = 1
"""Of linux/prctl.h."""


class _StoppedError(BaseException):
    """Unwinds the stack, so that everything staged is removed."""


def main() -> None:
    """Serve requests until standard input ends."""
    for signum in _ENDING:
        signal.signal(signum, _stop)
    _end_with_parent()
    try:
        answers = _private_standard_output()
        while _served(sys.stdin.buffer, answers):
            pass
    except (_StoppedError, BrokenPipeError):
        sys.exit(0)


def _end_with_parent() -> None:
    """Let the kernel end this process when its parent dies: what it is doing would be done again by another."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def _served(requests: BinaryIO, answers: BinaryIO) -> bool:
    """Answer one request; False when there are no more. Nothing of it stays in memory."""
    try:
        function, arguments, options = pickle.load(requests)  # noqa: S301  by our parent, through an anonymous pipe
    except EOFError:
        return False
    pickle.dump(_answer(function, arguments, options), answers, protocol=5)
    answers.flush()
    return True


def _answer(
    function: Callable[..., object], arguments: tuple[object, ...], options: dict[str, object]
) -> Done | Failed:
    try:
        return Done(function(*arguments, **options))
    except Exception as error:  # noqa: BLE001  the process must answer
        return Failed(_portable(error), traceback.format_exc())


def _portable(error: Exception) -> Exception:
    """The exception if it survives the way to the parent, else one that names its type."""
    try:
        pickle.loads(pickle.dumps(error))  # noqa: S301
    except Exception:  # noqa: BLE001  exceptions of libraries fail in their own ways
        return RuntimeError(f"{type(error).__name__} in a child process")
    return error


def _private_standard_output() -> BinaryIO:
    """The pipe to the parent; whatever a library prints goes nowhere, so it cannot garble an answer."""
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, sys.stdout.fileno())
    os.close(null)
    return answers


def _stop(signum: int, frame: FrameType | None) -> None:
    for each in _ENDING:
        signal.signal(each, signal.SIG_IGN)  # a second one must not interrupt the cleaning up
    raise _StoppedError


if __name__ == "__main__":
    main()
