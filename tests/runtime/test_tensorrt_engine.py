"""TensorRT as one of the engines: what it offers, what it takes for proven, what it says is missing. No GPU needed."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tests.model_phantom import ModelPhantom
from tests.phantoms import CtPhantom, write_ct_series
from tests.proof_phantom import proof, write_proofs
from ucseg_runtime.accuracy_gate import EngineProof, Proofs
from ucseg_runtime.backends.choice import choose, verdicts
from ucseg_runtime.backends.cuda import cuda_devices, gpu_capability
from ucseg_runtime.backends.engine_cache import RECORD_NAME, EngineKey, save_engines
from ucseg_runtime.backends.engines import engine_status, load_engine
from ucseg_runtime.backends.session import GraphFile, SessionSettings
from ucseg_runtime.backends.tensorrt_engine import TensorRtEngine
from ucseg_runtime.cache import engines_folder
from ucseg_runtime.cli.app import app
from ucseg_runtime.config import InferenceOptions, PrecisionChoice
from ucseg_runtime.dicom.codes import long_string
from ucseg_runtime.errors import AccuracyGateError, BackendUnavailableError, EngineMismatchError
from ucseg_runtime.identity import RunIdentity
from ucseg_runtime.manifest import DEFAULT_BUDGETS
from ucseg_runtime.model_folder import Model, load_model
from ucseg_runtime.segmentation import EngineInfo

rtx = pytest.importorskip("tensorrt_rtx_bindings", reason="the extra tensorrt-rtx is not installed")
without_gpu = pytest.mark.skipif(cuda_devices() > 0, reason="this machine has a GPU")

Build = Callable[..., str]


@pytest.fixture
def model(tmp_path: Path) -> Model:
    return load_model(ModelPhantom(tile_shape=(4, 4, 4)).write(tmp_path / "model"))


@pytest.fixture
def ampere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A machine with TensorRT-RTX and a GPU of compute capability 8.6, as far as opening the engine goes."""
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    monkeypatch.setattr("ucseg_runtime.backends.tensorrt_engine.gpu_capability", lambda _: "8.6")
    monkeypatch.setenv("UCSEG_ENGINES", str(tmp_path / "engines"))


def build(model: Model, precision: str = "fp16", plan: bytes = b"plan", **other: object) -> str:
    """Keep made-up engines; the digits that name the build."""
    fields: dict[str, object] = {
        "model_digest": model.digest,
        "builder": "tensorrt_rtx",
        "version": rtx.__version__,
        "compute_capability": "8.6",
        "precision": precision,
        "max_batch": 4,
    }
    key = EngineKey(**{**fields, **other})  # type: ignore[arg-type]
    save_engines(engines_folder(), key, {"merged": plan}, {"merged": b"graph"}, {"merged": {}})
    return hashlib.sha256(plan).hexdigest()[:8]


def proven(version: str, precision: str = "fp16", device: str = "GPU sm86", seconds: float = 0.01) -> EngineProof:
    made_up = proof("tensorrt", precision, version=version, seconds_per_tile=seconds)  # type: ignore[arg-type]
    return made_up.model_copy(update={"device": device})


@without_gpu
def test_machine_without_a_gpu_says_so_and_so_does_doctor(model: Model) -> None:
    with pytest.raises(BackendUnavailableError, match="no NVIDIA GPU number 0 on this machine; it has none"):
        load_engine("tensorrt")
    status = {item.name: item for item in engine_status()}["tensorrt"]
    assert (status.version, status.precisions) == ("", ())
    assert "no NVIDIA GPU number 0" in status.reason


def test_machine_without_tensorrt_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("tensorrt", "tensorrt_rtx_bindings"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(BackendUnavailableError, match=r"The tensorrt engine needs .*pip install 'ucseg\[tensorrt\]'"):
        load_engine("tensorrt")


def test_machine_without_the_cuda_bindings_names_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", None)
    with pytest.raises(BackendUnavailableError, match=r"CUDA bindings are missing: .*ucseg\[tensorrt\]"):
        gpu_capability(0)


@without_gpu
def test_segmenting_on_a_gpu_that_is_not_there_ends_with_what_is_missing(model: Model, tmp_path: Path) -> None:
    write_ct_series(tmp_path / "study", CtPhantom(shape=(8, 16, 16)))
    arguments = ["segment", tmp_path / "study", "--out", tmp_path / "out", "--model", model.folder]
    result = CliRunner().invoke(app, [*map(str, arguments), "--engine", "tensorrt", "--device", "1"])
    assert result.exit_code == 5
    assert "UCSEG-E141 BackendUnavailableError: There is no NVIDIA GPU number 1 on this machine" in result.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("capability", "precisions"),
    [
        ("7.5", {"f32", "fp16", "int8"}),
        ("8.6", {"f32", "tf32", "fp16", "int8"}),
        ("8.9", {"f32", "tf32", "fp16", "int8", "fp8"}),
        ("12.0", {"f32", "tf32", "fp16", "int8", "fp8"}),
    ],
)
def test_precisions_are_those_of_the_gpu(
    monkeypatch: pytest.MonkeyPatch, capability: str, precisions: set[str]
) -> None:
    monkeypatch.setattr("ucseg_runtime.backends.tensorrt_engine.gpu_capability", lambda _: capability)
    engine = TensorRtEngine()
    assert set(engine.precisions()) == precisions
    assert engine.device == f"GPU sm{capability.replace('.', '')}"


