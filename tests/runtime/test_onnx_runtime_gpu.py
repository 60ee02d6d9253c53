"""ONNX Runtime on GPUs: binding, which processors have too; what is refused; what a GPU has to show."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.model_phantom import ModelPhantom
from ucseg_runtime.arrays import Float32Array
from ucseg_runtime.backends import open_backend
from ucseg_runtime.backends.base import BackendInfo
from ucseg_runtime.backends.cuda import cuda_devices
from ucseg_runtime.backends.engines import engine_status, load_engine
from ucseg_runtime.backends.local import LocalBackend
from ucseg_runtime.backends.onnx_runtime import CPU_PROVIDER, load_onnxruntime
from ucseg_runtime.backends.onnx_runtime_bound import BoundSession, BoundTensor, Place
from ucseg_runtime.backends.onnx_runtime_gpu import (
    CUDA,
    TENSORRT,
    OnnxRuntimeGpuEngine,
    has_gpu_package,
    provider_settings,
    require_first,
)
from ucseg_runtime.backends.session import GraphFile, SessionSettings
from ucseg_runtime.config import EngineName, InferenceOptions, PrecisionChoice
from ucseg_runtime.errors import BackendError, BackendUnavailableError
from ucseg_runtime.manifest import MERGED, STAGES
from ucseg_runtime.model_folder import Model, load_model
from ucseg_runtime.segmentation import EngineInfo

PHANTOM = ModelPhantom(sharpness=8.0, tile_shape=(8, 12, 16))
INFO = BackendInfo(EngineInfo("bound", "0", "f32", "CPU"), batch_atol=0.0)
HAVE_GPU = cuda_devices() > 0 and has_gpu_package()
needs_gpu = pytest.mark.skipif(not HAVE_GPU, reason="this machine has no GPU, or onnxruntime is not that for GPUs")

without_gpu = pytest.mark.skipif(HAVE_GPU, reason="this machine has a GPU and the package for it")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return load_model(PHANTOM.write(tmp_path_factory.mktemp("models") / "phantom"))


@pytest.fixture
def tiles() -> Float32Array:
    return np.random.default_rng(0).random((3, 1, *PHANTOM.tile_shape), dtype=np.float32)


def bound(model: Model, key: str) -> BoundSession:
    runtime = load_onnxruntime()
    session = runtime.session(GraphFile(key, model.graph(key)), 1, [(CPU_PROVIDER, {})])
    return BoundSession(runtime, session, Place("cpu"))


def bound_backend(model: Model, *, staged: bool) -> LocalBackend:
    keys = STAGES if staged else (MERGED,)
    return LocalBackend(model.manifest, INFO, {key: bound(model, key) for key in keys})


@pytest.mark.parametrize("staged", [False, True], ids=["merged", "staged"])
def test_bound_tensors_give_the_very_bits_of_the_plain_run(model: Model, tiles: Float32Array, staged: bool) -> None:
    options = InferenceOptions(engine="onnxruntime", threads=1, gate=False)
    with open_backend(model, options, staged=staged) as plain:
        expected = plain.infer(tiles, with_logits=staged)
    found = bound_backend(model, staged=staged).infer(tiles, with_logits=staged)
    np.testing.assert_array_equal(found.probabilities, expected.probabilities)
    np.testing.assert_array_equal(found.uncertainty, expected.uncertainty)
    if staged:
        np.testing.assert_array_equal(np.asarray(found.logits_a), np.asarray(expected.logits_a))
        np.testing.assert_array_equal(np.asarray(found.fused_logits), np.asarray(expected.fused_logits))


def test_stages_take_results_from_where_they_lie(
    model: Model, tiles: Float32Array, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only what the caller gets is copied to the host: probabilities and uncertainty of every tile."""
    copied: list[tuple[int, ...]] = []
    original = BoundTensor.__array__

    def counted(self: BoundTensor, *arguments: object, **named: object) -> Float32Array:
        host = original(self, *arguments, **named)  # type: ignore[arg-type]
        copied.append(host.shape)
        return host

    monkeypatch.setattr(BoundTensor, "__array__", counted)
    bound_backend(model, staged=True).infer(tiles)
    assert copied == [(1, 3, 8, 12, 16), (1, 1, 8, 12, 16)] * len(tiles)


def test_a_stage_reads_the_memory_that_the_one_before_wrote(model: Model, tiles: Float32Array) -> None:
    subnet, other, upg = (bound(model, key) for key in ("subnet_a", "subnet_b", "upg"))
    logits = {**subnet.run({"IMAGE": tiles[:1]}), **other.run({"IMAGE": tiles[:1]})}
    upg.run(logits)
    written = logits["LOGITS_A"].value.data_ptr()
    subnet.run({"IMAGE": tiles[1:2]})
    assert logits["LOGITS_A"].value.data_ptr() == written, "memory is taken once"


def test_a_copy_on_the_host_outlives_the_next_run(model: Model, tiles: Float32Array) -> None:
    session = bound(model, "subnet_a")
    first = np.asarray(session.run({"IMAGE": tiles[:1]})["LOGITS_A"])
    before = first.copy()
    session.run({"IMAGE": tiles[1:2]})
    np.testing.assert_array_equal(first, before)


