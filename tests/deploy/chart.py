"""The chart, rendered by Helm's own library."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import helm_python
import yaml

DEPLOY = Path(__file__).resolve().parents[2] / "serving" / "deploy"
CHART = DEPLOY / "helm" / "ucseg"
VALUE_SETS = {path.name.removesuffix("-values.yaml"): path for path in sorted((CHART / "ci").glob("*-values.yaml"))}

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


def rendered(values: Values) -> Rendered:
    with helm_python.Chart.load(CHART) as chart:
        texts = chart.render(dict(values), name="demo", namespace="radiology")
    manifests = [
        document
        for path, text in sorted(texts.items())
        if not path.endswith(".txt")
        for document in yaml.safe_load_all(text)
        if document is not None
    ]
    return Rendered(tuple(manifests), texts["ucseg/templates/NOTES.txt"])
