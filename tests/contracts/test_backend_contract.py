"""What every backend promises, clause by clause, on every engine of this machine."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from tests.model_phantom import ModelPhantom, replace_artifact
from tests.served_phantom import PHANTOM, ServedPhantom
from ucseg_runtime.backends import Backend, engine_status, installed_engines, open_backend
from ucseg_runtime.config import EngineChoice, InferenceOptions, PrecisionChoice
from ucseg_runtime.errors import ArtifactMismatchError, BackendError, BackendUnavailableError, TileShapeError
from ucseg_runtime.evidence import evidence_from_logits, probabilities_from_logits
from ucseg_runtime.model_folder import Model, load_model
from ucseg_runtime.server_options import TritonServer, server_address

HAVE_BF16 = any("bf16" in status.precisions for status in engine_status() if status.name == "openvino")
ENGINES: tuple[EngineChoice, ...] = ("openvino", "onnxruntime")


@dataclass(frozen=True)
class Case:
    """One way to run a model, and how near to the reference it must come."""

    engine: EngineChoice
    precision: PrecisionChoice
    staged: bool
    atol: float
    threads: int = 1

    @property
    def engine_name(self) -> str:
        return self.engine

    @property
    def parallel_tiles(self) -> int:
        return 2 if self.engine == "openvino" and self.threads > 1 else 1

    def open(self, model: Model, request: pytest.FixtureRequest) -> AbstractContextManager[Backend]:
        options = InferenceOptions(engine=self.engine, precision=self.precision, threads=self.threads, gate=False)
        return open_backend(model, options, staged=self.staged)


@dataclass(frozen=True)
class TritonCase:
    """A real server on loopback that runs the stages."""

    scheme: Literal["grpc", "http"]
    shared_memory: bool = False
    staged: bool = True
    precision: PrecisionChoice = "f32"
    atol: float = 2e-6
    engine_name: str = "triton-openvino"
    parallel_tiles: int = 2  # requests in flight, of one tile each on a processor

    def open(self, model: Model, request: pytest.FixtureRequest) -> AbstractContextManager[Backend]:
        served: ServedPhantom = request.getfixturevalue("served_phantom")
        assert served.model.digest == model.digest
        address = server_address(served.url(self.scheme))
        server = TritonServer((address,), timeout_s=60.0, shared_memory=self.shared_memory)
        return open_backend(model, InferenceOptions(server=server))


F32_ATOL = 2e-6
"""float32 keeps 24 bits; softmax and softplus of these logits lose a few of them."""
BF16_ATOL = 3e-2
"""bfloat16 keeps 8 bits: logits up to 8 are off by 0.03, and a probability by at most a quarter of that per stage."""

CASES = [
    pytest.param(Case("openvino", "f32", False, F32_ATOL), id="openvino f32 merged"),
    pytest.param(Case("openvino", "f32", True, F32_ATOL), id="openvino f32 staged"),
    pytest.param(Case("openvino", "f32", False, F32_ATOL, threads=2), id="openvino f32 merged, two tiles at once"),
    pytest.param(Case("openvino", "f32", True, F32_ATOL, threads=2), id="openvino f32 staged, two tiles at once"),
    pytest.param(
        Case("openvino", "bf16", False, BF16_ATOL),
        id="openvino bf16 merged",
        marks=pytest.mark.skipif(not HAVE_BF16, reason="this processor has no bfloat16"),
    ),
    pytest.param(
        Case("openvino", "bf16", True, BF16_ATOL),
        id="openvino bf16 staged",
        marks=pytest.mark.skipif(not HAVE_BF16, reason="this processor has no bfloat16"),
    ),
    pytest.param(Case("onnxruntime", "f32", False, F32_ATOL), id="onnxruntime merged"),
    pytest.param(Case("onnxruntime", "f32", True, F32_ATOL), id="onnxruntime staged"),
    pytest.param(TritonCase("grpc"), id="triton grpc"),
    pytest.param(TritonCase("http"), id="triton http"),
    pytest.param(TritonCase("grpc", shared_memory=True), id="triton shared memory"),
]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return load_model(PHANTOM.write(tmp_path_factory.mktemp("models") / "phantom"))


@pytest.fixture(scope="module", params=CASES)
def case(request: pytest.FixtureRequest) -> Case | TritonCase:
    return request.param


@pytest.fixture(scope="module")
def backend(case: Case | TritonCase, model: Model, request: pytest.FixtureRequest) -> Iterator[Backend]:
    with case.open(model, request) as ready:
        yield ready


@pytest.fixture
def tiles() -> np.ndarray:
    return np.random.default_rng(0).random((5, 1, *PHANTOM.tile_shape), dtype=np.float32)


def test_results_are_those_of_the_reference(backend: Backend, case: Case | TritonCase, tiles: np.ndarray) -> None:
    output = backend.infer(tiles)
    logits = PHANTOM.fused_logits(tiles)
    assert output.probabilities.dtype == output.uncertainty.dtype == np.float32
    np.testing.assert_allclose(output.probabilities, probabilities_from_logits(logits, "softmax"), atol=case.atol)
    np.testing.assert_allclose(output.uncertainty, evidence_from_logits(logits).uncertainty, atol=case.atol)


def test_order_of_the_tiles_is_kept(backend: Backend) -> None:
    values = np.array([0.0, 1.0, 0.5, 1.0, 0.5], dtype=np.float32)
    tiles = np.ones((5, 1, *PHANTOM.tile_shape), dtype=np.float32) * values.reshape(5, 1, 1, 1, 1)
    labels = backend.infer(tiles).probabilities.argmax(axis=1)
    np.testing.assert_array_equal(labels[:, 0, 0, 0], [0, 2, 1, 2, 1])


def test_results_belong_to_the_caller(backend: Backend, tiles: np.ndarray) -> None:
    first = backend.infer(tiles)
    copies = first.probabilities.copy(), first.uncertainty.copy()
    second = backend.infer(1 - tiles)
    np.testing.assert_array_equal(first.probabilities, copies[0])
    np.testing.assert_array_equal(first.uncertainty, copies[1])
    assert not np.shares_memory(first.probabilities, second.probabilities)
    first.probabilities[...] = 0.0
    np.testing.assert_array_equal(backend.infer(tiles).probabilities, copies[0])


def test_tiles_are_not_changed(backend: Backend, tiles: np.ndarray) -> None:
    before = tiles.copy()
    backend.infer(tiles)
    np.testing.assert_array_equal(tiles, before)


def test_read_only_tiles_are_accepted(backend: Backend, tiles: np.ndarray) -> None:
    expected = backend.infer(tiles).probabilities
    tiles.setflags(write=False)
    np.testing.assert_array_equal(backend.infer(tiles).probabilities, expected)


def test_splitting_a_batch_changes_nothing_beyond_the_promise(backend: Backend, tiles: np.ndarray) -> None:
    whole = backend.infer(tiles)
    parts = [backend.infer(tiles[first : first + 2]) for first in (0, 2, 4)]
    for name in ("probabilities", "uncertainty"):
        joined = np.concatenate([getattr(part, name) for part in parts])
        np.testing.assert_allclose(joined, getattr(whole, name), rtol=0, atol=backend.info.batch_atol)


@pytest.mark.parametrize(
    ("build", "found"),
    [
        pytest.param(lambda t: t.astype(np.float64), "float64, C-contiguous", id="float64"),
        pytest.param(lambda t: t.astype(np.float16), "float16, C-contiguous", id="float16"),
        pytest.param(lambda t: t[..., ::-1], "float32, not C-contiguous", id="reversed view"),
        pytest.param(lambda t: t[..., :-1].copy(), r"shape \(5, 1, 8, 12, 15\)", id="too small"),
        pytest.param(lambda t: t.transpose(0, 1, 4, 3, 2).copy(), r"shape \(5, 1, 16, 12, 8\)", id="axes exchanged"),
        pytest.param(lambda t: t[:, 0], r"shape \(5, 8, 12, 16\)", id="no channel axis"),
        pytest.param(lambda t: np.concatenate([t, t], axis=1), r"shape \(5, 2, 8, 12, 16\)", id="two channels"),
        pytest.param(lambda t: t[:0], r"shape \(0, 1, 8, 12, 16\)", id="no tiles"),
    ],
)
def test_other_shapes_types_and_layouts_are_refused_and_the_backend_stays_usable(
    backend: Backend, tiles: np.ndarray, build: object, found: str
) -> None:
    assert callable(build)
    with pytest.raises(TileShapeError, match=found) as caught:
        backend.infer(build(tiles))
    assert "expected float32, C-contiguous, of shape (tiles, 1, 8, 12, 16)" in str(caught.value)
    assert backend.infer(tiles).probabilities.shape == (5, 3, 8, 12, 16)


def test_logits_come_on_request_from_the_stages_and_never_otherwise(
    backend: Backend, case: Case | TritonCase, tiles: np.ndarray
) -> None:
    assert backend.infer(tiles).fused_logits is None
    if not case.staged:
        with pytest.raises(BackendError, match="staged=True"):
            backend.infer(tiles, with_logits=True)
        return
    output = backend.infer(tiles, with_logits=True)
    fused = PHANTOM.fused_logits(tiles)
    atol = case.atol * PHANTOM.sharpness
    assert output.logits_a is not None
    assert output.logits_b is not None
    assert output.fused_logits is not None
    np.testing.assert_allclose(output.logits_a, fused, atol=atol)
    np.testing.assert_allclose(output.logits_b, 2 * fused, atol=2 * atol)
    np.testing.assert_allclose(output.fused_logits, fused, atol=atol)


def test_info_says_what_really_computes(backend: Backend, case: Case | TritonCase) -> None:
    engine = backend.info.engine
    assert (engine.name, engine.precision, engine.device) == (case.engine_name, case.precision, "CPU")
    assert engine.version[0].isdigit()


def test_as_many_tiles_run_at_once_as_the_engine_likes(backend: Backend, case: Case | TritonCase) -> None:
    assert backend.info.parallel_tiles == case.parallel_tiles


def test_closed_backend_is_refused(
    case: Case | TritonCase, model: Model, tiles: np.ndarray, request: pytest.FixtureRequest
) -> None:
    with case.open(model, request) as backend:
        pass
    with pytest.raises(BackendError, match="closed"):
        backend.infer(tiles)


def failing_on_bright_tiles() -> bytes:
    """A merged graph that only runs where the greatest voxel is 16: it multiplies a list that long by 16 numbers."""
    shape = ("tiles", 1, *PHANTOM.tile_shape)
    nodes = [
        helper.make_node("ReduceMax", ["IMAGE"], ["greatest"], keepdims=0),
        helper.make_node("Range", ["zero", "greatest", "one"], ["list"]),
        helper.make_node("Mul", ["list", "sixteen"], ["products"]),
        helper.make_node("ReduceSum", ["products"], ["sum"], keepdims=0),
        helper.make_node("Mul", ["sum", "tiny"], ["nothing"]),
        helper.make_node("Add", ["IMAGE", "nothing"], ["UNCERTAINTY"]),
        helper.make_node("Concat", ["UNCERTAINTY"] * 3, ["PROBABILITIES"], axis=1),
    ]
    constants = [
        helper.make_tensor("zero", TensorProto.FLOAT, [], [0.0]),
        helper.make_tensor("one", TensorProto.FLOAT, [], [1.0]),
        helper.make_tensor("sixteen", TensorProto.FLOAT, [16], [1.0] * 16),
        helper.make_tensor("tiny", TensorProto.FLOAT, [], [1e-30]),
    ]
    graph = helper.make_graph(
        nodes,
        "failing",
        [helper.make_tensor_value_info("IMAGE", TensorProto.FLOAT, shape)],
        [
            helper.make_tensor_value_info("PROBABILITIES", TensorProto.FLOAT, ("tiles", 3, *PHANTOM.tile_shape)),
            helper.make_tensor_value_info("UNCERTAINTY", TensorProto.FLOAT, shape),
        ],
        constants,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8).SerializeToString()


@pytest.mark.parametrize("engine", ENGINES)
def test_failure_on_a_tile_is_a_backend_error_with_its_cause(tmp_path: Path, engine: EngineChoice) -> None:
    folder = PHANTOM.write(tmp_path / "phantom")
    replace_artifact(folder, "merged", failing_on_bright_tiles())
    with open_backend(load_model(folder), InferenceOptions(engine=engine, gate=False)) as backend:
        good = np.full((1, 1, *PHANTOM.tile_shape), 16.0, dtype=np.float32)
        assert backend.infer(good).uncertainty.max() == 16.0
        with pytest.raises(BackendError, match=f"{engine} failed on a tile") as caught:
            backend.infer(good - 1)
        assert caught.value.__cause__ is not None
        assert backend.infer(good).uncertainty.max() == 16.0


@pytest.mark.parametrize("engine", ENGINES)
def test_graph_that_the_engine_cannot_run_is_a_backend_error_with_its_cause(
    tmp_path: Path, engine: EngineChoice
) -> None:
    folder = PHANTOM.write(tmp_path / "phantom")
    graph = onnx.load(folder / "merged.onnx")
    graph.graph.node[0].op_type = "NoSuchOperator"
    replace_artifact(folder, "merged", graph.SerializeToString())
    model = load_model(folder)
    with (
        pytest.raises(BackendError, match=engine) as caught,
        open_backend(model, InferenceOptions(engine=engine, gate=False)),
    ):
        pytest.fail("a graph that cannot run was opened")
    assert caught.value.__cause__ is not None


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(
    ("other", "key", "reason"),
    [
        (
            ModelPhantom(tile_shape=(8, 12, 20)),
            "merged",
            r"IMAGE of shape \(tiles, 1, 8, 12, 20\).*\(tiles, 1, 8, 12, 16\)",
        ),
        (
            ModelPhantom(centres=(0.0, 1.0), tile_shape=(8, 12, 16)),
            "merged",
            r"PROBABILITIES of shape \(tiles, 2,.*\(tiles, 3",
        ),
        (
            PHANTOM,
            "subnet_a",
            "tensors IMAGE → LOGITS_A; the manifest needs tensors IMAGE → PROBABILITIES, UNCERTAINTY",
        ),
    ],
    ids=["another tile shape", "another number of classes", "another graph"],
)
def test_graph_with_other_tensors_than_the_manifest_says_is_refused(
    tmp_path: Path, engine: EngineChoice, other: ModelPhantom, key: str, reason: str
) -> None:
    folder = PHANTOM.write(tmp_path / "phantom")
    foreign = other.write(tmp_path / "other") / f"{key}.onnx"
    replace_artifact(folder, "merged", foreign.read_bytes())
    model = load_model(folder)
    with (
        pytest.raises(ArtifactMismatchError, match=reason),
        open_backend(model, InferenceOptions(engine=engine, gate=False)),
    ):
        pytest.fail("a graph of another model was opened")


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("staged", [False, True], ids=["merged", "staged"])
def test_axes_of_an_xyz_network_are_turned_and_its_results_turned_back(
    tmp_path: Path, engine: EngineChoice, staged: bool
) -> None:
    tiles = np.random.default_rng(0).random((2, 1, 8, 12, 16), dtype=np.float32)
    options = InferenceOptions(engine=engine, precision="f32", gate=False)
    outputs = {}
    for axis_order in ("zyx", "xyz"):
        phantom = ModelPhantom(sharpness=8.0, tile_shape=(8, 12, 16), axis_order=axis_order, ramp=0.05)
        folder = phantom.write(tmp_path / axis_order)
        with open_backend(load_model(folder), options, staged=staged) as backend:
            outputs[axis_order] = backend.infer(tiles).probabilities
    for axis_order, axis in (("zyx", -3), ("xyz", -1)):
        steps = np.arange(tiles.shape[axis], dtype=np.float32)
        ramp = np.float32(0.05) * np.moveaxis(steps.reshape(-1, 1, 1), 0, axis)
        expected = probabilities_from_logits(PHANTOM.fused_logits(tiles + ramp), "softmax")
        np.testing.assert_allclose(outputs[axis_order], expected, atol=F32_ATOL)


@pytest.mark.parametrize("engine", ENGINES)
def test_sigmoid_model_gives_the_foreground_alone(tmp_path: Path, engine: EngineChoice) -> None:
    phantom = ModelPhantom(centres=(0.0, 1.0), activation="sigmoid", sharpness=8.0, tile_shape=(4, 4, 4))
    tiles = np.random.default_rng(0).random((2, 1, 4, 4, 4), dtype=np.float32)
    with open_backend(
        load_model(phantom.write(tmp_path / "binary")), InferenceOptions(engine=engine, gate=False)
    ) as backend:
        output = backend.infer(tiles)
    expected = probabilities_from_logits(phantom.fused_logits(tiles), "sigmoid")
    np.testing.assert_allclose(output.probabilities, expected, atol=BF16_ATOL)


def test_missing_engine_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch, model: Model) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with (
        pytest.raises(BackendUnavailableError) as caught,
        open_backend(model, InferenceOptions(engine="onnxruntime")),
    ):
        pytest.fail("a missing engine was opened")
    assert str(caught.value).startswith(
        "The onnxruntime engine needs the 'onnxruntime' extra: pip install 'ucseg[onnxruntime]' (found: openvino"
    )
    assert {status.name: status.reason for status in engine_status()}["onnxruntime"] == str(caught.value)


def test_status_lists_versions_and_precisions() -> None:
    status = {item.name: item for item in engine_status()}
    assert tuple(status)[:2] == ENGINES == installed_engines()[:2]
    assert all(
        item.version and not item.reason and "f32" in item.precisions for item in map(status.get, ENGINES) if item
    )
    assert all(bool(item.version) != bool(item.reason) for item in status.values())


def test_bf16_that_the_engine_lacks_is_refused_when_asked_for(model: Model) -> None:
    options = InferenceOptions(engine="onnxruntime", precision="bf16")
    with pytest.raises(BackendUnavailableError, match="no bf16.*has f32"), open_backend(model, options):
        pytest.fail("a precision that is not there was opened")


def run_python(code: str, home: Path) -> str:
    """Run a program in a fresh interpreter with an empty home folder."""
    result = subprocess.run(
        [sys.executable, "-c", code],
        check=True,
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[2],
        env={"HOME": str(home), "PATH": "/usr/bin:/bin"},
    )
    return result.stdout


def test_listing_engines_imports_none_of_them(tmp_path: Path) -> None:
    code = (
        "import sys\n"
        "from ucseg_runtime.backends import installed_engines\n"
        "heavy = ('openvino', 'onnxruntime', 'tensorrt', 'tensorrt_rtx_bindings', 'cuda')\n"
        "print(installed_engines()[:2], [name for name in heavy if name in sys.modules])\n"
    )
    assert run_python(code, tmp_path).strip() == "('openvino', 'onnxruntime') []"


@pytest.mark.parametrize("engine", ENGINES)
def test_engines_report_to_nobody(tmp_path: Path, model: Model, engine: EngineChoice) -> None:
    # Both packages mark the home folder before they send; OpenVINO sends from a package of its own.
    code = (
        "import sys\n"
        "from pathlib import Path\n"
        "from ucseg_runtime.backends import open_backend\n"
        "from ucseg_runtime.config import InferenceOptions\n"
        "from ucseg_runtime.model_folder import load_model\n"
        f"options = InferenceOptions(engine={engine!r}, gate=False)\n"
        f"with open_backend(load_model(Path({str(model.folder)!r})), options) as backend:\n"
        "    print(backend.info.engine.name)\n"
        "print([name for name in sys.modules if name.startswith('openvino_telemetry')])\n"
    )
    assert run_python(code, tmp_path).split() == [engine, "[]"]
    assert list(tmp_path.iterdir()) == []