def test_sessions_of_one_graph_do_not_share_memory(model: Model, tiles: Float32Array) -> None:
    one = bound(model, "subnet_a")
    other = one.another()
    first, second = one.run({"IMAGE": tiles[:1]}), other.run({"IMAGE": tiles[1:2]})
    assert first["LOGITS_A"].value.data_ptr() != second["LOGITS_A"].value.data_ptr()
    np.testing.assert_array_equal(np.asarray(first["LOGITS_A"]), np.asarray(one.run({"IMAGE": tiles[:1]})["LOGITS_A"]))


def test_read_only_tiles_are_accepted_and_not_changed(model: Model, tiles: Float32Array) -> None:
    before = tiles.copy()
    tiles.setflags(write=False)
    bound_backend(model, staged=False).infer(tiles)
    np.testing.assert_array_equal(tiles, before)


def test_failure_on_a_tile_is_a_backend_error_with_its_cause(model: Model, tiles: Float32Array) -> None:
    session = bound(model, "merged")
    with pytest.raises(BackendError, match="onnxruntime failed on a tile") as caught:
        session.run({"IMAGE": tiles[:1, :, :4]})
    assert caught.value.__cause__ is not None
    assert np.asarray(session.run({"IMAGE": tiles[:1]})["UNCERTAINTY"]).shape == (1, 1, 8, 12, 16)


@without_gpu
def test_memory_that_the_device_has_not_is_a_backend_error(model: Model) -> None:
    runtime = load_onnxruntime()
    session = runtime.session(GraphFile("merged", model.graph("merged")), 1, [(CPU_PROVIDER, {})])
    with pytest.raises(BackendError, match="no memory for a tile on the device"):
        BoundSession(runtime, session, Place("cuda"))


@pytest.mark.skipif(has_gpu_package(), reason="onnxruntime is that for GPUs")
@pytest.mark.parametrize("name", ["onnxruntime-cuda", "onnxruntime-tensorrt"])
def test_package_for_processors_is_named_as_what_is_in_the_way(name: EngineName) -> None:
    with pytest.raises(BackendUnavailableError, match=r"ucseg\[cuda\]' after pip uninstall onnxruntime: both own"):
        load_engine(name)
    status = {item.name: item for item in engine_status()}[name]
    assert (status.version, status.precisions) == ("", ())
    assert "needs the 'cuda' extra" in status.reason


@without_gpu
def test_package_that_was_made_without_the_provider_is_refused() -> None:
    """Both packages installed, and the files are those of the one without CUDA."""
    with pytest.raises(BackendUnavailableError, match=r"has no CUDAExecutionProvider; it has .*own the same module"):
        OnnxRuntimeGpuEngine(CUDA)


@without_gpu
def test_session_that_fell_back_is_refused(model: Model) -> None:
    with pytest.warns(UserWarning, match="CUDAExecutionProvider"):  # all that ONNX Runtime itself does
        session = load_onnxruntime().session(
            GraphFile("merged", model.graph("merged")), 1, [("CUDAExecutionProvider", {})]
        )
    with pytest.raises(BackendUnavailableError, match="cannot use CUDAExecutionProvider here; it took CPU"):
        require_first(session.get_providers(), "CUDAExecutionProvider")


def test_providers_come_in_their_order_with_device_precision_and_limit(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("UCSEG_ENGINES", str(tmp_path))
    graph = GraphFile("merged", b"", "ab" * 32)
    ((name, settings),) = provider_settings(CUDA, 1, graph, SessionSettings("tf32", 1))
    assert (name, settings) == ("CUDAExecutionProvider", {"device_id": "1", "use_tf32": "1"})

    first, second = provider_settings(TENSORRT, 0, graph, SessionSettings("fp16", 1, gpu_memory_mb=512))
    assert (first[0], second[0]) == ("TensorrtExecutionProvider", "CUDAExecutionProvider")
    assert first[1]["trt_fp16_enable"] == "1"
    assert first[1]["trt_max_workspace_size"] == second[1]["gpu_mem_limit"] == str(512 * 2**20)
    assert second[1]["use_tf32"] == "0"
    assert first[1]["trt_engine_cache_path"] == str(tmp_path / "onnxruntime" / ("ab" * 32) / "merged")


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("staged", [False, True], ids=["merged", "staged"])
@pytest.mark.parametrize(
    ("engine", "precision", "atol"),
    [
        ("onnxruntime-cuda", "f32", 1e-5),
        ("onnxruntime-cuda", "tf32", 1e-2),
        ("onnxruntime-tensorrt", "tf32", 1e-2),
        ("onnxruntime-tensorrt", "fp16", 3e-2),
    ],
)
def test_gpu_computes_what_the_processor_computes(
    model: Model, tiles: Float32Array, engine: EngineName, precision: PrecisionChoice, atol: float, staged: bool
) -> None:
    with open_backend(model, InferenceOptions(engine="onnxruntime", gate=False), staged=staged) as reference:
        expected = reference.infer(tiles)
    options = InferenceOptions(engine=engine, precision=precision, gate=False, gpu_memory_mb=1024)
    with open_backend(model, options, staged=staged) as backend:
        found = backend.infer(tiles)
        assert backend.info.engine.device.startswith("GPU sm")
    np.testing.assert_allclose(found.probabilities, expected.probabilities, atol=atol)
    np.testing.assert_allclose(found.uncertainty, expected.uncertainty, atol=atol)
