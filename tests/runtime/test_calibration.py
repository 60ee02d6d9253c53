"""`calibration.json`: what it may hold, when it counts, and what is told when it does not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from tests.calibration_phantom import calibration
from tests.model_phantom import ModelPhantom
from ucseg_runtime.calibration import CALIBRATION_NAME, Calibration, ScoreLimits, calibration_from_json
from ucseg_runtime.errors import ManifestError
from ucseg_runtime.model_folder import load_model


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return ModelPhantom().write(tmp_path / "model")


def with_calibration(folder: Path, **changes: Any) -> Path:  # noqa: ANN401  (whatever JSON may hold)
    fields = json.loads(calibration(load_model(folder).digest).as_json())
    (folder / CALIBRATION_NAME).write_text(json.dumps({**fields, **changes}), encoding="utf-8")
    return folder


def test_calibration_of_the_model_comes_with_its_folder_and_leaves_the_digest_alone(folder: Path) -> None:
    before = load_model(folder)
    found = load_model(with_calibration(folder))
    assert before.calibration.calibration is None
    assert found.digest == before.digest
    assert found.calibration.calibration == calibration(found.digest)
    assert found.calibration.ignored == ""


def test_text_and_digest_survive_reading() -> None:
    written = calibration("0" * 64, factor=2.5, limits=True)
    read = calibration_from_json(written.as_json(), "0" * 64, (1, 2)).calibration
    assert read is not None
    assert read == written
    assert (read.as_json(), read.digest) == (written.as_json(), written.digest)
    assert read.digest != calibration("0" * 64, factor=2.6, limits=True).digest


def test_calibration_of_another_model_is_ignored_with_the_reason(folder: Path) -> None:
    found = load_model(with_calibration(folder, model_digest="f" * 64)).calibration
    assert found.calibration is None
    assert "belongs to another model (manifest ffffffffffff" in found.ignored
    assert "ucseg-export calibrate" in found.ignored


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        pytest.param({"patients": 0}, "patients: Input should be greater than or equal to 1", id="range"),
        pytest.param({"comment": "x"}, "comment: Extra inputs are not permitted", id="unknown field"),
        pytest.param({"schema_version": 2}, "schema_version: Input should be 1", id="version"),
        pytest.param({"score_limits": {"review": 0.5, "reject": 0.4}}, "below the one for review", id="limits"),
        pytest.param({"classes": []}, r"classes: labels \[\]; the model has \[1, 2\]", id="classes"),
    ],
)
def test_broken_calibration_is_refused_with_the_place(folder: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ManifestError, match=message):
        load_model(with_calibration(folder, **changes))


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"{", "line 1: Expecting property name"), (b"\xff", "no readable calibration.json"), (b"[]", "whole: Input")],
)
def test_what_is_no_calibration_at_all_is_refused(folder: Path, content: bytes, message: str) -> None:
    (folder / CALIBRATION_NAME).write_bytes(content)
    with pytest.raises(ManifestError, match=message):
        load_model(folder)


def test_link_instead_of_the_file_is_refused(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").write_text("{}", encoding="utf-8")
    (folder / CALIBRATION_NAME).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ManifestError, match=r"no readable calibration\.json"):
        load_model(folder)


def test_figures_are_finite_and_intervals_belong_to_classes() -> None:
    found = calibration("0" * 64, factor=1.5)
    interval = found.interval_of(2)
    assert interval is not None
    assert interval.factor == 1.5
    assert found.interval_of(3) is None
    with pytest.raises(ValidationError):
        Calibration.model_validate({**found.model_dump(), "cases": float("nan")})
    with pytest.raises(ValidationError, match="below the one for review"):
        ScoreLimits(review=0.2, reject=0.1)
