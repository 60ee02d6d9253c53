"""Engines built by the real parser and builder, without a GPU, for a named compute capability."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from typer.testing import CliRunner

from tests.export.conftest import PLANAR, Exported, description, trained_like
from tests.model_phantom import ModelPhantom
from ucseg_export.cli.app import app
from ucseg_export.half_precision import with_half_convolutions
from ucseg_export.to_onnx import onnx_graphs
from ucseg_export.to_tensorrt import BuildOptions, EnginePrecision, build_engine, load_builder, trtexec_line
from ucseg_runtime.backends.engine_cache import RECORD_NAME, EngineKey, load_engine_plan, save_engines
from ucseg_runtime.errors import AccuracyGateError, BackendError, BackendUnavailableError, EngineMismatchError
from ucseg_runtime.manifest import ModelSpec
from ucseg_runtime.model_folder import default_model_folder, load_model
from ucseg_training.nets import TrioConfig

pytest.importorskip("tensorrt_rtx_bindings", reason="the extra tensorrt-rtx is not installed")

FOR_AMPERE = BuildOptions(compute_capability="8.6")
KEY = EngineKey("ab" * 32, "tensorrt_rtx", "1.7", "8.6", "fp16", 4)


def build_all(graphs: dict[str, bytes], spec: ModelSpec, precision: EnginePrecision) -> dict[str, dict[str, int]]:
    options = BuildOptions(precision=precision, compute_capability="8.6", max_batch=2)
    engines = {key: build_engine(graph, key, spec, options, load_builder()) for key, graph in graphs.items()}
    assert all(len(engine.plan) > 10_000 for engine in engines.values())
    return {key: dict(engine.layers) for key, engine in engines.items()}


@pytest.mark.parametrize("precision", ["fp32", "tf32", "fp16"])
def test_every_graph_of_the_demo_model_is_built(precision: EnginePrecision) -> None:
    model = load_model(default_model_folder())
    layers = build_all({key: model.graph(key) for key in model.manifest.artifacts}, model.manifest, precision)
    for key in ("subnet_a", "subnet_b", "merged"):
        assert (layers[key].get("CONVOLUTION HALF", 0) > 0) == (precision == "fp16")
    # The logits, the UPG and everything that sums stays in float32.
    sensitive = ("POOLING", "REDUCE", "UNARY", "SOFTMAX", "MATRIX_MULTIPLY", "RESIZE")
    assert not [kind for kind in layers["merged"] if kind.endswith("HALF") and kind.startswith(sensitive)]
    assert layers["upg"]["CONVOLUTION FLOAT"] == 6


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_every_graph_of_the_full_size_trio_is_built(full_size: Exported, precision: EnginePrecision) -> None:
    layers = build_all(full_size.graphs, full_size.spec, precision)
    assert sum(layers["merged"].values()) > 400


@pytest.fixture(scope="module")
def full_size() -> Exported:
    net = trained_like(TrioConfig(dim=3, in_channels=1, num_classes=2, tile_shape=(96, 96, 96)))
    return Exported(net, ModelSpec.model_validate(description(net.config)), onnx_graphs(net))


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_every_graph_of_a_trio_for_planes_is_built(
    all_exported: dict[str, Exported], precision: EnginePrecision
) -> None:
    planar = all_exported["planar"]
    assert planar.net.config == PLANAR
    build_all(planar.graphs, planar.spec, precision)


def test_half_convolutions_change_the_results_little_and_the_tensors_not(softmax: Exported) -> None:
    graph, half = softmax.graphs["merged"], with_half_convolutions(softmax.graphs["merged"])
    onnx.checker.check_model(onnx.load_from_string(half), full_check=True)
    tile = np.random.default_rng(0).standard_normal((1, 1, 32, 32, 32), dtype=np.float32)
    results = [
        onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"]).run(None, {"IMAGE": tile})
        for content in (graph, half)
    ]
    for full, other in zip(*results, strict=True):
        assert other.dtype == np.float32
        assert 0.0 < np.abs(full - other).max() < 0.02


def test_only_convolutions_and_what_joins_them_compute_in_half(softmax: Exported) -> None:
    model = onnx.load_from_string(with_half_convolutions(softmax.graphs["merged"]))
    inferred = onnx.shape_inference.infer_shapes(model).graph
    half = {item.name for item in inferred.value_info if item.type.tensor_type.elem_type == onnx.TensorProto.FLOAT16}
    found = {node.op_type for node in inferred.node if set(node.output) & half}
    assert {"Conv", "ConvTranspose"} <= found <= {"Conv", "ConvTranspose", "Relu", "MaxPool", "Concat", "Add", "Cast"}
    parts = {
        node.name.partition("/")[0] for node in inferred.node if set(node.output) & half and node.op_type == "Conv"
    }
    assert parts == {"subnet_a", "subnet_b"}


def test_graph_without_a_subnet_is_computed_as_before(softmax: Exported) -> None:
    operators = [node.op_type for node in onnx.load_from_string(softmax.graphs["upg"]).graph.node]
    half = onnx.load_from_string(with_half_convolutions(softmax.graphs["upg"]))
    assert [node.op_type for node in half.graph.node] == operators


def test_graph_that_cannot_be_parsed_is_refused_in_the_builders_words() -> None:
    model = load_model(default_model_folder())
    graph = onnx.load_from_string(model.graph("merged"))
    graph.graph.node[0].op_type = "NoSuchOperator"
    with pytest.raises(BackendError, match="cannot parse graph merged: .*NoSuchOperator"):
        build_engine(graph.SerializeToString(), "merged", model.manifest, FOR_AMPERE, load_builder())


def test_graph_with_other_tensors_is_refused() -> None:
    model = load_model(default_model_folder())
    other = model.manifest.model_copy(update={"classes": model.manifest.classes[:3]})
    with pytest.raises(BackendError, match=r"merged has PROBABILITIES of shape \(-1, 6.*expected \(-1, 4"):
        build_engine(model.graph("merged"), "merged", other, FOR_AMPERE, load_builder())


def test_unknown_compute_capability_is_refused_with_those_there_are() -> None:
    model = load_model(default_model_folder())
    options = BuildOptions(compute_capability="9.9")
    with pytest.raises(BackendUnavailableError, match=r"no compute capability 9\.9.*8\.6"):
        build_engine(model.graph("decode"), "decode", model.manifest, options, load_builder())


def test_command_keeps_engines_outside_the_model_folder(tmp_path: Path) -> None:
    folder = default_model_folder()
    before = sorted(path.name for path in folder.iterdir())
    arguments = ["tensorrt", str(folder), "--compute-capability", "8.6", "--out", str(tmp_path), "--json"]
    printed = json.loads(CliRunner().invoke(app, arguments).stdout)

    assert sorted(path.name for path in folder.iterdir()) == before
    model = load_model(folder)
    key = EngineKey(model.digest, "tensorrt_rtx", load_builder().version, "8.6", "fp16", 4)
    for name, found in printed["engines"].items():
        assert len(load_engine_plan(tmp_path, key, name)) == found["bytes"]
    assert printed["trtexec"]["merged"] == (
        "trtexec --onnx=merged.onnx --stronglyTyped --minShapes=IMAGE:1x1x64x80x80 --optShapes=IMAGE:4x1x64x80x80 "
        "--maxShapes=IMAGE:4x1x64x80x80 --noTF32 --saveEngine=merged.plan"
    )


def test_line_of_the_tool_names_the_options() -> None:
    spec = load_model(default_model_folder()).manifest
    options = BuildOptions(precision="tf32", max_batch=2, version_compatible=True, hardware_compatible=True)
    line = trtexec_line("decode", spec, options)
    assert "--versionCompatible" in line
    assert "--hardwareCompatibilityLevel=ampere+" in line
    assert "--noTF32" not in line
    assert "--maxShapes=FUSED_LOGITS:2x6x64x80x80,LOGITS_A:2x6x64x80x80,LOGITS_B:2x6x64x80x80" in line


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        pytest.param(lambda f: (f / "merged.plan").write_bytes(b"other"), "not the file that its record", id="plan"),
        pytest.param(
            lambda f: (f / "merged.plan").unlink(), "there is no tensorrt_rtx 1.7 engine of merged", id="gone"
        ),
        pytest.param(lambda f: (f / RECORD_NAME).write_text("{"), "record of the built engines", id="record"),
        pytest.param(
            lambda f: (f / RECORD_NAME).write_text((f / RECORD_NAME).read_text().replace('"fp16"', '"fp32"')),
            "built for another precision",
            id="key",
        ),
    ],
)
def test_engine_that_is_not_the_recorded_one_is_refused(tmp_path: Path, damage: object, message: str) -> None:
    folder = save_engines(tmp_path, KEY, {"merged": b"plan"}, {"merged": b"graph"}, {"merged": {}})
    assert load_engine_plan(tmp_path, KEY, "merged") == b"plan"
    assert callable(damage)
    damage(folder)
    with pytest.raises(EngineMismatchError, match=message):
        load_engine_plan(tmp_path, KEY, "merged")


def test_engines_of_another_model_are_not_found(tmp_path: Path) -> None:
    save_engines(tmp_path, KEY, {"merged": b"plan"}, {"merged": b"graph"}, {"merged": {}})
    other = EngineKey("cd" * 32, "tensorrt_rtx", "1.7", "8.6", "fp16", 4)
    with pytest.raises(EngineMismatchError, match="there is no"):
        load_engine_plan(tmp_path, other, "merged")


def test_model_without_convolutions_to_convert_is_no_float16_engine(tmp_path: Path) -> None:
    """A request for float16 never ends in a float32 engine without a word."""
    model = load_model(ModelPhantom().write(tmp_path / "model"))
    with pytest.raises(AccuracyGateError, match="0 convolutions in float16"):
        build_engine(model.graph("merged"), "merged", model.manifest, FOR_AMPERE, load_builder())
