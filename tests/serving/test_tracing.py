"""The spans of a real server belong to the trace that a client was started in, and tell nothing of a patient."""

from __future__ import annotations

import http.server
import json
import re
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from typer.testing import CliRunner

from tests.phantoms import PHI_CANARIES, CtPhantom, write_ct_series
from tests.served_phantom import ServedPhantom, serve_phantom
from ucseg_runtime.cli.app import app
from ucseg_runtime.cli.server_options import TRACE_VARIABLE
from ucseg_serving.local_server import LocalOptions

PARENT = "b7ad6b7169203331"
WAIT_S = 60.0
"""Triton sends its spans every five seconds."""

pytestmark = pytest.mark.timeout(600)


@dataclass
class Collector:
    """Takes spans by OTLP over HTTP: Triton 2.51 sends them as JSON."""

    url: str
    bodies: list[bytes] = field(default_factory=list)

    def spans(self, trace_id: str) -> list[dict[str, Any]]:
        exports = [json.loads(body) for body in self.bodies]
        scopes = [scope for export in exports for item in export["resourceSpans"] for scope in item["scopeSpans"]]
        return [span for scope in scopes for span in scope["spans"] if span["traceId"] == trace_id]

    def wait_for(self, trace_id: str, requests: int) -> list[dict[str, Any]]:
        """The spans of a trace, once all of its requests are there."""
        deadline = time.monotonic() + WAIT_S
        while sum(span["name"] == "InferRequest" for span in self.spans(trace_id)) < requests:
            assert time.monotonic() < deadline, f"{len(self.spans(trace_id))} spans of the trace came"
            time.sleep(0.2)
        return self.spans(trace_id)


@pytest.fixture(scope="module")
def collector() -> Iterator[Collector]:
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:  # noqa: N802  (the name that the base class calls)
            found.bodies.append(self.rfile.read(int(self.headers["Content-Length"])))
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *arguments: object) -> None:
            """Say nothing."""

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        found = Collector(f"http://127.0.0.1:{server.server_port}/v1/traces")
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield found
        server.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def traced(tmp_path_factory: pytest.TempPathFactory, collector: Collector) -> Iterator[ServedPhantom]:
    local = LocalOptions(stop_timeout_s=5.0, trace_url=collector.url)
    with serve_phantom(tmp_path_factory.mktemp("traced"), local=local) as served:
        yield served


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("study")
    write_ct_series(folder, CtPhantom())
    return folder


def segment(served: ServedPhantom, study: Path, out: Path, *arguments: str, traceparent: str = "") -> Result:
    options = ["--model", str(served.model.folder), "--engine", "triton", *arguments]
    command = ["segment", str(study), "--out", str(out), "--json", *options]
    finished = CliRunner(env={TRACE_VARIABLE: traceparent or None}).invoke(app, command)
    assert finished.exit_code == 0, finished.output
    return finished


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("scheme", ["grpc", "http"])
def test_every_tile_belongs_to_the_trace_of_the_environment(
    traced: ServedPhantom, collector: Collector, study: Path, tmp_path: Path, scheme: str
) -> None:
    trace = {"grpc": "1", "http": "2"}[scheme] * 32
    url = traced.server.grpc_url if scheme == "grpc" else traced.server.http_url
    finished = segment(traced, study, tmp_path / "out", "--url", url, traceparent=f"00-{trace}-{PARENT}-01")
    assert f"trace {trace}\n" in finished.stderr
    spans = collector.wait_for(trace, requests=2)
    roots = [span for span in spans if span["name"] == "InferRequest"]
    assert {span["parentSpanId"] for span in roots} == {PARENT}
    assert {"ucseg_tiles", "ucseg_check", "ucseg_subnet_a", "ucseg_subnet_b", "ucseg_upg", "ucseg_decode"} <= {
        span["name"] for span in spans
    }


def test_the_tiles_of_a_volume_belong_to_its_trace(
    traced: ServedPhantom, collector: Collector, study: Path, tmp_path: Path
) -> None:
    trace = "3" * 32
    url = ("--url", traced.server.grpc_url, "--triton-mode", "volume")
    segment(traced, study, tmp_path / "out", *url, traceparent=f"00-{trace}-{PARENT}-01")
    spans = collector.wait_for(trace, requests=1)
    names = {span["spanId"]: span["name"] for span in spans}
    above = {names[span["parentSpanId"]] for span in spans if span["name"] == "ucseg_merged"}
    assert above == {"ucseg_volume"}


def test_a_trace_that_is_asked_for_is_told_and_found(
    traced: ServedPhantom, collector: Collector, study: Path, tmp_path: Path
) -> None:
    url = ("--url", traced.server.grpc_url)
    told = re.findall(r"^trace ([0-9a-f]{32})$", segment(traced, study, tmp_path / "1", *url, "--trace").stderr, re.M)
    assert len(told) == 1
    assert collector.wait_for(told[0], requests=1)
    silent = segment(traced, study, tmp_path / "2", *url)
    assert "trace" not in silent.stderr
    assert content(tmp_path / "1") == content(tmp_path / "2")


def test_spans_tell_nothing_of_a_patient(
    traced: ServedPhantom, collector: Collector, study: Path, tmp_path: Path
) -> None:
    trace = "4" * 32
    segment(traced, study, tmp_path / "out", "--url", traced.server.grpc_url, traceparent=f"00-{trace}-{PARENT}-01")
    spans = collector.wait_for(trace, requests=1)
    keys = {attribute["key"] for span in spans for attribute in span.get("attributes", [])}
    assert keys <= {f"triton.{name}" for name in ("model_name", "model_version", "trace_id", "trace_parent_id")}
    sent = b"".join(collector.bodies).decode().lower()
    identifiers = (CtPhantom().study_uid, CtPhantom().series_uid, CtPhantom().sop_uid(0))
    assert not any(text in sent for text in (*PHI_CANARIES, *identifiers, str(study)))


def test_a_context_that_cannot_be_read_is_told_and_not_sent(
    traced: ServedPhantom, study: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    finished = segment(traced, study, tmp_path / "out", "--url", traced.server.grpc_url, traceparent="canary^zoe")
    assert "TRACEPARENT is not a W3C trace context" in caplog.text
    assert not any("canary" in text for text in (finished.output, caplog.text))


def test_a_server_that_does_not_trace_is_not_disturbed(
    served_phantom: ServedPhantom, study: Path, tmp_path: Path
) -> None:
    for place, url in (("grpc", served_phantom.server.grpc_url), ("http", served_phantom.server.http_url)):
        plain = segment(served_phantom, study, tmp_path / f"{place}-plain", "--url", url)
        traced = segment(served_phantom, study, tmp_path / f"{place}-traced", "--url", url, "--trace")
        assert json.loads(plain.stdout)["measurements"] == json.loads(traced.stdout)["measurements"]
        assert content(tmp_path / f"{place}-plain") == content(tmp_path / f"{place}-traced")


def test_a_collector_that_is_gone_disturbs_nothing(study: Path, tmp_path: Path) -> None:
    local = LocalOptions(stop_timeout_s=5.0, trace_url="http://127.0.0.1:9/v1/traces")
    with serve_phantom(tmp_path / "served", local=local) as served:
        for number in range(2):
            segment(served, study, tmp_path / str(number), "--url", served.server.grpc_url, "--trace")
            time.sleep(6.0 * (1 - number))  # spans are sent meanwhile, and lost
        assert served.server.process.poll() is None
