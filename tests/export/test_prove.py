"""The gate's measurement: an engine that decides like the reference passes, a broken one is seen and refused."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from typer.testing import CliRunner, Result

from tests.clip_phantom import ClipPhantom, colour_model
from tests.fake_backend import FakeBackend
from tests.model_phantom import ModelPhantom, manifest_fields, replace_artifact
from tests.phantoms import CtPhantom, write_ct_series
from tests.volume_phantom import STRAIGHT, Box, centred_geometry, volume_of
from ucseg_export.cli.app import app
from ucseg_export.prove import candidates
from ucseg_export.prove import prove as compare_engines
from ucseg_export.prove_cases import volumes_to_compare_on
from ucseg_runtime.accuracy_gate import PROOFS_NAME
from ucseg_runtime.arrays import Float32Array
from ucseg_runtime.backends import open_backend
from ucseg_runtime.backends.graphs import GRAPHS
from ucseg_runtime.config import InferenceOptions
from ucseg_runtime.errors import AccuracyGateError, InputError
from ucseg_runtime.geometry import VolumeGeometry
from ucseg_runtime.manifest import Manifest
from ucseg_runtime.model_folder import Model, load_model
from ucseg_training.calibration import expected_calibration_error
from ucseg_training.data.case import Case, save_case

PHANTOM = CtPhantom(shape=(20, 40, 48))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return ModelPhantom(tile_shape=(16, 32, 32)).write(tmp_path / "model")


@pytest.fixture
def study(tmp_path: Path) -> Path:
    write_ct_series(tmp_path / "study", PHANTOM)
    return tmp_path / "study"


def manifest_of(modality: str) -> Manifest:
    fields = manifest_fields(ModelPhantom(), dict.fromkeys(GRAPHS, b""))
    return Manifest.model_validate({**fields, "modality": modality})


def prove(folder: Path, study: Path, *arguments: str) -> Result:
    return CliRunner().invoke(app, ["prove", str(folder), "--cases", str(study), *arguments])


def black_output(graph: onnx.ModelProto) -> None:
    """Certain background everywhere, as networks whose half floats overflow give it."""
    for weights in graph.graph.initializer:
        if weights.name.endswith("_bias"):
            biases = numpy_helper.to_array(weights).copy()
            biases[0], biases[1:] = 100.0, -100.0
            weights.CopyFrom(numpy_helper.from_array(biases, weights.name))


def weights_in_a_wrong_precision(graph: onnx.ModelProto) -> None:
    """Weights with two bits of mantissa."""
    for weights in graph.graph.initializer:
        values = numpy_helper.to_array(weights)
        if weights.name.endswith("_bias"):
            fraction, exponent = np.frexp(values)
            rounded = np.ldexp(np.round(fraction * 4) / 4, exponent).astype(values.dtype)
            weights.CopyFrom(numpy_helper.from_array(rounded, weights.name))


def break_merged(folder: Path, how: object) -> None:
    graph = onnx.load(folder / "merged.onnx")
    assert callable(how)
    how(graph)
    replace_artifact(folder, "merged", graph.SerializeToString())


def test_engines_that_decide_like_the_reference_may_serve(folder: Path, study: Path) -> None:
    result = prove(folder, study, "--precision", "f32", "--json")

    assert result.exit_code == 0, result.output
    proofs = json.loads(result.stdout)
    assert {proof["engine"] for proof in proofs} == {"openvino", "onnxruntime"}
    for proof in proofs:
        (case,) = proof["cases"]
        assert case["case"] == "case 1 of 1"
        assert all(item["dice"] == 1.0 and item["hd95_mm"] == 0.0 for item in case["classes"])
        assert all(item["volume_ml"] == item["reference_ml"] > 0.0 for item in case["classes"])
        assert case["uncertainty_max"] < 1e-5
        assert case["calibration_error"] == pytest.approx(case["reference_calibration_error"], abs=1e-3)
        assert proof["seconds_per_tile"] > 0.0
        assert proof["processor"]
    with open_backend(load_model(folder), InferenceOptions()) as backend:
        assert backend.info.engine.proven


@pytest.mark.parametrize(
    ("how", "figure"),
    [
        pytest.param(black_output, r"Dice of class . 0\.0000, at least 0\.9995 needed", id="black output"),
        pytest.param(weights_in_a_wrong_precision, r"uncertainty 0\.\d+, at most 0\.02 allowed", id="weights"),
    ],
)
def test_broken_engine_is_seen_and_refused(folder: Path, study: Path, how: object, figure: str) -> None:
    break_merged(folder, how)

    result = prove(folder, study, "--precision", "f32")

    assert result.exit_code == 4
    assert "REFUSED" in result.stdout
    assert "UCSEG-E132" in result.stderr
    model = load_model(folder)
    assert len(model.proofs.engines) == 2  # the figures are kept
    with (
        pytest.raises(AccuracyGateError, match=figure),
        open_backend(model, InferenceOptions()),
    ):
        pytest.fail("a broken engine was opened")


def wrong_in_air(tile: Float32Array) -> Float32Array:
    """Background, but for the first class where a tile holds nothing but air."""
    probabilities = np.zeros((3, *tile.shape[1:]), dtype=np.float32)
    probabilities[int(tile.max() == 0.0)] = 1.0
    return probabilities


def background(tile: Float32Array) -> Float32Array:
    return wrong_in_air(np.ones_like(tile))


def test_engine_that_is_wrong_in_the_air_around_the_patient_is_refused(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Air is skipped only where the caller does not want the whole volume, and the proof serves both."""
    model = load_model(folder)
    geometry = centred_geometry((18, 150, 150), (3.0, 2.0, 2.0), STRAIGHT[:, ::-1])
    volume = volume_of(geometry, (Box(0, 100.0, (0.0, 0.0, 0.0), (30.0, 30.0, 30.0)),), background_hu=-1000.0)

    @contextmanager
    def opened(model: Model, options: InferenceOptions, *, staged: bool = False) -> Iterator[FakeBackend]:
        yield FakeBackend(model.manifest, background if staged else wrong_in_air)

    monkeypatch.setattr("ucseg_export.prove.open_backend", opened)
    (proof,) = compare_engines(model, [volume], candidates(model, "openvino", "f32"))
    assert "Dice of class" in proof.objection(model.manifest.budget("f32"))


