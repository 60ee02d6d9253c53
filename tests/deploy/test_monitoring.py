"""Dashboard, alerts and the autoscaler's rule ask for nothing that a real server does not export."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import promql_parser
import pytest
import requests
import yaml

from tests.deploy.chart import CHART, DEPLOY, rendered, values_of
from tests.served_phantom import ServedPhantom
from ucseg_runtime.server_options import TritonServer, server_address
from ucseg_serving.health import check_server

NEVER_SEEN_HERE = {
    "nv_gpu_utilization",
    "nv_gpu_memory_used_bytes",
    "nv_gpu_memory_total_bytes",
    "nv_gpu_power_usage",
}
"""Triton exports these on a GPU only; their names are from its documentation."""

OF_PROMETHEUS = {"up"}
ADDED_BY_PROMETHEUS = {"job", "instance", "namespace", "pod"}


@dataclass(frozen=True)
class Question:
    """One metric with what its labels must be."""

    metric: str
    matchers: tuple[tuple[str, str, str], ...]

    def fits(self, labels: dict[str, str]) -> bool:
        return all(self._fits(labels, *matcher) for matcher in self.matchers if matcher[0] not in ADDED_BY_PROMETHEUS)

    @staticmethod
    def _fits(labels: dict[str, str], name: str, operation: str, value: str) -> bool:
        found = labels.get(name, "")
        ways = {
            "MatchOp.Equal": found == value,
            "MatchOp.NotEqual": found != value,
            "MatchOp.Re": re.fullmatch(value, found) is not None,
            "MatchOp.NotRe": re.fullmatch(value, found) is None,
        }
        return ways[operation]


def questions(expression: str) -> list[Question]:
    """What an expression asks for; an expression that Prometheus would refuse raises."""
    found = []

    def note(node: promql_parser.Expr) -> bool:
        if isinstance(node, promql_parser.VectorSelector):
            matchers = tuple((item.name, repr(item.op), item.value) for item in node.matchers.matchers)
            found.append(Question(str(node.name), matchers))
        return True

    promql_parser.walk(promql_parser.parse(expression), note)
    assert found, expression
    return found


def dashboard() -> dict[str, Any]:
    content: dict[str, Any] = json.loads((CHART / "files" / "dashboard.json").read_text(encoding="utf-8"))
    return content


def alerts() -> list[dict[str, Any]]:
    groups = yaml.safe_load((CHART / "files" / "alerts.yaml").read_text(encoding="utf-8"))["groups"]
    return [rule for group in groups for rule in group["rules"]]


def scaling_rule() -> dict[str, Any]:
    (rule,) = yaml.safe_load((DEPLOY / "prometheus" / "adapter-values.yaml").read_text("utf-8"))["rules"]["custom"]
    found: dict[str, Any] = rule
    return found


def scaling_expression() -> str:
    """The adapter's question for the pods of one namespace."""
    rule = scaling_rule()
    series = rule["seriesQuery"].partition("{")[0]
    places = {"<<.Series>>": series, "<<.LabelMatchers>>": 'namespace="radiology",pod=~"a|b"', "<<.GroupBy>>": "pod"}
    text: str = rule["metricsQuery"]
    for place, value in places.items():
        text = text.replace(place, value)
    return text


def expressions() -> Iterator[Any]:
    for panel in dashboard()["panels"]:
        for target in panel["targets"]:
            yield pytest.param(target["expr"], id=f"{panel['title']} {target['refId']}")
    for rule in alerts():
        yield pytest.param(rule["expr"], id=rule["alert"])
    yield pytest.param(scaling_rule()["seriesQuery"], id="series of the autoscaler")
    yield pytest.param(scaling_expression(), id="autoscaler")


@pytest.fixture(scope="module")
def exported(served_phantom: ServedPhantom) -> dict[str, list[dict[str, str]]]:
    """Metrics of a server that has segmented: name to the labels of its series."""
    server = TritonServer((server_address(served_phantom.url("grpc")),))
    check_server(served_phantom.model, server, gate=True)
    found: dict[str, list[dict[str, str]]] = {}
    for line in requests.get(served_phantom.server.metrics_url, timeout=10.0).text.splitlines():
        sample = re.fullmatch(r"(\w+)(?:\{(.*)\})? \S+", line)
        if sample is not None:
            labels = dict(re.findall(r'(\w+)="([^"]*)"', sample.group(2) or ""))
            found.setdefault(sample.group(1), []).append(labels)
    assert len(found) > 10
    return found


@pytest.mark.parametrize("expression", list(expressions()))
def test_every_metric_that_is_asked_for_is_exported(expression: str, exported: dict[str, list[dict[str, str]]]) -> None:
    for question in questions(expression):
        if question.metric in OF_PROMETHEUS | NEVER_SEEN_HERE:
            continue
        assert question.metric in exported
        assert any(question.fits(labels) for labels in exported[question.metric]), question


def test_what_was_never_seen_here_is_asked_for_and_not_exported(exported: dict[str, list[dict[str, str]]]) -> None:
    asked = {question.metric for item in expressions() for question in questions(item.values[0])}
    assert asked >= NEVER_SEEN_HERE
    assert not set(exported) & NEVER_SEEN_HERE


def test_every_metric_of_ucseg_itself_is_on_the_dashboard(exported: dict[str, list[dict[str, str]]]) -> None:
    shown = {
        question.metric
        for panel in dashboard()["panels"]
        for target in panel["targets"]
        for question in questions(target["expr"])
    }
    assert {name for name in exported if name.startswith("ucseg_")} <= shown


@pytest.mark.parametrize("reason", ["BACKEND", "REJECTED"])
def test_alerts_ask_for_reasons_that_triton_gives(reason: str, exported: dict[str, list[dict[str, str]]]) -> None:
    asked = [
        value
        for rule in alerts()
        for item in questions(rule["expr"])
        for name, _, value in item.matchers
        if name == "reason"
    ]
    assert reason in asked
    assert reason in {labels["reason"] for labels in exported["nv_inference_request_failure"]}


def test_the_autoscaler_s_metric_is_the_one_that_the_rule_makes() -> None:
    (metric,) = rendered(values_of("object-store")).one("HorizontalPodAutoscaler")["spec"]["metrics"]
    assert metric["pods"]["metric"]["name"] == scaling_rule()["name"]["as"]
    assert set(scaling_rule()["resources"]["overrides"]) == {"namespace", "pod"}


def test_panels_have_places_of_their_own() -> None:
    taken: dict[tuple[int, int], str] = {}
    numbers = [panel["id"] for panel in dashboard()["panels"]]
    assert len(set(numbers)) == len(numbers)
    for panel in dashboard()["panels"]:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        for x in range(place["x"], place["x"] + place["w"]):
            for y in range(place["y"], place["y"] + place["h"]):
                assert taken.setdefault((x, y), panel["title"]) == panel["title"]


def test_alerts_say_what_to_do_and_how_bad_it_is() -> None:
    for rule in alerts():
        assert rule["alert"].startswith("Ucseg")
        assert rule["labels"]["severity"] in ("warning", "critical")
        assert set(rule["annotations"]) == {"summary", "description"}
