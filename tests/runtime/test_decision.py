"""Accept, review or reject: limits, where they come from, and what a decision says of itself."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from tests.calibration_phantom import calibration
from tests.model_phantom import ModelPhantom
from ucseg_runtime.calibration import CALIBRATION_NAME, ScoreLimits
from ucseg_runtime.case_score import CaseScore, Finding
from ucseg_runtime.decision import BUILT_IN_LIMITS, Decision, Outcome, decision_on, exit_code, outcome_of
from ucseg_runtime.errors import ManifestError
from ucseg_runtime.manifest import MANIFEST_NAME
from ucseg_runtime.model_folder import Model, load_model

FINDING = Finding("air", "intensity", 0.9, 0.5, 0.8, "The share of air is 0.90; in training 0.30 to 0.50.")
LIMITS = ScoreLimits(review=0.2, reject=0.4)
RANGES = {"cases": 2, "figures": {"air": [0.3, 0.5]}}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model whose manifest has ranges."""
    return ModelPhantom(changes={"training_ranges": RANGES}).write(tmp_path / "model")


def calibrated(folder: Path, **changes: object) -> Model:
    model = load_model(folder)
    fields = (
        calibration(model.digest, model.manifest.num_classes - 1).model_dump(mode="json")
        | {"score_limits": None}
        | changes
    )
    (folder / CALIBRATION_NAME).write_text(json.dumps(fields), encoding="utf-8")
    return load_model(folder)


def decided(model: Model, score: float = 0.3) -> Decision:
    return decision_on(CaseScore(score, (FINDING,)), model)


@pytest.mark.parametrize(
    ("score", "outcome"), [(0.0, "accept"), (0.2, "accept"), (0.21, "review"), (0.4, "review"), (0.41, "reject")]
)
def test_a_limit_belongs_to_the_better_outcome(score: float, outcome: Outcome) -> None:
    assert outcome_of(score, LIMITS) == outcome


def test_without_a_calibration_limits_are_built_in_and_the_decision_says_so(folder: Path) -> None:
    model = load_model(folder)

    found = decided(model, BUILT_IN_LIMITS.review + 0.01)

    assert (found.outcome, found.calibrated) == ("review", False)
    assert "uncalibrated" in found.in_words
    assert found.suffix == " (review, uncalibrated)"
    assert [reason.text for reason in found.reasons] == [FINDING.text]


def test_limits_of_the_calibration_are_taken(folder: Path) -> None:
    model = calibrated(folder, score_limits={"review": 0.2, "reject": 0.4})

    found = decided(model)

    assert (found.outcome, found.calibrated) == ("review", True)
    assert found.in_words == "review (score 0.30, calibrated)"


def test_a_calibration_that_has_no_limits_leaves_the_built_in_ones(folder: Path) -> None:
    found = decided(calibrated(folder))

    assert (found.outcome, found.calibrated) == ("accept", False)


def test_a_calibration_of_another_model_is_ignored_and_the_decision_says_so(folder: Path) -> None:
    model = calibrated(folder, model_digest="0" * 64, score_limits={"review": 0.2, "reject": 0.4})

    found = decided(model)

    assert (model.calibration.calibration, found.calibrated) == (None, False)
    assert found.reasons[-1].check == "calibration"


@pytest.mark.parametrize(
    "changes",
    [
        {"score_limits": {"review": 0.5, "reject": 0.4}},
        {"score_limits": {"review": 1.5, "reject": 2.0}},
        {"score_limits": {"review": 0.5}},
        {"cases": 0},
        {"schema_version": 2},
    ],
    ids=str,
)
def test_a_calibration_that_breaks_its_schema_is_refused(folder: Path, changes: dict[str, object]) -> None:
    with pytest.raises(ManifestError, match=CALIBRATION_NAME):
        calibrated(folder, **changes)


def test_a_calibration_that_is_not_json_is_refused(folder: Path) -> None:
    (folder / CALIBRATION_NAME).write_text("{", encoding="utf-8")

    with pytest.raises(ManifestError, match=CALIBRATION_NAME):
        load_model(folder)


def test_a_model_without_ranges_says_what_could_not_be_checked(tmp_path: Path) -> None:
    model = load_model(ModelPhantom().write(tmp_path / "model"))

    found = decision_on(CaseScore(0.0, ()), model)

    assert found.outcome == "accept"
    assert [reason.check for reason in found.reasons] == ["training_ranges"]


def test_a_manifest_without_ranges_stays_valid_and_one_with_ranges_has_another_digest(folder: Path) -> None:
    text = (folder / MANIFEST_NAME).read_text(encoding="utf-8")
    fields = json.loads(text)
    with_ranges = load_model(folder)
    del fields["training_ranges"]
    (folder / MANIFEST_NAME).write_text(json.dumps(fields), encoding="utf-8")

    assert load_model(folder).manifest.training_ranges is None
    assert load_model(folder).digest != with_ranges.digest


@pytest.mark.parametrize(
    ("outcomes", "on_review", "on_reject"),
    [
        ((), 0, 0),
        (("accept",), 0, 0),
        (("accept", "review"), 8, 0),
        (("reject", "review", "accept"), 9, 9),
    ],
)
def test_exit_code_is_that_of_the_worst_decision(outcomes: tuple[Outcome, ...], on_review: int, on_reject: int) -> None:
    assert exit_code(outcomes, None) == 0
    assert exit_code(outcomes, "review") == on_review
    assert exit_code(outcomes, "reject") == on_reject


def test_json_has_the_fields_of_the_contract(folder: Path) -> None:
    found = replace(decided(load_model(folder)), reasons=decided(load_model(folder)).reasons[:1]).as_json()

    assert found == {
        "outcome": "accept",
        "calibrated": False,
        "score": 0.3,
        "reasons": ({"check": "air", "value": 0.9, "limit": 0.5, "text": FINDING.text},),
    }
