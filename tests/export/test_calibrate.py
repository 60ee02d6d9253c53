"""``ucseg-export calibrate`` from labelled cases to calibration.json and a folder with a temperature."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner, Result

from tests.calibration_phantom import MODEL, SIGMA, TEMPERATURE, model_phantom, noisy_case, write_cases
from tests.clip_phantom import colour_model
from tests.dataset_phantom import block_labels
from ucseg_export.calibration.calibrate import calibrate as calibrate_model
from ucseg_export.calibration.calibrate import calibration_options
from ucseg_export.calibration.scores import AcceptedRisk
from ucseg_export.cli.app import app
from ucseg_runtime.calibration import CALIBRATION_NAME
from ucseg_runtime.errors import InputError
from ucseg_runtime.geometry import VolumeGeometry
from ucseg_runtime.model_folder import load_model
from ucseg_training.calibration import expected_calibration_error
from ucseg_training.data.case import Case


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five cases of four patients."""
    patients = ("canary a", "canary b", "canary c", "canary d", "canary a")
    return write_cases(
        tmp_path_factory.mktemp("cases") / "cases", *(noisy_case(name, seed) for seed, name in enumerate(patients))
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return MODEL.write(tmp_path / "model")


@dataclass(frozen=True)
class Runs:
    """What the command prints, and the last file that it wrote."""

    plain: str
    table: str
    json_text: str
    written: str

    @property
    def found(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.json_text)
        return found


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, cases: Path) -> Runs:
    folder = MODEL.write(tmp_path_factory.mktemp("runs") / "model")
    results = [calibrate(folder, cases, *arguments) for arguments in ((), ("--table",), ("--json",))]
    assert [result.exit_code for result in results] == [0, 0, 0]
    assert load_model(folder).calibration.calibration is not None
    return Runs(*(result.output for result in results), (folder / CALIBRATION_NAME).read_text(encoding="utf-8"))


def calibrate(folder: Path, cases: Path, *arguments: str) -> Result:
    command = ["calibrate", str(folder), "--cases", str(cases), "--engine", "onnxruntime", *arguments]
    return CliRunner().invoke(app, command)


def as_json(result: Result) -> dict[str, Any]:
    assert result.exit_code == 0, result.output
    found: dict[str, Any] = json.loads(result.stdout)
    return found


def test_figures_go_into_the_folder_and_the_known_temperature_is_found(runs: Runs) -> None:
    found = runs.found
    assert json.loads(runs.written) == found
    assert (found["cases"], found["patients"]) == (5, 4)
    assert found["temperature"]["value"] == pytest.approx(TEMPERATURE, rel=0.1)
    assert found["temperature"]["helps"]
    assert found["temperature"]["patients"] == 4
    assert found["all_voxels"]["error_auroc"]["low"] < found["all_voxels"]["error_auroc"]["high"]
    assert [item["name"] for item in found["classes"]] == ["class 1", "class 2"]
    assert [item["cases"] for item in found["volume_intervals"]["classes"]] == [5, 5]


def test_too_few_patients_are_told_everywhere(runs: Runs) -> None:
    found = runs.found
    assert "5 cases of 4 patients" in runs.plain
    assert "TOO FEW: 4 patients, fewer than 10" in runs.plain
    assert found["too_few"].startswith("4 patients, fewer than 10")
    assert (found["score_limits"], found["score_limits_reason"]) == (
        None,
        "too few patients: 4, and at least 10 are needed.",
    )
    assert [item["factor"] for item in found["volume_intervals"]["classes"]] == [None, None]
    assert "**Too few patients.** 4 patients, fewer than 10" in runs.table
    assert "| class 1 | 5 | 4 |" in runs.table


def test_names_of_cases_are_in_no_output(runs: Runs) -> None:
    for text in (runs.plain, runs.table, runs.json_text, runs.written):
        assert "canary" not in text


