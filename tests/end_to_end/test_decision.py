"""Decisions where people and machines meet them: terminal, JSON, record, report, description, exit code, batch."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pydicom
import pytest

from tests.calibration_phantom import calibration
from tests.command_line import assert_no_patient_data, run
from tests.model_phantom import ModelPhantom
from tests.phantoms import CtPhantom, write_ct_series
from tests.proof_phantom import proven
from tests.results import conformance
from ucseg_runtime.model_folder import load_model

CENTRES = (-8.0, 0.5, 6.0)
"""Background at air, one class at soft tissue, one at bone."""

STRANGE = {"cases": 3, "figures": {"air": [0.4, 0.6], "hu_p50": [900.0, 1000.0], "present/2": [1.0, 1.0]}}
"""Ranges that the phantom's intensities do not fit."""

USUAL = {"cases": 3, "figures": {"air": [0.0, 1.0], "hu_p50": [0.0, 100.0]}}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("models")
    return {
        name: proven(
            ModelPhantom(centres=CENTRES, tile_shape=(16, 32, 32), changes={"training_ranges": ranges}).write(
                folder / name
            )
        )
        for name, ranges in {"usual": USUAL, "strange": STRANGE, "none": None}.items()
    }


def record_in(folder: Path) -> Mapping[str, Any]:
    record: Mapping[str, Any] = json.loads((folder / "record.json").read_text(encoding="utf-8"))
    return record


def evaluations(report: Path) -> dict[str, list[str]]:
    """Coded and free text of the qualitative evaluations by name, by the content tree alone."""
    found: dict[str, list[str]] = {}
    for container in pydicom.dcmread(report).ContentSequence:
        if container.ConceptNameCodeSequence[0].CodeMeaning != "Qualitative Evaluations":
            continue
        for item in container.ContentSequence:
            text = item.TextValue if item.ValueType == "TEXT" else item.ConceptCodeSequence[0].CodeMeaning
            found.setdefault(item.ConceptNameCodeSequence[0].CodeMeaning, []).append(text)
    return found


def test_a_case_like_those_of_training_is_accepted(small_study: Path, models: dict[str, Path], tmp_path: Path) -> None:
    result = run("segment", small_study, "--out", tmp_path, "--model", models["usual"], "--fail-on", "review")

    assert result.exit_code == 0, result.output
    assert "decision: accept (score 0.00, uncalibrated)" in result.stdout
    assert record_in(tmp_path)["decision"] == {"outcome": "accept", "calibrated": False, "score": 0.0, "reasons": []}
    assert pydicom.dcmread(tmp_path / "segmentation.dcm").SeriesDescription == "ucseg segmentation"
    assert evaluations(tmp_path / "report.dcm") == {
        "Decision on the result": ["Accept"],
        "Basis of the decision": ["accept (score 0.00, uncalibrated)"],
    }
    assert not conformance(tmp_path / "report.dcm").errors


def test_a_case_unlike_those_of_training_is_rejected_with_reasons_everywhere(
    small_study: Path, models: dict[str, Path], tmp_path: Path
) -> None:
    result = run("segment", small_study, "--out", tmp_path, "--model", models["strange"])

    assert result.exit_code == 0, "without --fail-on a decision is no failure"
    decision = record_in(tmp_path)["decision"]
    assert (decision["outcome"], decision["calibrated"]) == ("reject", False)
    texts = [reason["text"] for reason in decision["reasons"]]
    assert texts[0].startswith("The median of all but air is ")
    assert "decision: reject" in result.stdout
    assert texts[0] in result.stdout
    assert pydicom.dcmread(tmp_path / "segmentation.dcm").SeriesDescription == (
        "ucseg segmentation (reject, uncalibrated)"
    )
    found = evaluations(tmp_path / "report.dcm")
    assert found["Decision on the result"] == ["Reject"]
    assert "uncalibrated" in found["Basis of the decision"][0]
    assert found["Reason of the decision"] == texts
    assert not conformance(tmp_path / "report.dcm").errors
    assert not conformance(tmp_path / "segmentation.dcm").errors
    assert_no_patient_data(result.output)


