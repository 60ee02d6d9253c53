"""Processes and ports of loopback that end with the test, however it ends."""

from __future__ import annotations

import signal
import socket
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

LOOPBACK = "127.0.0.1"
STOP_TIMEOUT_S = 10.0


def free_port() -> int:
    """A port of loopback on which nothing listens, and that nobody else is given as long as this process lives.

    Servers can listen there, one after the other: they set SO_REUSEADDR, as this does.
    """
    held = socket.socket()
    held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    held.bind((LOOPBACK, 0))
    port: int = held.getsockname()[1]
    held.detach()  # stays open
    return port


def heeding_interrupts() -> None:
    """A shell lets what it starts in the background ignore interrupts, and so do all children of that."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@contextmanager
def running(command: Sequence[str], environment: Mapping[str, str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Run a program for the length of the block; the kernel ends it should this process be killed.

    Args:
        command: Program and arguments.
        environment: All of its variables.
        log: File for what it prints.
    """
    with log.open("wb") as stream:
        process = subprocess.Popen(
            ["setpriv", "--pdeathsig", "KILL", *command],  # noqa: S607  (of util-linux, wherever it is)
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=subprocess.STDOUT,
            env=environment,
        )
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