def test_another_engine_finds_the_same(folder: Path, cases: Path, runs: Runs) -> None:
    found = as_json(calibrate(folder, cases, "--engine", "openvino", "--json"))
    assert found["engine"].startswith("openvino")
    for name in ("error_rate", "calibration_error", "error_auroc", "aurc"):
        expected = runs.found["all_voxels"][name]
        assert found["all_voxels"][name] == pytest.approx(expected, abs=1e-3)


def test_applied_temperature_calibrates_the_probabilities(folder: Path, cases: Path, tmp_path: Path) -> None:
    applied = as_json(calibrate(folder, cases, "--apply", str(tmp_path / "out"), "--json"))
    before = json.loads((folder / CALIBRATION_NAME).read_text(encoding="utf-8"))
    assert applied["model_digest"] == load_model(tmp_path / "out").digest != before["model_digest"]
    assert load_model(tmp_path / "out").calibration.calibration is not None
    error, error_before = (item["all_voxels"]["calibration_error"]["value"] for item in (applied, before))
    assert error < 0.02 < error_before
    assert applied["all_voxels"]["error_auroc"] == before["all_voxels"]["error_auroc"]  # the uncertainty is the same
    assert applied["temperature"]["value"] == pytest.approx(1.0, abs=0.05)  # nothing is left to be done


def test_temperature_that_does_not_help_is_not_applied(tmp_path: Path) -> None:
    """What is right for either patient is a quarter or four times of what the model has: wrong for the other one."""
    model = model_phantom(MODEL.sharpness / TEMPERATURE).write(tmp_path / "model")
    opposite = write_cases(
        tmp_path / "cases", noisy_case("clear", 0, sigma=SIGMA / 2), noisy_case("noisy", 1, sigma=SIGMA * 2)
    )
    found = as_json(calibrate(model, opposite, "--json"))["temperature"]
    assert not found["helps"]
    assert found["nll_after"]["value"] > found["nll"]["value"]
    result = calibrate(model, opposite, "--apply", str(tmp_path / "out"))
    assert result.exit_code == 3
    assert "does not help held-out patients" in result.stderr
    assert not (tmp_path / "out").exists()


def test_one_patient_cannot_judge_a_temperature(folder: Path, tmp_path: Path) -> None:
    alone = write_cases(tmp_path / "alone", noisy_case("a", 0))
    result = calibrate(folder, alone, "--apply", str(tmp_path / "out"))
    assert result.exit_code == 3
    assert "cannot be judged on held-out patients: 1 with" in result.stderr
    assert not (tmp_path / "out").exists()


def test_enough_patients_get_score_limits_and_intervals(folder: Path, tmp_path: Path) -> None:
    """The more noise a patient has, the more is found that is not there, and the lower the Dice."""
    noisy = [noisy_case(str(seed), seed, sigma=0.1 + 0.05 * seed) for seed in range(12)]
    found = as_json(calibrate(folder, write_cases(tmp_path / "cases", *noisy), "--json", "--accept-risk", "0.2"))
    assert found["too_few"] == ""
    assert all(item["factor"] is not None for item in found["volume_intervals"]["classes"])
    assert all(10 <= item["covered"] <= 12 for item in found["volume_intervals"]["classes"])
    spearman = found["case_scores"]["spearman"]
    assert (found["score_limits"] is not None) == (spearman["high"] < 0.0)
    assert (found["score_limits_reason"] == "") == (found["score_limits"] is not None)


def test_probabilities_on_the_source_grid_are_those_that_are_measured(folder: Path) -> None:
    """Without resampling and clean-up every figure follows from the model's formula."""
    case = noisy_case("a", 0)
    options = calibration_options("onnxruntime", "f32")
    found = calibrate_model(load_model(folder), [case], options, AcceptedRisk())
    logits = MODEL.fused_logits(case.voxels[None, None] / np.float32(100.0))[0]
    probabilities = np.exp(logits - logits.max(axis=0))
    probabilities /= probabilities.sum(axis=0)
    expected = expected_calibration_error(
        probabilities.max(axis=0).astype(np.float32), probabilities.argmax(axis=0) == case.label_map
    )
    assert found.all_voxels.calibration_error.value == pytest.approx(expected, abs=2e-3)  # steps of 1 / 255
    assert found.all_voxels.error_rate.value == pytest.approx((probabilities.argmax(axis=0) != case.label_map).mean())
    assert found.all_voxels.voxels == case.voxels.size
    assert found.all_voxels.error_rate.low is None


