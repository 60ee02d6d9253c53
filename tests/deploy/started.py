"""The start line of the image, on the real Triton of the tests, which is found on the path."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import requests

from tests.deploy.chart import DEPLOY
from tests.processes import free_port
from ucseg_serving.server_package import install_server

START = DEPLOY / "start-triton.sh"
_READY_S = 180.0


@dataclass(frozen=True)
class Started:
    process: int
    http: int
    grpc: int
    metrics: int

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.http}"


def program(name: str) -> Path:
    """A program of this environment."""
    return Path(sys.executable).with_name(name)


@contextmanager
def started(arguments: Sequence[str], repository: Path, log: Path) -> Iterator[Started]:
    """Run the start line with the arguments of a container, on loopback, until the server is ready."""
    package = install_server()
    http, grpc, metrics = free_port(), free_port(), free_port()
    here = [
        f"--backend-directory={package.backends}",
        *(f"--{part}-address=127.0.0.1" for part in ("http", "grpc", "metrics")),
        f"--http-port={http}",
        f"--grpc-port={grpc}",
        f"--metrics-port={metrics}",
    ]
    environment = {
        **os.environ,
        "UCSEG_REPOSITORY": str(repository),
        "PATH": os.pathsep.join([str(program("python").parent), str(package.program.parent), os.environ["PATH"]]),
        "LD_LIBRARY_PATH": os.pathsep.join(map(str, package.libraries)),
    }
    with log.open("wb") as stream:
        process = subprocess.Popen(
            ["/bin/sh", START, *arguments, *here],
            stdout=stream,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,
        )
    try:
        server = Started(process.pid, http, grpc, metrics)
        _wait(server, process, log)
        yield server
        process.terminate()
        assert process.wait(60.0) == 0, "the shell is gone: the server itself gets the signal, and ends in order"
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _wait(server: Started, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + _READY_S
    while time.monotonic() < deadline:
        assert process.poll() is None, log.read_text(encoding="utf-8", errors="replace")[-3000:]
        try:
            if requests.get(f"{server.url}/v2/health/ready", timeout=2.0).status_code == 200:
                return
        except requests.ConnectionError:
            pass
        time.sleep(0.1)
    raise TimeoutError(log.read_text(encoding="utf-8", errors="replace")[-3000:])