@pytest.mark.usefixtures("ampere")
def test_a_model_is_offered_in_the_precisions_that_were_built_for_it(model: Model) -> None:
    engine = TensorRtEngine()
    assert engine.offers(model) == {}
    digits = build(model, "fp16"), build(model, "int8", b"another", calibration="ab" * 32)
    offers = engine.offers(model)
    assert {precision: offer.build for precision, offer in offers.items()} == {"fp16": digits[0], "int8": digits[1]}
    assert {offer.graph for offer in offers.values()} == {"merged"}


@pytest.mark.usefixtures("ampere")
@pytest.mark.parametrize(
    "other",
    [
        {"model_digest": "cd" * 32},
        {"builder": "tensorrt"},
        {"version": "1.5.0"},
        {"compute_capability": "8.9"},
        {"precision": "fp8"},
    ],
    ids=lambda other: next(iter(other)),
)
def test_engines_for_something_else_are_not_offered(model: Model, other: dict[str, str]) -> None:
    build(model, **other)
    assert TensorRtEngine().offers(model) == {}


@pytest.mark.usefixtures("ampere")
def test_of_several_engines_that_for_the_fewest_tiles_a_call_is_taken(model: Model) -> None:
    build(model, plan=b"for eight", max_batch=8)
    digits = build(model, plan=b"for one", max_batch=1)
    assert TensorRtEngine().offers(model)["fp16"].build == digits


@pytest.mark.usefixtures("ampere")
def test_record_that_cannot_be_read_is_an_error_and_no_missing_engine(model: Model) -> None:
    build(model)
    next(engines_folder().glob(f"*/{RECORD_NAME}")).write_text("{")
    with pytest.raises(EngineMismatchError, match="record of the built engines cannot be read"):
        TensorRtEngine().offers(model)


@pytest.mark.usefixtures("ampere")
def test_record_that_cannot_be_read_keeps_no_other_engine_from_serving(model: Model) -> None:
    here = {status.name: status.version for status in engine_status()}["openvino"]
    version = f"{rtx.__version__}+{build(model)}"
    write_proofs(model.folder, proven(version), proof("openvino", version=here, seconds_per_tile=0.2))
    next(engines_folder().glob(f"*/{RECORD_NAME}")).write_text("{")
    loaded = load_model(model.folder)
    chosen = choose(loaded, InferenceOptions())
    assert chosen.name == "openvino"
    assert "tensorrt fp16 refused: the record of the built engines cannot be read" in chosen.reason
    objections = {item.objection for item in verdicts(loaded) if item.engine == "tensorrt"}
    assert len(objections) == 1
    assert "record of the built engines cannot be read" in objections.pop()
    with pytest.raises(EngineMismatchError, match="record of the built engines cannot be read"):
        choose(loaded, InferenceOptions(engine="tensorrt"))


