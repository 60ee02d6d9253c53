"""The temperature: found where it is known, kept where it helps, and a node of its own in the graphs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from tests.calibration_phantom import MODEL
from tests.model_phantom import ModelPhantom
from ucseg_export.calibration.fused_logits import LogitSample
from ucseg_export.calibration.temperature import fitted_temperature, judged_temperature, negative_log_likelihood
from ucseg_export.calibration.temperature_node import (
    NODE,
    PROVENANCE,
    apply_temperature,
    temperature_of,
    with_temperature,
)
from ucseg_runtime.arrays import Float32Array
from ucseg_runtime.backends import open_backend
from ucseg_runtime.config import EngineName, InferenceOptions
from ucseg_runtime.errors import ModelError
from ucseg_runtime.evidence import evidence_from_logits, probabilities_from_logits
from ucseg_runtime.model_folder import default_model_folder, load_model


def drawn(patient: str, seed: int, temperature: float, classes: int = 4, voxels: int = 4000) -> LogitSample:
    """Labels drawn by the softmax of the logits / temperature."""
    generator = np.random.default_rng(seed)
    logits = generator.normal(0.0, 6.0, (voxels, classes)).astype(np.float32)
    gumbel = generator.gumbel(size=logits.shape)
    return LogitSample(patient, logits, (logits / temperature + gumbel).argmax(axis=1).astype(np.uint8))


def drawn_binary(patient: str, seed: int, temperature: float) -> LogitSample:
    generator = np.random.default_rng(seed)
    logits = generator.normal(0.0, 6.0, (4000, 2)).astype(np.float32)
    chance = 1 / (1 + np.exp(-logits[:, 1] / temperature))
    return LogitSample(patient, logits, (generator.random(4000) < chance).astype(np.uint8))


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_known_temperature_is_found(temperature: float) -> None:
    samples = [drawn(str(seed), seed, temperature) for seed in range(4)]
    assert fitted_temperature(samples, "softmax") == pytest.approx(temperature, rel=0.05)
    binary = [drawn_binary(str(seed), seed, temperature) for seed in range(4)]
    assert fitted_temperature(binary, "sigmoid") == pytest.approx(temperature, rel=0.08)


def test_negative_log_likelihood_by_hand() -> None:
    sample = LogitSample("a", np.log(np.array([[1.0, 3.0], [4.0, 1.0]], dtype=np.float32)), np.array([1, 1], np.uint8))
    assert negative_log_likelihood(sample, 1.0, "softmax") == pytest.approx(-np.log([0.75, 0.2]).mean())
    root = np.sqrt([3.0, 1.0])
    expected = -np.log([root[0] / (1 + root[0]), 1 / 3]).mean()
    assert negative_log_likelihood(sample, 2.0, "softmax") == pytest.approx(expected)


def test_temperature_of_overconfident_logits_helps_held_out_patients() -> None:
    found = judged_temperature([drawn(str(seed), seed, 3.0) for seed in range(4)], "softmax")
    assert found.helps
    assert found.patients == 4
    assert found.value == pytest.approx(3.0, rel=0.05)
    assert found.nll.value is not None
    assert found.nll_after.value is not None
    assert found.nll_after.value < found.nll.value
    assert found.calibration_error_after.value == pytest.approx(0.0, abs=0.02)


def test_patients_who_differ_are_not_helped_by_one_another() -> None:
    found = judged_temperature([drawn("a", 0, 0.2), drawn("b", 1, 5.0)], "softmax")
    assert not found.helps
    assert found.value is not None


def test_cases_of_one_patient_are_held_out_together_and_one_patient_judges_nothing() -> None:
    both = judged_temperature([drawn("a", 0, 3.0), drawn("a", 1, 3.0)], "softmax")
    assert (both.value, both.helps, both.patients, both.voxels) == (None, False, 1, 8000)
    empty = LogitSample("b", np.zeros((0, 4), np.float32), np.zeros(0, np.uint8))
    assert judged_temperature([drawn("a", 0, 3.0), empty], "softmax").patients == 1
    assert judged_temperature([], "softmax").value is None


SIGMOID = ModelPhantom(centres=(0.0, 1.0), activation="sigmoid", sharpness=5.0, tile_shape=(8, 16, 16))


def tile_for(phantom: ModelPhantom) -> Float32Array:
    return np.random.default_rng(5).uniform(-1, 2, (1, 1, *phantom.tile_shape)).astype(np.float32)


@pytest.mark.parametrize("engine", ["openvino", "onnxruntime"])
@pytest.mark.parametrize("phantom", [pytest.param(MODEL, id="softmax"), pytest.param(SIGMOID, id="sigmoid")])
def test_folder_with_temperature_gives_what_numpy_gives(
    tmp_path: Path, phantom: ModelPhantom, engine: EngineName
) -> None:
    model = load_model(phantom.write(tmp_path / "model"))
    apply_temperature(model, 2.5, "made up", tmp_path / "out", overwrite=False)
    applied = load_model(tmp_path / "out")
    tile = tile_for(phantom)
    logits = phantom.fused_logits(tile)
    for staged in (False, True):
        with open_backend(applied, InferenceOptions(engine=engine, gate=False), staged=staged) as backend:
            found = backend.infer(tile)
        expected = probabilities_from_logits(logits / np.float32(2.5), phantom.activation)
        np.testing.assert_allclose(found.probabilities, expected, atol=1e-5)
        np.testing.assert_allclose(found.uncertainty, evidence_from_logits(logits).uncertainty, atol=1e-5)


def test_temperature_is_named_and_told_from_the_graph(tmp_path: Path) -> None:
    model = load_model(MODEL.write(tmp_path / "model"))
    apply_temperature(model, 2.5, "fitted on nothing", tmp_path / "out", overwrite=False)
    applied = load_model(tmp_path / "out")
    assert applied.digest != model.digest
    assert applied.manifest.provenance[PROVENANCE] == "2.5, fitted on nothing"
    assert temperature_of(applied.graph("decode")) == temperature_of(applied.graph("merged")) == pytest.approx(2.5)
    assert temperature_of(model.graph("decode")) == 1.0
    assert NODE in [node.name for node in onnx.load_from_string(applied.graph("merged")).graph.node]
    for key in ("subnet_a", "subnet_b", "upg"):
        assert applied.graph(key) == model.graph(key)
    with pytest.raises(ModelError, match="has a temperature already"):
        apply_temperature(applied, 2.0, "again", tmp_path / "again", overwrite=False)
    assert not (tmp_path / "again").exists()


def test_exported_graphs_take_a_temperature() -> None:
    demo = load_model(default_model_folder())
    for key in ("decode", "merged"):
        changed = with_temperature(demo.graph(key), key, 2.0)
        assert temperature_of(changed) == pytest.approx(2.0)
    assert with_temperature(demo.graph("upg"), "upg", 2.0) == demo.graph("upg")


def test_probabilities_that_come_from_no_activation_are_refused(tmp_path: Path) -> None:
    graph = onnx.load_from_string(load_model(MODEL.write(tmp_path / "model")).graph("decode"))
    for node in graph.graph.node:
        if "PROBABILITIES" in node.output:
            node.CopyFrom(onnx.helper.make_node("Identity", ["FUSED_LOGITS"], ["PROBABILITIES"]))
    with pytest.raises(ModelError, match="decode gives its probabilities by Identity"):
        with_temperature(graph.SerializeToString(), "decode", 2.0)
