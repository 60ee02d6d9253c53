"""A real Triton server on this machine's loopback, behind a gate for HTTP, for the length of a ``with`` block."""

from __future__ import annotations

import os
import resource
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from ucseg_runtime.errors import BackendError, ServerTimeoutError
from ucseg_serving.http_gate import http_gate
from ucseg_serving.repository_checks import check_repository
from ucseg_serving.server_package import ServerPackage

_LOOPBACK = "127.0.0.1"
_RESTRICTED = ("model-repository", "statistics", "trace", "logging")
_SHARED_MEMORY = "shared-memory"
_REGIONS = Path("/dev/shm")  # noqa: S108  (where Linux shows shared memory)
_POLL_S = 0.1
_SHOWN_LOG_LINES = 12


@dataclass(frozen=True)
class LocalOptions:
    """How a local server is started.

    Attributes:
        http_port: 0 takes a free one.
        grpc_port: The same.
        metrics_port: The same.
        shared_memory: Whether clients on this machine may pass tensors by system shared memory.
        ready_timeout_s: Time until every model must be ready.
        stop_timeout_s: Time that requests in work get when the server is stopped.
        trace_url: Where a collector of OpenTelemetry takes spans by OTLP over HTTP; empty for no tracing.
    """

    http_port: int = 0
    grpc_port: int = 0
    metrics_port: int = 0
    shared_memory: bool = False
    ready_timeout_s: float = 120.0
    stop_timeout_s: float = 30.0
    trace_url: str = ""


@dataclass(frozen=True)
class LocalServer:
    """A server that is ready.

    Attributes:
        process: Of the server; also the leader of the process group of its Python models.
        http_url: ``http://127.0.0.1:PORT``.
        grpc_url: ``grpc://127.0.0.1:PORT``.
        metrics_url: Where Prometheus reads.
        log: What the server writes.
    """

    process: subprocess.Popen[bytes]
    http_url: str
    grpc_url: str
    metrics_url: str
    log: Path


@contextmanager
def running_server(package: ServerPackage, repository: Path, options: LocalOptions) -> Iterator[LocalServer]:
    """Start Triton on a repository, wait until every model is ready, and stop it at the end.

    Args:
        package: The unpacked server.
        repository: Checked before the server starts.
        options: Ports and times.

    Raises:
        RepositoryError: No server would work on the repository.
        BackendError: A port is taken, or the server ended before it was ready; the message has the last errors of its
            log.
        ServerTimeoutError: The server was not ready in time.
    """
    check_repository(repository)
    remove_stale_regions()
    with ExitStack() as held:
        listener = held.enter_context(_bound(options.http_port))
        private_http, grpc, metrics = (_usable_port(port) for port in (0, options.grpc_port, options.metrics_port))
        folder = held.enter_context(tempfile.TemporaryDirectory(prefix="ucseg-serve-"))
        log = Path(folder) / "triton.log"
        regions = f"ucseg_{os.getpid()}_{secrets.token_hex(4)}_"
        command = server_command(package, repository, options, [private_http, grpc, metrics], regions)
        with log.open("wb") as stream:
            process = subprocess.Popen(  # noqa: S603  (a fixed program, no shell)
                command,
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=subprocess.STDOUT,
                env=_environment(package),
                start_new_session=True,
            )
        # A core file of the server would hold pixels.
        resource.prlimit(process.pid, resource.RLIMIT_CORE, (0, 0))
        private = LocalServer(
            process,
            http_url=f"http://{_LOOPBACK}:{private_http}",
            grpc_url=f"grpc://{_LOOPBACK}:{grpc}",
            metrics_url=f"http://{_LOOPBACK}:{metrics}/metrics",
            log=log,
        )
        try:
            wait_until_ready(private, options.ready_timeout_s)
            port = listener.getsockname()[1]
            try:
                held.enter_context(http_gate(listener, private.http_url))
            except OSError as error:
                raise _taken(port, error) from error
            yield replace(private, http_url=f"http://{_LOOPBACK}:{port}")
        finally:
            _stop(process, options.stop_timeout_s)
            _remove_regions(regions)


