"""What an installation tells of itself: ``ucseg models`` and ``ucseg doctor``."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.command_line import run
from ucseg_runtime.selftest import SelfTestResult


def test_models_lists_classes_and_digest_of_a_given_model(model: Path) -> None:
    result = run("models", "--model", model, "--json")

    (listed,) = json.loads(result.stdout)["models"]
    assert [item["name"] for item in listed["classes"]] == ["class 1", "class 2"]
    assert len(listed["digest"]) == 64


def test_doctor_passes_its_self_test_on_every_engine() -> None:
    result = run("doctor", "--json")

    report = json.loads(result.stdout)
    assert result.exit_code == 0
    assert {check["engine"] for check in report["self_test"]} >= {"openvino", "onnxruntime"}
    assert all(check["passed"] for check in report["self_test"])


def test_doctor_with_a_wrong_answer_prints_one_document_and_exits_with_5(monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = SelfTestResult("openvino", "f32", passed=False, detail="7 voxels with a wrong label")
    monkeypatch.setattr("ucseg_runtime.selftest.run_self_test", lambda: (wrong,))

    result = run("doctor", "--json")

    assert result.exit_code == 5
    assert json.loads(result.stdout)["error"]["code"] == "UCSEG-E140"
