"""What others may know of a running listener: ``/healthz``, ``/readyz`` and Prometheus ``/metrics``, by HTTP.

Numbers and states alone: no UID, title, address or name is ever part of a metric.
"""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Literal

from ucseg_runtime.decision import OUTCOMES, Outcome
from ucseg_runtime.errors import SpoolError
from ucseg_runtime.pacs.packages import require_pacs_extra

Received = Literal["stored", "no room", "damaged"]
Ended = Literal["segmented", "failed", "unsuitable", "incomplete"]

_REQUEST_TIMEOUT_S = 10.0


@dataclass(frozen=True)
class Gauges:
    """What is read anew for every answer.

    Attributes:
        spool_bytes: That the spool takes.
        spool_limit_bytes: That it may take.
        series: How many are in each stage.
        waiting: Series whose results are not all in the archive.
        archive_reachable: Whether the archive answered last time.
    """

    spool_bytes: int
    spool_limit_bytes: int
    series: Mapping[str, int]
    waiting: int
    archive_reachable: bool


@dataclass(frozen=True)
class State:
    """Whether the listener works.

    Attributes:
        dead: Parts that should run and do not.
        not_ready: Why nothing more should be sent just now.
        waits: What is waited for; that is no failure.
    """

    dead: tuple[str, ...] = ()
    not_ready: tuple[str, ...] = ()
    waits: tuple[str, ...] = ()


class Metrics:
    """Counters of one listener, in Prometheus's words.

    Raises:
        BackendUnavailableError: The extra is not installed.
    """

    def __init__(self) -> None:
        require_pacs_extra("prometheus_client")
        from prometheus_client import CollectorRegistry, Counter, Gauge

        self._registry = registry = CollectorRegistry()
        self._instances = Counter(
            "ucseg_pacs_instances", "Instances that were sent here.", ["outcome"], registry=registry
        )
        self._series = Counter("ucseg_pacs_series", "Series by what became of them.", ["outcome"], registry=registry)
        self._sent = Counter("ucseg_pacs_objects_sent", "Objects that the archive has taken.", registry=registry)
        self._failures = Counter(
            "ucseg_pacs_send_failures", "Tries to send that were in vain.", ["code"], registry=registry
        )
        self._bytes = Gauge("ucseg_pacs_spool_bytes", "Bytes that the spool takes.", registry=registry)
        self._limit = Gauge("ucseg_pacs_spool_limit_bytes", "Bytes that it may take.", registry=registry)
        self._stages = Gauge("ucseg_pacs_spooled_series", "Series in the spool.", ["stage"], registry=registry)
        self._waiting = Gauge("ucseg_pacs_deliveries_waiting", "Series that are not all sent.", registry=registry)
        self._reachable = Gauge("ucseg_pacs_archive_reachable", "1 if the archive answered last.", registry=registry)
        self._decisions = Counter(
            "ucseg_pacs_decisions",
            "Segmented series by what is to be done with the result.",
            ["outcome"],
            registry=registry,
        )
        for decision in OUTCOMES:
            self._decisions.labels(decision)
        for received in ("stored", "no room", "damaged"):
            self._instances.labels(received)
        for ended in ("segmented", "failed", "unsuitable", "incomplete"):
            self._series.labels(ended)

    def received(self, outcome: Received) -> None:
        """An instance came."""
        self._instances.labels(outcome).inc()

    def ended(self, outcome: Ended) -> None:
        """It is known what becomes of a series."""
        self._series.labels(outcome).inc()

    def decided(self, outcome: Outcome) -> None:
        """It is known what is to be done with the result of a series."""
        self._decisions.labels(outcome).inc()

    def sent(self) -> None:
        """The archive has one more object."""
        self._sent.inc()

    def send_failed(self, code: str) -> None:
        """A try was in vain."""
        self._failures.labels(code).inc()

    def text(self, gauges: Gauges) -> bytes:
        """Everything, as Prometheus reads it."""
        from prometheus_client import generate_latest

        self._bytes.set(gauges.spool_bytes)
        self._limit.set(gauges.spool_limit_bytes)
        for stage, count in gauges.series.items():
            self._stages.labels(stage).set(count)
        self._waiting.set(gauges.waiting)
        self._reachable.set(gauges.archive_reachable)
        return generate_latest(self._registry)


@dataclass(frozen=True)
class Watched:
    """What the pages show.

    Attributes:
        metrics: Counters.
        gauges: Read anew.
        state: Read anew.
    """

    metrics: Metrics
    gauges: Callable[[], Gauges]
    state: Callable[[], State]


@contextmanager
def monitored(host: str, port: int, watched: Watched) -> Iterator[int]:
    """Serve the three pages until the statement ends.

    Args:
        host: Address to listen at.
        port: 0 for any that is free.
        watched: What they show.

    Yields:
        The port.

    Raises:
        SpoolError: The port cannot be had.
    """

    class Server(ThreadingHTTPServer):
        address_family = socket.AF_INET6 if ":" in host else socket.AF_INET

    try:
        server = Server((host, port), _handler(watched))
    except OSError as error:
        raise SpoolError(
            f"the monitoring port {port} of {host} cannot be had.", hint="Give another --monitor."
        ) from error
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, name="monitoring", daemon=True)
    thread.start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _handler(watched: Watched) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        timeout = _REQUEST_TIMEOUT_S
        server_version = "ucseg"
        sys_version = ""

        def do_GET(self) -> None:  # noqa: N802  (the name that http.server calls)
            state = watched.state()
            if self.path == "/healthz":
                self._answer(503 if state.dead else 200, _as_json({"dead": state.dead}))
            elif self.path == "/readyz":
                reasons = (*state.dead, *state.not_ready)
                self._answer(503 if reasons else 200, _as_json({"not_ready": reasons, "waits": state.waits}))
            elif self.path == "/metrics":
                self._answer(200, watched.metrics.text(watched.gauges()), "text/plain; version=0.0.4; charset=utf-8")
            else:
                self._answer(404, _as_json({"pages": ("/healthz", "/readyz", "/metrics")}))

        def _answer(self, status: int, content: bytes, kind: str = "application/json") -> None:
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, format: str, *arguments: object) -> None:  # noqa: A002  (the name in http.server)
            """Every second a line would say nothing."""

    return Handler


def _as_json(value: Mapping[str, object]) -> bytes:
    return json.dumps(value).encode() + b"\n"