def server_command(
    package: ServerPackage, repository: Path, options: LocalOptions, ports: list[int], regions: str
) -> list[str]:
    """The start line: nothing listens beyond loopback, and only inference, health and configurations are open.

    Configurations stay open, since clients read from them which model and engine answers. What else changes or reveals
    the server wants a header whose value nobody knows.

    Args:
        package: The unpacked server.
        repository: Model repository.
        options: Ports and times.
        ports: Of HTTP (behind the gate), gRPC and metrics.
        regions: Prefix of the names of the shared memory between the server and its Python models.
    """
    closed = ",".join(_RESTRICTED if options.shared_memory else (*_RESTRICTED, _SHARED_MEMORY))
    key = f"ucseg-admin={secrets.token_hex(16)}"
    values = {
        "model-repository": repository,
        "backend-directory": package.backends,
        "backend-config": f"python,shm-region-prefix-name={regions}",
        "http-address": _LOOPBACK,
        "grpc-address": _LOOPBACK,
        "metrics-address": _LOOPBACK,
        "http-port": ports[0],
        "grpc-port": ports[1],
        "metrics-port": ports[2],
        "allow-gpu-metrics": "false",
        "allow-sagemaker": "false",
        "allow-vertex-ai": "false",
        "exit-on-error": "true",
        "strict-readiness": "true",
        "model-control-mode": "none",
        "exit-timeout-secs": max(1, round(options.stop_timeout_s)),
        "http-restricted-api": f"{closed}:{key}",
        "grpc-restricted-protocol": f"{closed}:{key}",
    }
    flags = [f"--{name}={value}" for name, value in values.items()]
    return [str(package.program), "--disable-auto-complete-config", *flags, *_tracing(options.trace_url)]


def _tracing(url: str) -> list[str]:
    """Spans of every request, with times and names of models; the level TENSORS would write out what pixels hold."""
    if not url:
        return []
    settings = {
        "mode": "opentelemetry",
        "level": "TIMESTAMPS",
        "rate": "1",
        "count": "-1",
        "opentelemetry,url": url,
        "opentelemetry,resource": "service.name=ucseg",
    }
    return [f"--trace-config={name}={value}" for name, value in settings.items()]


def server_ended(server: LocalServer) -> BackendError:
    """The error for a server that ended by itself, with what it said last."""
    return BackendError(
        f"Triton ended with {server.process.returncode}: {_last_errors(server.log)}",
        hint="Check the model folder with ucseg doctor, and that the ports are free.",
    )


def _environment(package: ServerPackage) -> dict[str, str]:
    """The Python models find the packages of the running interpreter through the one that leads the path."""
    kept = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")}
    interpreter = str(Path(sys.prefix) / "bin")
    return {
        **kept,
        "PATH": os.pathsep.join([interpreter, os.environ.get("PATH", os.defpath)]),
        "LD_LIBRARY_PATH": os.pathsep.join(map(str, package.libraries)),
    }


def wait_until_ready(server: LocalServer, timeout_s: float) -> None:
    """Wait until every model is ready and the metrics can be read.

    Raises:
        BackendError: The server ended before.
        ServerTimeoutError: It was not ready in time.
    """
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if server.process.poll() is not None:
            raise server_ended(server)
        # Triton opens its metrics last, a moment after it calls itself ready.
        if _answers(f"{server.http_url}/v2/health/ready") and _answers(server.metrics_url):
            return
        time.sleep(_POLL_S)
    raise ServerTimeoutError(
        f"Triton was not ready after {timeout_s:.0f} s: {_last_errors(server.log)}", hint="Allow more time."
    )


def _answers(url: str) -> bool:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(url, timeout=2.0) as response:
            return int(response.status) == 200
    except (urllib.error.URLError, OSError):
        return False


def _last_errors(log: Path) -> str:
    """What the server said about its failure, one line."""
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    telling = [line for line in lines if line.startswith("E") or "Error" in line or "UCSEG" in line]
    return " | ".join(line.strip() for line in (telling or lines)[-_SHOWN_LOG_LINES:])


def _stop(process: subprocess.Popen[bytes], timeout_s: float) -> None:
    """Let the server finish its requests; what is left of its process group afterwards is ended."""
    process.terminate()
    try:
        process.wait(timeout_s + 5.0)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    try:
        # A server that died leaves its Python models behind.
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        return


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


def _usable_port(wanted: int) -> int:
    """A port that nobody listens at; what answers there later is then the server that was started."""
    with _bound(wanted) as probe:
        return int(probe.getsockname()[1])


def _bound(port: int) -> socket.socket:
    """A socket at a port of loopback that nobody listens at; 0 takes a free one."""
    bound = socket.socket()
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound.bind((_LOOPBACK, port))
    except OSError as error:
        bound.close()
        raise _taken(port, error) from error
    return bound


def _taken(port: int, error: OSError) -> BackendError:
    return BackendError(
        f"port {port} is taken ({error.strerror}).", hint="Stop what listens there, or choose another port."
    )
