"""A real Triton server on this machine's loopback, behind a gate for HTTP, for the length of a ``with`` block."""

from __future__ import annotations

import logging
import os
import secrets
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from ucseg_runtime.errors import BackendError
from ucseg_serving.http_gate import HttpGate, http_gate
from ucseg_serving.loopback_ports import LOOPBACK, lent_port, listening_port, number_of
from ucseg_serving.model_processes import wait_for_a_loss
from ucseg_serving.repository_checks import check_repository
from ucseg_serving.server_package import ServerPackage
from ucseg_serving.triton_process import TritonProcess, TritonStart, remove_stale_regions

_LOGGER = logging.getLogger(__name__)
_RESTRICTED = ("model-repository", "statistics", "trace", "logging")
_SHARED_MEMORY = "shared-memory"


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
        triton: What runs.
        gate: In front of its port for HTTP.
        http_url: ``http://127.0.0.1:PORT``, of the gate.
        grpc_url: ``grpc://127.0.0.1:PORT``.
        metrics_url: Where Prometheus reads.
    """

    triton: TritonProcess
    gate: HttpGate
    http_url: str
    grpc_url: str
    metrics_url: str

    @property
    def process(self) -> subprocess.Popen[bytes]:
        """Of Triton as it runs now; also the leader of the process group of its Python models."""
        return self.triton.process

    def restart(self) -> None:
        """Start Triton again, at the same ports; requests in work get their time to finish first.

        Raises:
            BackendError, ServerTimeoutError: See `running_server`.
        """
        self.gate.close()
        self.triton.restart()
        self.gate.open()


@contextmanager
def running_server(package: ServerPackage, repository: Path, options: LocalOptions) -> Iterator[LocalServer]:
    """Start Triton on a repository, wait until every model is ready, and stop it at the end.

    Args:
        package: The unpacked server.
        repository: Checked before the server starts.
        options: Ports and times.

    Raises:
        RepositoryError: No server would work on the repository.
        BackendError: A port cannot be used, or the server ended before it was ready; the message has the last errors
            of its log.
        ServerTimeoutError: The server was not ready in time.
    """
    _refuse_one_port_for_two(options)
    check_repository(repository)
    remove_stale_regions()
    with ExitStack() as held:
        listener = held.enter_context(listening_port(options.http_port))
        wanted = (options.grpc_port, options.metrics_port, 0)  # the free one last, lest it be one of the others
        grpc, metrics, private_http = (number_of(held.enter_context(lent_port(port))) for port in wanted)
        regions = f"ucseg_{os.getpid()}_{secrets.token_hex(4)}_"
        start = TritonStart(
            command=server_command(package, repository, options, [private_http, grpc, metrics], regions),
            environment=_environment(package),
            health_url=f"http://{LOOPBACK}:{private_http}/v2/health/ready",
            metrics_url=f"http://{LOOPBACK}:{metrics}/metrics",
            regions=regions,
            ready_timeout_s=options.ready_timeout_s,
            stop_timeout_s=options.stop_timeout_s,
        )
        gate = held.enter_context(http_gate(listener, f"http://{LOOPBACK}:{private_http}"))
        triton = held.enter_context(TritonProcess(start))
        triton.wait_until_ready()
        held.callback(gate.close)
        gate.open()
        http_url = f"http://{LOOPBACK}:{number_of(listener)}"
        yield LocalServer(triton, gate, http_url, f"grpc://{LOOPBACK}:{grpc}", start.metrics_url)


def keep_running(server: LocalServer) -> NoReturn:
    """Start Triton again whenever a Python model has lost its process, until Triton itself ends.

    Triton goes on without such a model, and calls itself ready; what ends by itself, whoever started this process sees.
    Until Triton is ready again requests are refused as by a server that is away, which clients of ucseg wait for.

    Raises:
        BackendError: Triton ended by itself, or was not ready again.
        ServerTimeoutError: It was not ready again in time.
    """
    while models := wait_for_a_loss(server.process):
        _LOGGER.warning("a process of %s ended; Triton is started again", ", ".join(sorted(models)))
        since = time.monotonic()
        server.restart()
        _LOGGER.warning("Triton is ready again, after %.1f s", time.monotonic() - since)
    raise server.triton.ended()


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
        "http-address": LOOPBACK,
        "grpc-address": LOOPBACK,
        "metrics-address": LOOPBACK,
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


def _refuse_one_port_for_two(options: LocalOptions) -> None:
    named = [port for port in (options.http_port, options.grpc_port, options.metrics_port) if port]
    if len(set(named)) < len(named):
        raise BackendError("HTTP, gRPC and metrics want ports of their own.", hint="Give each another --…-port.")


def _environment(package: ServerPackage) -> dict[str, str]:
    """The Python models find the packages of the running interpreter through the one that leads the path."""
    kept = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")}
    interpreter = str(Path(sys.prefix) / "bin")
    return {
        **kept,
        "PATH": os.pathsep.join([interpreter, os.environ.get("PATH", os.defpath)]),
        "LD_LIBRARY_PATH": os.pathsep.join(map(str, package.libraries)),
    }
