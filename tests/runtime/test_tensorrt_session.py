"""TensorRT's session: what can be said without a GPU, and what a machine with one has to show."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from typer.testing import CliRunner

from tests.model_phantom import ModelPhantom
from tests.phantoms import CtPhantom, write_ct_series
from ucseg_runtime.backends import open_backend
from ucseg_runtime.backends.cuda import Stream, cuda_devices
from ucseg_runtime.backends.engines import load_engine
from ucseg_runtime.backends.session import GraphFile, SessionSettings
from ucseg_runtime.backends.tensorrt_engine import TensorRtSession
from ucseg_runtime.config import InferenceOptions, PrecisionChoice
from ucseg_runtime.errors import BackendError, BackendUnavailableError
from ucseg_runtime.model_folder import default_model_folder, load_model

HAVE_GPU = cuda_devices() > 0
needs_gpu = pytest.mark.skipif(not HAVE_GPU, reason="this machine has no GPU")


def test_missing_bindings_are_named_with_their_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", None)
    with pytest.raises(BackendUnavailableError, match=r"pip install 'ucseg\[tensorrt\]'"):
        Stream()
    assert cuda_devices() == 0


class RecordingRuntime:
    """The CUDA runtime as far as a stream uses it; notes which device each call meets in its thread."""

    cudaError_t = SimpleNamespace(cudaSuccess=0)  # noqa: N815  (the runtime's word)
    cudaStreamCaptureMode = SimpleNamespace(cudaStreamCaptureModeThreadLocal=1)  # noqa: N815

    def __init__(self) -> None:
        self.calls: list[tuple[str, int]] = []
        self._thread = threading.local()

    def cudaSetDevice(self, device: int) -> tuple[int]:  # noqa: N802  (the runtime's word)
        self._thread.device = device
        return (0,)

    def __getattr__(self, name: str) -> Callable[..., tuple[int, int]]:
        def call(*_: object) -> tuple[int, int]:
            self.calls.append((name, getattr(self._thread, "device", 0)))
            return 0, 1

        return call


def test_tiles_run_on_the_chosen_gpu_whichever_thread_they_come_from(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every thread starts with the first GPU as its current one, and backends run tiles in threads of their own."""
    runtime = RecordingRuntime()
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", runtime)
    with Stream(device=1) as stream:
        stream.record(lambda: None)
        with ThreadPoolExecutor(1) as workers:
            workers.submit(stream.replay).result()
    assert ("cudaGraphLaunch", 1) in runtime.calls
    assert {device for _, device in runtime.calls} == {1}


@pytest.mark.parametrize(("builder", "extra"), [("tensorrt", "tensorrt"), ("tensorrt_rtx", "tensorrt-rtx")])
def test_missing_tensorrt_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch, builder: str, extra: str) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    monkeypatch.setitem(sys.modules, "tensorrt_rtx_bindings", None)
    with pytest.raises(BackendUnavailableError, match=rf"pip install 'ucseg\[{extra}\]'"):
        TensorRtSession(b"plan", builder)


@pytest.mark.skipif(HAVE_GPU, reason="this machine has a GPU")
def test_machine_without_a_gpu_is_a_clear_error() -> None:
    pytest.importorskip("cuda.bindings.runtime")
    with pytest.raises(BackendError, match="cudaSetDevice failed on the GPU: cuda"):
        Stream()


def test_names_of_tensorrt_rtx_that_the_session_uses_exist() -> None:
    rtx = pytest.importorskip("tensorrt_rtx_bindings", reason="the extra tensorrt-rtx is not installed")
    assert rtx.DynamicShapesKernelSpecializationStrategy.EAGER
    assert hasattr(rtx.IRuntimeConfig, "dynamic_shapes_kernel_specialization_strategy")
    assert hasattr(rtx.ICudaEngine, "create_runtime_config")
    assert hasattr(rtx.Runtime, "engine_host_code_allowed")


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize(("precision", "atol"), [("fp32", 1e-3), ("tf32", 2e-2), ("fp16", 3e-2)])
def test_engine_computes_what_onnx_runtime_computes(precision: str, atol: float) -> None:
    to_tensorrt = pytest.importorskip("ucseg_export.to_tensorrt")
    tensorrt_builder = pytest.importorskip("ucseg_export.tensorrt_builder")
    builder = tensorrt_builder.load_builder()
    model = load_model(default_model_folder())
    built = to_tensorrt.build_engine(
        model.graph("merged"), "merged", model.manifest, tensorrt_builder.BuildOptions(precision=precision), builder
    )
    reference = load_engine("onnxruntime").open_session(
        GraphFile("merged", model.graph("merged")), SessionSettings("f32", 1)
    )
    session = TensorRtSession(built.plan, builder.name)
    try:
        assert session.signature == reference.signature
        rng = np.random.default_rng(0)
        for _ in range(3):  # the replayed graph reads new tiles
            tile = {"IMAGE": rng.standard_normal((1, 1, *model.manifest.tiling.tile_shape), dtype=np.float32)}
            found, expected = session.run(tile), reference.run(tile)
            for name in expected:
                np.testing.assert_allclose(found[name], expected[name], atol=atol)
    finally:
        session.close()


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize(("built", "precision"), [("fp32", "f32"), ("tf32", "tf32")])
def test_engine_built_here_is_proved_and_then_serves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, built: str, precision: PrecisionChoice
) -> None:
    export = pytest.importorskip("ucseg_export.cli.app").app
    monkeypatch.setenv("UCSEG_ENGINES", str(tmp_path / "engines"))
    folder = ModelPhantom(tile_shape=(16, 32, 32)).write(tmp_path / "model")
    write_ct_series(tmp_path / "study", CtPhantom(shape=(20, 40, 48)))
    for arguments in (
        ["tensorrt", str(folder), "--precision", built],
        ["prove", str(folder), "--engine", "tensorrt", "--cases", str(tmp_path / "study")],
    ):
        result = CliRunner().invoke(export, arguments)
        assert result.exit_code == 0, result.output
    with open_backend(load_model(folder), InferenceOptions(engine="tensorrt")) as backend:
        engine = backend.info.engine
    assert (engine.precision, engine.proven) == (precision, True)
    assert engine.device.startswith("GPU sm")
    assert "+" in engine.version