def test_proofs_of_other_engines_are_kept(folder: Path, study: Path) -> None:
    assert prove(folder, study, "--engine", "openvino", "--precision", "f32").exit_code == 0
    assert prove(folder, study, "--engine", "onnxruntime").exit_code == 0
    assert [item.engine for item in load_model(folder).proofs.engines] == ["openvino", "onnxruntime"]


def test_proofs_that_cannot_be_written_leave_no_part_of_a_file(
    folder: Path, study: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("ucseg_runtime.safe_files.os.replace", fail)
    before = sorted(folder.iterdir())
    result = prove(folder, study, "--precision", "f32")
    assert result.exit_code == 6
    assert "proofs.json of the model folder cannot be written" in result.stderr
    assert sorted(folder.iterdir()) == before


def test_engine_that_is_not_there_is_named(folder: Path, study: Path) -> None:
    result = prove(folder, study, "--engine", "onnxruntime", "--precision", "bf16")
    assert result.exit_code == 5
    assert "--engine onnxruntime --precision bf16" in result.stderr


def test_engine_that_was_not_built_is_named_with_the_command_that_builds_it(
    folder: Path, study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("tensorrt_rtx_bindings", reason="the extra tensorrt-rtx is not installed")
    monkeypatch.setattr("ucseg_runtime.backends.tensorrt_engine.gpu_capability", lambda _: "8.6")
    monkeypatch.setenv("UCSEG_ENGINES", str(tmp_path / "engines"))
    result = prove(folder, study, "--engine", "tensorrt", "--precision", "tf32")
    assert result.exit_code == 4
    assert "UCSEG-E131" in result.stderr
    assert "in tf32 for compute capability 8.6. Build it here: ucseg-export tensorrt" in result.stderr


def test_engine_of_a_gpu_that_is_not_here_is_refused(folder: Path, study: Path) -> None:
    result = prove(folder, study, "--engine", "tensorrt", "--device", "99")
    assert result.exit_code == 5
    assert "UCSEG-E141" in result.stderr


def test_folder_without_volumes_is_refused(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    result = prove(folder, tmp_path / "empty")
    assert result.exit_code == 3
    assert not (folder / PROOFS_NAME).exists()


def test_prepared_cases_are_volumes(tmp_path: Path) -> None:
    geometry = VolumeGeometry(np.diag([2.0, 2.0, 2.0, 1.0]), (4, 5, 6))
    voxels = np.arange(120, dtype=np.float32).reshape(4, 5, 6)
    labels = np.zeros((4, 5, 6), dtype=np.uint8)
    for name in "ab":
        save_case(Case(name, voxels, labels, labels, geometry), tmp_path / f"{name}.npz")
    volumes = list(volumes_to_compare_on(tmp_path, manifest_of("CT")))
    assert [volume.voxels.shape for volume in volumes] == [(4, 5, 6)] * 2
    np.testing.assert_array_equal(volumes[0].voxels, voxels)


def test_other_modalities_need_volumes_of_the_users_own() -> None:
    with pytest.raises(InputError, match="no MR volumes.*--cases"):
        list(volumes_to_compare_on(None, manifest_of("MR")))


def test_clips_prove_an_engine_for_models_of_planes(tmp_path: Path) -> None:
    clip = ClipPhantom(frames=3)
    clip.write(tmp_path / "in" / "clip.dcm")
    model = load_model(colour_model().write(tmp_path / "model"))
    (volume,) = volumes_to_compare_on(tmp_path / "in", model.manifest)
    assert volume.voxels.shape == (3, 3, clip.rows, clip.columns)
    result = prove(tmp_path / "model", tmp_path / "in", "--engine", "onnxruntime")
    assert result.exit_code == 0, result.output
    assert load_model(tmp_path / "model").proofs.engines[0].cases[0].classes[0].dice == 1.0


def test_calibration_error_is_the_gap_between_confidence_and_accuracy() -> None:
    confidence = np.array([0.9] * 10 + [0.5] * 10, dtype=np.float32)
    correct = np.array([True] * 9 + [False] + [True] * 2 + [False] * 8)
    assert expected_calibration_error(confidence, correct) == pytest.approx((10 * 0.0 + 10 * 0.3) / 20, abs=1e-6)
    assert np.isnan(expected_calibration_error(np.empty(0, np.float32), np.empty(0, np.bool_)))