@pytest.mark.parametrize("fail_on", ["review", "reject"])
def test_exit_code_tells_of_a_rejected_case_and_results_are_there(
    fail_on: str, small_study: Path, models: dict[str, Path], tmp_path: Path
) -> None:
    result = run(
        "segment", small_study, "--out", tmp_path, "--model", models["strange"], "--json", "--fail-on", fail_on
    )

    assert result.exit_code == 9
    assert json.loads(result.stdout)["decision"] == record_in(tmp_path)["decision"]
    assert (tmp_path / "segmentation.dcm").is_file()


def test_a_calibration_moves_the_limits_and_the_identity_of_the_objects(
    small_study: Path, models: dict[str, Path], tmp_path: Path
) -> None:
    model = tmp_path / "model"
    phantom = ModelPhantom(centres=CENTRES, tile_shape=(16, 32, 32), changes={"training_ranges": STRANGE})
    proven(phantom.write(model))
    run("segment", small_study, "--out", tmp_path / "before", "--model", model)
    score = record_in(tmp_path / "before")["decision"]["score"]
    limits = {"review": score - 0.001, "reject": 1.0}
    digest = record_in(tmp_path / "before")["identity"]["model_digest"]
    fields = calibration(digest, load_model(model).manifest.num_classes - 1).model_dump(mode="json")
    (model / "calibration.json").write_text(json.dumps(fields | {"score_limits": limits}), encoding="utf-8")

    result = run("segment", small_study, "--out", tmp_path / "after", "--model", model, "--fail-on", "review")

    assert result.exit_code == 8
    assert run("segment", small_study, "--out", tmp_path / "r", "--model", model, "--fail-on", "reject").exit_code == 0
    assert f"decision: review (score {score:.2f}, calibrated)" in result.stdout
    uids = {name: pydicom.dcmread(tmp_path / name / "report.dcm").SOPInstanceUID for name in ("before", "after")}
    assert uids["before"] != uids["after"], "other content needs another UID"


def test_several_inputs_end_with_the_worst_decision(small_study: Path, models: dict[str, Path], tmp_path: Path) -> None:
    other = tmp_path / "other"
    write_ct_series(other, CtPhantom(shape=(12, 40, 48), study="B"))
    out = tmp_path / "out"

    result = run("segment", small_study, other, "--out", out, "--model", models["strange"], "--fail-on", "review")

    assert result.exit_code == 9
    assert result.stdout.count("reject (score") == 2
    empty = tmp_path / "empty"
    empty.mkdir()
    result = run(
        "segment", small_study, empty, "--out", tmp_path / "2", "--model", models["strange"], "--fail-on", "review"
    )
    assert result.exit_code == 7, "an input that failed comes first"


def test_a_batch_counts_decisions_and_its_summary_has_them(
    small_study: Path, models: dict[str, Path], tmp_path: Path
) -> None:
    arguments = ("batch", small_study, "--out", tmp_path, "--model", models["strange"])

    assert run(*arguments).exit_code == 0
    again = run(*arguments, "--json", "--fail-on", "review")

    assert again.exit_code == 9, "also of what an earlier run has done"
    assert json.loads(again.stdout)["decisions"] == {"reject": 1}
    with (tmp_path / "summary.csv").open(encoding="utf-8") as file:
        (row,) = csv.DictReader(file)
    assert (row["decision"], row["calibrated"]) == ("reject", "False")
    assert float(row["score"]) > 0.9
    assert row["reason"].startswith("The median of all but air is ")


def test_a_model_without_ranges_is_decided_upon_and_says_what_it_could_not_check(
    small_study: Path, models: dict[str, Path], tmp_path: Path
) -> None:
    result = run("segment", small_study, "--out", tmp_path, "--model", models["none"])

    assert "The model has no ranges of training cases" in result.stdout
    assert record_in(tmp_path)["decision"]["reasons"][-1]["check"] == "training_ranges"


def test_the_same_run_makes_the_same_decision_and_bytes(
    small_study: Path, models: dict[str, Path], tmp_path: Path
) -> None:
    for name in ("one", "two"):
        run("segment", small_study, "--out", tmp_path / name, "--model", models["strange"])

    for name in ("record.json", "report.dcm", "segmentation.dcm"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
