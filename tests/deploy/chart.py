"""The chart, rendered and judged by Helm's own library.

The library is Go's and brings a runtime with threads and signal handlers, which does not live long beside those of
other libraries: a process with engines in it ended by SIGSEGV. So it runs in a process of its own.
"""

from __future__ import annotations

import functools
import json
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

DEPLOY = Path(__file__).resolve().parents[2] / "serving" / "deploy"
CHART = DEPLOY / "helm" / "ucseg"
VALUE_SETS = {path.name.removesuffix("-values.yaml"): path for path in sorted((CHART / "ci").glob("*-values.yaml"))}

_HELM = f"""
import json, sys
import helm_python

request = json.load(sys.stdin)
try:
    if "lint" in request:
        answer = helm_python.lint({str(CHART)!r}, request["lint"], strict=True, kube_version=request["kube_version"])
    else:
        with helm_python.Chart.load({str(CHART)!r}) as chart:
            answer = chart.render(request["render"], name="demo", namespace="radiology")
except helm_python.HelmError as error:
    answer = {{"refused": str(error)}}
json.dump(answer, sys.stdout)
"""

Values = Mapping[str, Any]
Manifest = dict[str, Any]


def values_of(name: str) -> dict[str, Any]:
    values: dict[str, Any] = yaml.safe_load(VALUE_SETS[name].read_text(encoding="utf-8"))
    return values


@dataclass(frozen=True)
class Rendered:
    """What one set of values becomes."""

    manifests: tuple[Manifest, ...]
    notes: str

    def of(self, kind: str) -> list[Manifest]:
        return [manifest for manifest in self.manifests if manifest["kind"] == kind]

    def one(self, kind: str) -> Manifest:
        found = self.of(kind)
        assert len(found) == 1, kind
        return found[0]

    @property
    def pod(self) -> dict[str, Any]:
        spec: dict[str, Any] = self.one("Deployment")["spec"]["template"]["spec"]
        return spec

    @property
    def server(self) -> dict[str, Any]:
        (container,) = self.pod["containers"]
        found: dict[str, Any] = container
        return found

    def initial(self, name: str) -> dict[str, Any]:
        (container,) = (item for item in self.pod["initContainers"] if item["name"] == name)
        found: dict[str, Any] = container
        return found


class HelmRefusedError(Exception):
    """Helm refuses the values; the message is its own."""


def lint(values: Values, kube_version: str) -> dict[str, Any]:
    """What Helm's strict linter says of the chart with these values."""
    report: dict[str, Any] = _asked_of_helm(json.dumps({"lint": values, "kube_version": kube_version}, sort_keys=True))
    return report


@functools.cache
def _answer_of_helm(request: str) -> str:
    done = subprocess.run([sys.executable, "-c", _HELM], input=request, capture_output=True, text=True, check=True)
    return done.stdout


def _asked_of_helm(request: str) -> dict[str, Any]:
    answer: dict[str, Any] = json.loads(_answer_of_helm(request))
    if "refused" in answer:
        raise HelmRefusedError(answer["refused"])
    return answer


def rendered(values: Values) -> Rendered:
    """The chart with these values.

    Raises:
        HelmRefusedError: They do not fit its schema.
    """
    texts = _asked_of_helm(json.dumps({"render": values}, sort_keys=True))
    manifests = [
        document
        for path, text in sorted(texts.items())
        if not path.endswith(".txt")
        for document in yaml.safe_load_all(text)
        if document is not None
    ]
    return Rendered(tuple(manifests), texts["ucseg/templates/NOTES.txt"])