def test_labels_on_a_finer_grid_reach_the_right_logits(tmp_path: Path) -> None:
    """A block whose source grid is turned and twice as fine: every sampled voxel inside of it is labelled so."""
    shape = (16, 48, 48)
    labels = block_labels(shape, (slice(4, 12), slice(8, 24), slice(16, 44)))
    voxels = np.where(labels == 1, MODEL.hu(1), MODEL.hu(0)).astype(np.float32)
    affine = np.array([[0, 0, -1.0, 0], [0, 1.0, 0, 0], [1.0, 0, 0, 0], [0, 0, 0, 1]])
    case = Case("a", voxels, labels, np.full(shape, 0b11, dtype=np.uint8), VolumeGeometry(affine, shape))
    folder = MODEL.write(tmp_path / "model")
    other = Case("b", case.voxels, case.label_map, case.known, case.geometry)
    options = calibration_options("onnxruntime", "f32")
    found = calibrate_model(load_model(folder), [case, other], options, AcceptedRisk())
    # Logits are 5 apart but at the block's faces; labels of other places would cost a multiple.
    assert found.temperature.nll.value is not None
    assert found.temperature.nll.value < 0.15


@pytest.mark.parametrize(
    ("case", "message"),
    [
        pytest.param(None, "holds no labelled cases", id="none"),
        pytest.param("label", "case 1 of 1 has label 3; the model has labels 1 … 2", id="label"),
        pytest.param("nothing", "no case shows any class", id="nothing"),
    ],
)
def test_cases_that_cannot_be_used_are_refused(folder: Path, tmp_path: Path, case: str | None, message: str) -> None:
    made = noisy_case("a", 0)
    if case == "label":
        made.label_map[0, 0, 0] = 3
    if case == "nothing":
        made.label_map[...] = 0
        made.voxels[...] = -100.0
    result = calibrate(folder, write_cases(tmp_path / "cases", *([made] if case else [])))
    assert result.exit_code == 3
    assert message in result.stderr
    assert not (folder / CALIBRATION_NAME).exists()


def test_models_for_pictures_are_refused(tmp_path: Path, cases: Path) -> None:
    result = calibrate(colour_model().write(tmp_path / "model"), cases)
    assert result.exit_code == 3
    assert "for pictures and clips" in result.stderr


def test_place_that_is_taken_is_refused_before_any_work(folder: Path, cases: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    result = calibrate(folder, cases, "--apply", str(tmp_path / "out"))
    assert result.exit_code == 6
    assert not (folder / CALIBRATION_NAME).exists()


def test_calibration_that_cannot_be_written_leaves_no_part_of_a_file(
    folder: Path, cases: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("ucseg_runtime.safe_files.os.replace", fail)
    before = sorted(folder.iterdir())
    result = calibrate(folder, cases)
    assert result.exit_code == 6
    assert "calibration.json of the model folder cannot be written" in result.stderr
    assert sorted(folder.iterdir()) == before


def test_risks_the_wrong_way_round_are_a_usage_error(folder: Path, cases: Path) -> None:
    assert calibrate(folder, cases, "--accept-risk", "0.5", "--review-risk", "0.1").exit_code == 2


def test_invalid_error_names_the_input(folder: Path) -> None:
    with pytest.raises(InputError, match="no case shows any class"):
        calibrate_model(load_model(folder), [], calibration_options("onnxruntime", "f32"), AcceptedRisk())
