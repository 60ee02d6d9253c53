"""The page of a case: everything that the record says, nothing that could run, nothing that is fetched."""

from __future__ import annotations

import base64
import hashlib
import json
import re

import cv2
import numpy as np
import pytest

from tests import results
from tests.report_phantom import DECISION, OUTPUTS, PHANTOM, ParsedPage, model, record, report, segmentation
from ucseg_runtime.report.case_report import report_parts
from ucseg_runtime.report.page import document, node
from ucseg_runtime.volume import Volume

HOSTILE = "</script><script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\">"


def test_page_holds_every_figure_of_the_record() -> None:
    said = record(segmentation())
    page = ParsedPage(report())

    values = [json.loads(value) for value in page.attributes("data", "value")]

    for item in said["measurements"]:
        found = {name: item[name] for name in ("volume_ml", "mean_uncertainty", "uncertainty_p95")}
        assert all(value in values for value in found.values() if value == value)
        assert item["name"] in page.text
    identity = said["identity"]
    texts = [
        *(said["study_uid"], said["series_uid"], said["input"]["files_sha256"], said["notes"][0]),
        *(identity["model_digest"], identity["settings_digest"], identity["ucseg_version"]),
        *(identity["engine"][name] for name in ("name", "version", "precision", "device")),
        *("Series number 1", "phantom organs 1.2.3", "Apache-2.0", "Tests of software.", "0.987", "SCT 10200004"),
        *OUTPUTS,
        *(item["sha256"] for item in OUTPUTS.values()),
    ]
    assert [text for text in texts if text not in page.text] == []


def test_decision_is_shown_where_there_is_one() -> None:
    with_it, without = ParsedPage(report(decision=DECISION)), ParsedPage(report())

    assert "Review" in with_it.text
    assert "the liver is large" in with_it.text
    assert "uncalibrated" in with_it.text
    assert "Decision" not in without.text


def test_interval_is_shown_where_there_is_one() -> None:
    plain = record(segmentation())
    for item in plain["measurements"]:
        item["volume_interval_ml"] = None

    assert "Interval, ml" in ParsedPage(report()).text
    assert "Interval, ml" not in ParsedPage(report(measurements=plain["measurements"])).text


def test_engine_without_proof_is_said() -> None:
    identity = record(segmentation())["identity"]
    identity["engine"]["proven"] = False

    assert "NO: the accuracy gate was skipped" in ParsedPage(report(identity=identity)).text


def test_text_from_outside_stays_text() -> None:
    classes = (results.CLASSES[0].model_copy(update={"name": HOSTILE}), *results.CLASSES[1:])
    spec = model(intended_use=HOSTILE, licence=HOSTILE, provenance={HOSTILE: HOSTILE}, classes=classes)
    plain = ParsedPage(report())

    page = ParsedPage(report(spec=spec, notes=[HOSTILE], decision={**DECISION, "outcome": HOSTILE}))

    assert page.text.count(HOSTILE) >= 6
    assert len(page.scripts) == len(plain.scripts) == 2
    assert len(page.attributes("img", "src")) == len(plain.attributes("img", "src"))
    assert not any(name.startswith("on") for _, attributes in page.tags for name in attributes)


def test_policy_allows_the_page_its_own_script_and_style_alone() -> None:
    content = report()
    page = ParsedPage(content)
    (policy,) = [values["content"] or "" for tag, values in page.tags if tag == "meta" and "http-equiv" in values]
    style = re.search(r"<style>(.*?)</style>", content.decode(), re.DOTALL)
    assert style is not None

    rules = dict(rule.split(" ", 1) for rule in policy.split("; "))

    assert rules["default-src"] == "'none'"
    assert rules["script-src"] == _digest(page.scripts[1])
    assert rules["style-src"] == _digest(style[1])
    assert set(rules) == {"default-src", "script-src", "style-src", "img-src", "base-uri", "form-action"}
    sources = [value for _, values in page.tags for name in ("src", "href") if (value := values.get(name))]
    assert all(source.startswith(("data:", "#")) for source in sources)


def test_page_says_which_grid_is_shown() -> None:
    z, y, x = PHANTOM.shape
    assert f"{x} × {y} × {z} voxels of 1.25 × 1.50 × 2.00 mm" in ParsedPage(report()).text


def test_equal_runs_write_equal_pages() -> None:
    assert report(decision=DECISION) == report(decision=DECISION)


def test_text_that_no_encoding_has_does_not_stop_a_page() -> None:
    assert b"?" in document("x", [node("p", "\ud800")], "")


def test_pictures_for_print_and_lists_show_the_segments_in_colour() -> None:
    parts = report_parts(Volume(PHANTOM.hu, PHANTOM.geometry, "CT"), segmentation(), model(), "a series")

    preview, *planes = (
        cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_COLOR)
        for png in (parts.preview_png, *(item.png for item in parts.pictures))
    )

    assert preview.shape == (128, 128, 3)
    assert [plane.shape for plane in planes] == 3 * [(320, 640, 3)]
    for picture in (preview, *(plane[:, :320] for plane in planes)):
        assert (picture.max(axis=-1).astype(int) - picture.min(axis=-1)).max() > 40, "segments are in colour"
    assert [item.title.split(",")[0] for item in parts.pictures] == ["Axial", "Coronal", "Sagittal"]


@pytest.mark.parametrize("value", [float("nan"), None])
def test_missing_numbers_are_a_dash(value: float | None) -> None:
    said = record(segmentation())
    for item in said["measurements"]:
        item["mean_uncertainty"] = value

    page = ParsedPage(report(measurements=said["measurements"]))

    assert "–" in page.text
    assert "nan" not in page.attributes("data", "value")


def _digest(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
