"""A report of a phantom, with everything that a record can hold."""

from __future__ import annotations

from dataclasses import asdict
from html.parser import HTMLParser
from typing import Any

import numpy as np

from tests import results
from tests.phantoms import CtPhantom
from ucseg_runtime.manifest import ModelSpec, Postprocessing, Preprocessing, Quality, Tiling
from ucseg_runtime.report.case_report import case_report, report_parts
from ucseg_runtime.segmentation import Segmentation, measure
from ucseg_runtime.volume import Volume

PHANTOM = CtPhantom(shape=(30, 48, 56), spacing_mm=(2.0, 1.5, 1.25))
"""Asymmetric, with voxels of three different sides."""

DECISION = {
    "outcome": "review",
    "calibrated": False,
    "score": 0.31,
    "reasons": [{"check": "volume", "value": 0.3, "limit": 0.25, "text": "the liver is large"}],
}
OUTPUTS = {"segmentation.dcm": {"sha256": "12" * 32, "size": 1234}}


def model(**changes: object) -> ModelSpec:
    """What the phantom's model says of itself."""
    preprocessing = {
        "spacing_mm": (3.0, 3.0, 3.0),
        "intensity": {"kind": "piecewise_linear", "knots": [[-1000, 0], [1000, 1]]},
        "padding_value": -1000,
    }
    spec = ModelSpec(
        name="phantom organs",
        version="1.2.3",
        licence="Apache-2.0",
        intended_use="Tests of software.",
        modality="CT",
        dim=3,
        channels=1,
        classes=results.CLASSES,
        activation="softmax",
        fusion="upg",
        default_precision="f32",
        preprocessing=Preprocessing.model_validate(preprocessing),
        tiling=Tiling(tile_shape=(16, 16, 16)),
        postprocessing=Postprocessing(),
        provenance={"patients": "none"},
        quality=(Quality(data_set="phantoms", segment="liver", output="fused", dice=0.987),),
    )
    return spec.model_copy(update=changes)


def segmentation(phantom: CtPhantom = PHANTOM) -> Segmentation:
    """Organs as they are; the uncertainty is 1 in the spleen, 0 elsewhere."""
    labels = phantom.labels
    found = results.segmentation_on(phantom.geometry, labels)
    uncertainty = (labels == 2).astype(np.float32)
    return Segmentation(labels, uncertainty, None, found.geometry, found.classes, found.engine)


def record(found: Segmentation, phantom: CtPhantom = PHANTOM, **changes: object) -> dict[str, Any]:
    """What a record says."""
    measured = [{**asdict(item), "volume_interval_ml": [1.0, 2.5]} for item in measure(found)]
    return {
        "schema_version": 1,
        "study_uid": phantom.study_uid,
        "series_uid": phantom.series_uid,
        "source_sop_uids": ["1.2.3", "1.2.4"],
        "input": {"content": "ab" * 32, "files_sha256": "ef" * 32},
        "notes": ["two slices were bridged"],
        "identity": asdict(results.IDENTITY),
        "settings": {},
        "measurements": measured,
        **changes,
    }


def report(phantom: CtPhantom = PHANTOM, spec: ModelSpec | None = None, **changes: object) -> bytes:
    """The page of a phantom.

    Args:
        phantom: What was segmented.
        spec: Of the model.
        changes: Of the record.
    """
    found = segmentation(phantom)
    volume = Volume(phantom.hu, phantom.geometry, phantom.modality)
    parts = report_parts(volume, found, spec or model(), "series number 1 (CT, 30 files)")
    return case_report(record(found, phantom, **changes), OUTPUTS, parts)


class ParsedPage(HTMLParser):
    """What stands in a page.

    Attributes:
        tags: Every start tag with its attributes, in order.
        text: All text outside of scripts and style sheets.
        scripts: Content of every script.
    """

    def __init__(self, page: bytes) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.scripts: list[str] = []
        self._inside = ""
        self.feed(page.decode())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """See `HTMLParser`."""
        self.tags.append((tag, dict(attrs)))
        self._inside = tag
        if tag == "script":
            self.scripts.append("")

    def handle_endtag(self, tag: str) -> None:
        """See `HTMLParser`."""
        self._inside = ""

    def handle_data(self, data: str) -> None:
        """See `HTMLParser`."""
        if self._inside == "script":
            self.scripts[-1] += data
        elif self._inside != "style":
            self.text += data

    def attributes(self, tag: str, name: str) -> list[str]:
        """Values of an attribute in all elements of a kind that have it."""
        return [value for found, values in self.tags if found == tag and (value := values.get(name)) is not None]
