"""An engine serves a model when its figures keep the model's budget, and never otherwise."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from tests.model_phantom import ModelPhantom
from tests.proof_phantom import proof, proven, write_proofs
from ucseg_runtime.accuracy_gate import PROOFS_NAME, EngineProof, Proofs
from ucseg_runtime.backends import engine_status, open_backend
from ucseg_runtime.backends.choice import verdicts
from ucseg_runtime.config import InferenceOptions
from ucseg_runtime.errors import AccuracyGateError, BackendUnavailableError, ManifestError
from ucseg_runtime.manifest import DEFAULT_BUDGETS, Budget, Precision
from ucseg_runtime.model_folder import load_model
from ucseg_runtime.segmentation import EngineInfo

VERSIONS = {status.name: status.version for status in engine_status()}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return ModelPhantom(tile_shape=(4, 4, 4)).write(tmp_path / "model")


def engine_of(folder: Path, options: InferenceOptions) -> EngineInfo:
    with open_backend(load_model(folder), options) as backend:
        return backend.info.engine


def of_here(engine: str, precision: Precision = "f32", **figures: float) -> EngineProof:
    return proof(engine, precision, version=VERSIONS[engine], **figures)  # type: ignore[arg-type]


def test_engine_that_was_never_compared_is_refused(folder: Path) -> None:
    with pytest.raises(AccuracyGateError, match=r"phantom 1\.0\.0: never compared.*ucseg-export prove.*--no-gate"):
        engine_of(folder, InferenceOptions())


@pytest.mark.parametrize(
    ("figures", "message"),
    [
        ({"dice": 0.9994}, r"Dice of class 1 0\.9994, at least 0\.9995 needed"),
        ({"dice": 0.0}, r"Dice of class 1 0\.0000, at least 0\.9995 needed"),
        ({"uncertainty_p99": 0.03}, r"difference of uncertainty 0\.0300, at most 0\.02 allowed"),
    ],
)
def test_refusal_names_the_figure(folder: Path, figures: dict[str, float], message: str) -> None:
    write_proofs(folder, of_here("openvino", **figures))
    with pytest.raises(AccuracyGateError, match=message):
        engine_of(folder, InferenceOptions(engine="openvino"))


def test_refusal_names_the_worst_figure() -> None:
    first, second = proof(dice=0.99).cases[0], proof(dice=0.5).cases[0]
    both = proof().model_copy(update={"cases": (first, second)})
    assert both.objection(Budget(mask_dice=0.999)) == "Dice of class 1 0.5000, at least 0.999 needed"


def test_proof_without_cases_proves_nothing() -> None:
    assert proof().model_copy(update={"cases": ()}).objection(Budget(mask_dice=0.0)) == "no case was compared"


def test_class_that_neither_finds_is_no_objection() -> None:
    found, absent = proof(), proof(dice=None)
    (one,), (other,) = found.cases, absent.cases
    both = one.model_copy(update={"classes": (*one.classes, *other.classes)})
    assert found.model_copy(update={"cases": (both,)}).objection(Budget(mask_dice=1.0)) == ""
    assert found.model_copy(update={"cases": (one, other)}).objection(Budget(mask_dice=1.0)) == ""


def test_cases_without_any_class_prove_nothing() -> None:
    """There an engine whose output is all black decides like the reference."""
    assert proof(dice=None).objection(Budget(mask_dice=0.0)).startswith("no mask was compared")


def test_auto_takes_the_fastest_that_passed(folder: Path) -> None:
    fast, slow = of_here("onnxruntime", seconds_per_tile=0.1), of_here("openvino", seconds_per_tile=0.2)
    write_proofs(folder, slow, fast)
    assert engine_of(folder, InferenceOptions()).name == "onnxruntime"
    write_proofs(folder, slow, of_here("onnxruntime", seconds_per_tile=0.1, dice=0.9))
    engine = engine_of(folder, InferenceOptions())
    assert (engine.name, engine.precision, engine.proven) == ("openvino", "f32", True)


def test_auto_takes_what_is_installed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    proven(folder)
    assert engine_of(folder, InferenceOptions()).name == "openvino"
    monkeypatch.setitem(sys.modules, "openvino", None)
    assert engine_of(folder, InferenceOptions()).name == "onnxruntime"


def test_reason_names_what_was_refused_before(folder: Path) -> None:
    write_proofs(folder, of_here("openvino", "bf16", dice=0.9), of_here("openvino", seconds_per_tile=0.2))
    with open_backend(load_model(folder), InferenceOptions()) as backend:
        assert backend.info.reason.startswith("passed the accuracy gate, 0.200 s a tile; openvino")


def test_proof_of_another_release_of_the_engine_does_not_count(folder: Path) -> None:
    write_proofs(folder, proof("openvino", version="1999.1.0"))
    with pytest.raises(AccuracyGateError, match="never compared"):
        engine_of(folder, InferenceOptions())


def test_last_number_of_the_version_may_differ() -> None:
    assert proof(version="2026.4.0").is_about("openvino", "2026.4.1", "f32", "CPU")
    assert not proof(version="2026.4.0").is_about("openvino", "2026.5.0", "f32", "CPU")
    assert not proof(version="2026.4.0").is_about("openvino", "2026.4.0", "bf16", "CPU")
    assert not proof(version="2026.4.0").is_about("openvino", "2026.4.0", "f32", "GPU sm86")


def test_proof_of_another_model_does_not_count(folder: Path, tmp_path: Path) -> None:
    other = proven(ModelPhantom(tile_shape=(4, 4, 8)).write(tmp_path / "other"))
    (folder / PROOFS_NAME).write_bytes((other / PROOFS_NAME).read_bytes())
    with pytest.raises(AccuracyGateError, match="never compared"):
        engine_of(folder, InferenceOptions())


def test_skipped_gate_is_recorded(folder: Path) -> None:
    engine = engine_of(folder, InferenceOptions(gate=False))
    assert (engine.name, engine.precision, engine.proven) == ("openvino", "f32", False)


@pytest.mark.parametrize("text", ["", "{", '{"model_digest": 1}', '{"schema_version": 2, "model_digest": "x"}'])
def test_malformed_proofs_are_refused(folder: Path, text: str) -> None:
    (folder / PROOFS_NAME).write_text(text, encoding="utf-8")
    with pytest.raises(ManifestError, match=f"{PROOFS_NAME} of the model folder breaks its schema"):
        load_model(folder)


def test_link_in_the_place_of_proofs_is_refused(folder: Path) -> None:
    (folder / PROOFS_NAME).symlink_to(folder / "manifest.json")
    with pytest.raises(ManifestError, match="no readable proofs"):
        load_model(folder)


def test_newer_figures_replace_older_ones_of_the_same_engine_and_precision() -> None:
    proofs = Proofs(model_digest="x", engines=(proof(version="1.0"), proof(precision="bf16")))
    together = proofs.with_proof(proof(version="2.0"))
    assert [(item.precision, item.version) for item in together.engines] == [("bf16", "2026.4.1"), ("f32", "2.0")]


def test_model_keeps_its_own_budget(folder: Path) -> None:
    fields = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    fields["budgets"] = {"f32": {"mask_dice": 0.9}}
    (folder / "manifest.json").write_text(json.dumps(fields), encoding="utf-8")
    write_proofs(folder, of_here("openvino", dice=0.95))
    assert engine_of(folder, InferenceOptions()).proven
    assert load_model(folder).manifest.budget("int8") == DEFAULT_BUDGETS["int8"]


def test_verdicts_name_every_engine_and_precision_of_this_machine(folder: Path) -> None:
    write_proofs(folder, of_here("onnxruntime", seconds_per_tile=0.3))
    found = {(item.engine, item.precision): item for item in verdicts(load_model(folder))}
    assert set(found) == {(s.name, p) for s in engine_status() for p in s.precisions if p != "int8"}
    passed = found["onnxruntime", "f32"]
    assert (passed.objection, passed.seconds_per_tile) == ("", 0.3)
    assert found["openvino", "f32"].objection == "never compared with the reference for this model"


def test_precision_without_a_graph_is_refused(folder: Path) -> None:
    options = InferenceOptions(engine="openvino", precision="int8", gate=False)
    with pytest.raises(BackendUnavailableError, match="no int8"):
        engine_of(folder, options)
