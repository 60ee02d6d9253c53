"""The pages of a listener: what they say, and that nothing else can be had there."""

from __future__ import annotations

import http.client
import json
from dataclasses import replace

import pytest

from tests.processes import LOOPBACK
from ucseg_runtime.errors import SpoolError
from ucseg_runtime.pacs.monitoring import Gauges, Metrics, State, Watched, monitored

GAUGES = Gauges(10, 100, {"ready": 2}, waiting=1, archive_reachable=False)


def asked(port: int, path: str, method: str = "GET") -> tuple[int, str]:
    connection = http.client.HTTPConnection(LOOPBACK, port, timeout=5.0)
    connection.request(method, path)
    answer = connection.getresponse()
    found = answer.status, answer.read().decode()
    connection.close()
    return found


@pytest.mark.parametrize(
    ("state", "health", "readiness"),
    [
        (State(), 200, 200),
        (State(waits=("series 1: the archive is gone.",)), 200, 200),
        (State(not_ready=("the spool is full",)), 200, 503),
        (State(dead=("the courier has ended",)), 503, 503),
    ],
)
def test_what_is_waited_for_is_no_failure_and_what_is_dead_is(state: State, health: int, readiness: int) -> None:
    with monitored(LOOPBACK, 0, Watched(Metrics(), lambda: GAUGES, lambda: state)) as port:
        assert asked(port, "/healthz")[0] == health
        status, body = asked(port, "/readyz")
    assert status == readiness
    assert json.loads(body) == {"not_ready": [*state.dead, *state.not_ready], "waits": list(state.waits)}


def test_metrics_hold_counters_and_gauges() -> None:
    metrics = Metrics()
    metrics.received("no room")
    metrics.ended("failed")
    metrics.decided("review")
    metrics.sent()
    metrics.send_failed("UCSEG-E170")
    text = metrics.text(replace(GAUGES, series={"ready": 2, "failed": 0})).decode()

    for line in (
        'ucseg_pacs_instances_total{outcome="no room"} 1.0',
        'ucseg_pacs_instances_total{outcome="stored"} 0.0',
        'ucseg_pacs_series_total{outcome="failed"} 1.0',
        'ucseg_pacs_decisions_total{outcome="review"} 1.0',
        'ucseg_pacs_decisions_total{outcome="reject"} 0.0',
        "ucseg_pacs_objects_sent_total 1.0",
        'ucseg_pacs_send_failures_total{code="UCSEG-E170"} 1.0',
        "ucseg_pacs_spool_bytes 10.0",
        "ucseg_pacs_spool_limit_bytes 100.0",
        'ucseg_pacs_spooled_series{stage="ready"} 2.0',
        "ucseg_pacs_deliveries_waiting 1.0",
        "ucseg_pacs_archive_reachable 0.0",
    ):
        assert f"\n{line}\n" in text, line


def test_other_pages_and_methods_are_refused() -> None:
    with monitored(LOOPBACK, 0, Watched(Metrics(), lambda: GAUGES, State)) as port:
        assert asked(port, "/../etc/passwd")[0] == 404
        assert asked(port, "/metrics", "POST")[0] == 501
        with (
            pytest.raises(SpoolError, match="cannot be had"),
            monitored(LOOPBACK, port, Watched(Metrics(), lambda: GAUGES, State)),
        ):
            pass