@pytest.mark.usefixtures("ampere")
def test_engines_that_are_built_anew_meanwhile_are_not_there(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    build(model)
    original = Path.read_text

    def moved_away(self: Path, *arguments: object, **named: object) -> str:
        if self.name == RECORD_NAME:
            raise FileNotFoundError
        return original(self, *arguments, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(Path, "read_text", moved_away)
    assert TensorRtEngine().offers(model) == {}


@pytest.mark.usefixtures("ampere")
@pytest.mark.parametrize("gate", [True, False])
@pytest.mark.parametrize(
    ("precision", "command"),
    [
        ("auto", "ucseg-export tensorrt MODEL_DIR --precision fp32;"),
        ("tf32", "ucseg-export tensorrt MODEL_DIR --precision tf32;"),
        ("int8", "ucseg-export tensorrt MODEL_DIR --precision int8 --cases DIR;"),
    ],
)
def test_engine_that_was_not_built_is_missing_with_the_command_that_builds_it(
    model: Model, precision: PrecisionChoice, command: str, gate: bool
) -> None:
    if precision != "auto":
        build(model, "fp16")
    with pytest.raises(EngineMismatchError, match=command):
        choose(model, InferenceOptions(engine="tensorrt", precision=precision, gate=gate))


@pytest.mark.usefixtures("ampere")
def test_precision_that_the_gpu_has_not_is_refused(model: Model) -> None:
    with pytest.raises(BackendUnavailableError, match=r"no fp8 on this processor; it has f32, tf32, fp16, int8"):
        choose(model, InferenceOptions(engine="tensorrt", precision="fp8"))


@pytest.mark.usefixtures("ampere")
def test_plan_is_read_only_if_it_is_the_recorded_one(model: Model) -> None:
    build(model)
    next(engines_folder().glob("*/merged.plan")).write_bytes(b"changed")
    with pytest.raises(EngineMismatchError, match="not the file that its record names"):
        TensorRtEngine().open_session(GraphFile("merged", b"", model.digest), SessionSettings("fp16", 1))


@pytest.mark.usefixtures("ampere")
def test_engine_that_was_built_anew_after_it_was_chosen_is_not_run_under_the_old_proof(model: Model) -> None:
    proved = build(model)
    fresh = build(model, plan=b"another build")
    graph = GraphFile("merged", b"", model.digest, proved)
    with pytest.raises(EngineMismatchError, match=f"build {proved} was chosen, {fresh} is there"):
        TensorRtEngine().open_session(graph, SessionSettings("fp16", 1))


@pytest.mark.usefixtures("ampere")
def test_engine_that_was_proven_on_such_a_gpu_serves(model: Model) -> None:
    version = f"{rtx.__version__}+{build(model)}"
    write_proofs(model.folder, proven(version))
    chosen = choose(load_model(model.folder), InferenceOptions())
    assert (chosen.name, chosen.precision, chosen.proven) == ("tensorrt", "fp16", True)
    assert chosen.offer.version(chosen.engine.version) == version
    (verdict,) = [item for item in verdicts(load_model(model.folder)) if item.engine == "tensorrt"]
    assert (verdict.version, verdict.objection, verdict.seconds_per_tile) == (version, "", 0.01)


@pytest.mark.usefixtures("ampere")
@pytest.mark.parametrize(
    ("build_digits", "device"),
    [("", "GPU sm90"), ("0" * 8, "GPU sm86")],
    ids=["another kind of GPU", "another build of the same engine"],
)
def test_proof_of_another_gpu_or_build_does_not_count(model: Model, build_digits: str, device: str) -> None:
    digits = build(model)
    write_proofs(model.folder, proven(f"{rtx.__version__}+{build_digits or digits}", device=device))
    with pytest.raises(AccuracyGateError, match="never compared with the reference"):
        choose(load_model(model.folder), InferenceOptions(engine="tensorrt"))


@without_gpu
def test_auto_passes_over_an_engine_whose_gpu_is_not_here(model: Model) -> None:
    here = {status.name: status.version for status in engine_status()}["openvino"]
    write_proofs(model.folder, proven("1.7+ab"), proof("openvino", version=here, seconds_per_tile=0.2))
    chosen = choose(load_model(model.folder), InferenceOptions())
    assert chosen.name == "openvino"
    assert "tensorrt fp16 refused: There is no NVIDIA GPU number 0" in chosen.reason


def test_outputs_say_in_full_that_the_gate_was_skipped() -> None:
    """DICOM's SoftwareVersions holds 64 characters, and what does not fit is cut off."""
    for name, version in (("tensorrt", "10.13.12.135+01234567"), ("onnxruntime-tensorrt", "1.32.0")):
        engine = EngineInfo(name, version, "fp16", "GPU sm120")
        text = RunIdentity("m", "1", "ab", engine, "cd", "3").engine_text
        assert long_string(text) == text
        assert text.endswith("no accuracy gate")


def test_proofs_of_different_gpus_lie_side_by_side() -> None:
    proofs = Proofs(model_digest="x").with_proof(proven("10.8+a")).with_proof(proven("10.8+b", device="GPU sm90"))
    proofs = proofs.with_proof(proven("10.9+c"))
    assert [(item.device, item.version) for item in proofs.engines] == [("GPU sm90", "10.8+b"), ("GPU sm86", "10.9+c")]


def test_budgets_of_all_precisions() -> None:
    assert {precision: budget.mask_dice for precision, budget in DEFAULT_BUDGETS.items()} == {
        "f32": 0.9995,
        "tf32": 0.998,
        "bf16": 0.998,
        "fp16": 0.998,
        "int8": 0.99,
        "fp8": 0.99,
    }
