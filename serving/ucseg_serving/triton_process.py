"""The process of a Triton on loopback: started, ready, stopped, and started again."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import tempfile
import time
import urllib.request
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Self

from ucseg_runtime.errors import BackendError, ServerTimeoutError
from ucseg_serving.model_processes import model_processes

_BOUND_TO_US = ("setpriv", "--pdeathsig", "TERM")
"""Triton stops when its parent ends, however that comes; of util-linux."""
_REGIONS = Path("/dev/shm")  # noqa: S108  (where Linux shows shared memory)
_POLL_S = 0.1
_SLACK_S = 5.0
"""From the time limit of requests to the end of the server."""
_UNLOADING_S = 5.0
"""In which no other model is unloaded."""
_SHOWN_LOG_LINES = 12


@dataclass(frozen=True)
class TritonStart:
    """What a Triton is started with, each time.

    Attributes:
        command: Program and flags.
        environment: All of its variables.
        health_url: Answers 200 once every model is ready.
        metrics_url: Where Prometheus reads.
        regions: Prefix of the names of the shared memory between the server and its Python models.
        ready_timeout_s: Time until every model must be ready.
        stop_timeout_s: Time that requests in work get when the server is stopped.
    """

    command: Sequence[str]
    environment: Mapping[str, str]
    health_url: str
    metrics_url: str
    regions: str
    ready_timeout_s: float
    stop_timeout_s: float


class TritonProcess:
    """A Triton that runs for the length of a ``with`` block; after `restart` it is the same one, at the same ports.

    It ends with the thread that started it, should that end first.

    Attributes:
        process: The one that was started last; leader of the process group of its Python models.

    Raises:
        BackendError: The program cannot be started.
    """

    def __init__(self, start: TritonStart) -> None:
        self._start = start
        self._log = tempfile.TemporaryFile()  # noqa: SIM115  (closed by __exit__)
        self._log_offset = 0
        self.process = _started(start, self._log)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self._let_end()
        finally:
            self._end()
            self._log.close()

    def wait_until_ready(self) -> None:
        """Wait until every model is ready and the metrics can be read.

        Raises:
            BackendError: It ended before; the message has the last errors of its log.
            ServerTimeoutError: It was not ready in time.
        """
        deadline = time.monotonic() + self._start.ready_timeout_s
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                raise self.ended()
            # Triton opens its metrics last, a moment after it calls itself ready.
            if _answers(self._start.health_url) and _answers(self._start.metrics_url):
                return
            time.sleep(_POLL_S)
        raise ServerTimeoutError(
            f"Triton was not ready after {self._start.ready_timeout_s:.0f} s: {self._last_errors()}.",
            hint="Allow more time.",
        )

    def restart(self) -> None:
        """Let it finish its requests, end it, and wait until it is ready again.

        Raises:
            BackendError, ServerTimeoutError: See `wait_until_ready`.
        """
        self._let_end()
        self._end()
        self._log_offset = os.fstat(self._log.fileno()).st_size
        self.process = _started(self._start, self._log)
        self.wait_until_ready()

    def ended(self) -> BackendError:
        """The error for a server that ended by itself, with what it said last."""
        return BackendError(
            f"Triton ended with {self.process.returncode}: {self._last_errors()}.",
            hint="Check the model folder with ucseg doctor, and that the ports are free.",
        )

    def _let_end(self) -> None:
        """Give it the time to finish its requests and unload its models.

        Triton 2.51 waits in vain for a model whose process ended within a request.
        """
        running = model_processes(self.process.pid)
        has_lost_one = "" in running.values()
        self.process.terminate()
        deadline = time.monotonic() + self._start.stop_timeout_s + _SLACK_S
        while self.process.poll() is None and time.monotonic() < deadline:
            time.sleep(_POLL_S)
            before, running = running, model_processes(self.process.pid)
            if has_lost_one and len(running) < len(before):  # no request is left, and models are unloaded
                deadline = time.monotonic() + _UNLOADING_S

    def _end(self) -> None:
        """End what is left of its process group: a server that died leaves its Python models behind."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        _remove_regions(self._start.regions)

    def _last_errors(self) -> str:
        """What the server said about its failure, one line."""
        said = os.pread(self._log.fileno(), os.fstat(self._log.fileno()).st_size, self._log_offset)
        lines = said.decode(errors="replace").splitlines()
        telling = [line for line in lines if line.startswith("E") or "Error" in line or "UCSEG" in line]
        return " | ".join(line.strip() for line in (telling or lines)[-_SHOWN_LOG_LINES:])


def _started(start: TritonStart, log: BinaryIO) -> subprocess.Popen[bytes]:
    try:
        process = subprocess.Popen(  # noqa: S603  (a fixed program, no shell)
            [*_BOUND_TO_US, *start.command],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=start.environment,
            start_new_session=True,
        )
    except OSError as error:
        raise BackendError(f"Triton cannot be started: {error.strerror}.", hint="Install util-linux.") from error
    with suppress(ProcessLookupError):  # it has ended at once
        # A core file of the server would hold pixels.
        resource.prlimit(process.pid, resource.RLIMIT_CORE, (0, 0))
    return process


def _answers(url: str) -> bool:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(url, timeout=2.0) as response:
            return int(response.status) == 200
    except OSError:
        return False


def _remove_regions(prefix: str) -> None:
    """A server that was killed leaves the shared memory of its Python models."""
    for region in _REGIONS.glob(f"{prefix}*"):
        region.unlink(missing_ok=True)


def remove_stale_regions() -> None:
    """Remove the shared memory of servers and clients of ucseg whose process is gone."""
    for region in _REGIONS.glob("ucseg_*_*"):
        process = region.name.split("_")[1]
        if process.isdigit() and not Path("/proc", process).exists():
            region.unlink(missing_ok=True)
