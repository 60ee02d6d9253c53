"""The self-test has a known answer, and its packaged model is the one that the tests can make again."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

import numpy as np
import pytest

from tests.model_phantom import ModelPhantom
from ucseg_runtime import selftest
from ucseg_runtime.selftest import phantom, run_self_test


def test_packaged_model_is_what_its_generator_writes(tmp_path: Path) -> None:
    packaged = Path(str(resources.files("ucseg_runtime"))) / "selftest_model"
    made = ModelPhantom().write(tmp_path / "model")

    assert {p.name: p.read_bytes() for p in packaged.iterdir()} == {p.name: p.read_bytes() for p in made.iterdir()}


def test_phantom_has_all_labels_and_mostly_no_borders() -> None:
    volume, labels = phantom()

    assert set(np.unique(labels)) == {0, 1, 2, 255}
    assert (labels != 255).mean() > 0.5
    assert volume.geometry.spacing_mm == (2.5, 1.0, 1.0)


def test_every_engine_passes() -> None:
    results = run_self_test()

    assert {result.engine for result in results} == {"openvino", "onnxruntime"}
    assert [result for result in results if not result.passed] == []


def test_a_wrong_answer_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    volume, labels = phantom()
    monkeypatch.setattr(selftest, "phantom", lambda: (volume, np.flip(labels, axis=2)))

    results = run_self_test()

    assert results
    assert not any(result.passed for result in results)
