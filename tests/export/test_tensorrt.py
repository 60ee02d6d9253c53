"""Engines built by the real parser and builder, without a GPU, for a named compute capability."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from typer.testing import CliRunner

from tests.export.conftest import PLANAR, Exported, description, trained_like
from tests.model_phantom import ModelPhantom
from tests.volume_phantom import STRAIGHT, centred_geometry
from ucseg_export.calibration_tiles import calibration_tiles, digest_of
from ucseg_export.cli.app import app
from ucseg_export.export_model import write_model_folder
from ucseg_export.half_precision import with_half_convolutions
from ucseg_export.manifest_writer import build_manifest
from ucseg_export.quantized_convolutions import NOT_CALIBRATED, calibrate
from ucseg_export.tensorrt_builder import BuildOptions, EnginePrecision, load_builder
from ucseg_export.to_onnx import onnx_graphs
from ucseg_export.to_tensorrt import build_engine, build_engines, trtexec_line
from ucseg_runtime.backends.engine_cache import RECORD_NAME, EngineKey, load_engine_plan, save_engines
from ucseg_runtime.errors import AccuracyGateError, BackendError, BackendUnavailableError, EngineMismatchError
from ucseg_runtime.manifest import ModelSpec
from ucseg_runtime.model_folder import default_model_folder, load_model
from ucseg_training.data.case import Case, save_case
from ucseg_training.nets import TrioConfig

pytest.importorskip("tensorrt_rtx_bindings", reason="the extra tensorrt-rtx is not installed")

FOR_AMPERE = BuildOptions(compute_capability="8.6")
KEY = EngineKey("ab" * 32, "tensorrt_rtx", "1.7", "8.6", "fp16", 4)


ALL_PRECISIONS: tuple[EnginePrecision, ...] = ("fp32", "tf32", "fp16", "int8", "fp8")
READ_BY_CONVOLUTIONS = {"fp32": "FLOAT", "tf32": "FLOAT", "fp16": "HALF", "int8": "INT8", "fp8": "FP8"}


def body_tile(spec: ModelSpec) -> np.ndarray:
    """A bright box in the dark, as the network gets it."""
    tile = np.zeros((1, spec.channels, *spec.tiling.tile_shape), dtype=np.float32)
    tile[..., tile.shape[-2] // 4 :, tile.shape[-1] // 4 :] = 1.0
    return tile


def build_all(graphs: Mapping[str, bytes], spec: ModelSpec, precision: EnginePrecision) -> dict[str, dict[str, int]]:
    capability = "8.9" if precision == "fp8" else "8.6"
    options = BuildOptions(precision=precision, compute_capability=capability, max_batch=2)
    quantised = precision in ("int8", "fp8")
    calibration = calibrate(graphs["merged"], [body_tile(spec)]) if quantised else NOT_CALIBRATED
    engines = {
        key: build_engine(graph, key, spec, options, load_builder(), calibration) for key, graph in graphs.items()
    }
    assert all(len(engine.plan) > 10_000 for engine in engines.values())
    found = {key: dict(engine.layers) for key, engine in engines.items()}
    for key in ("subnet_a", "subnet_b", "merged"):
        convolutions = {kind: count for kind, count in found[key].items() if kind.startswith("CONVOLUTION")}
        assert max(convolutions, key=convolutions.__getitem__) == f"CONVOLUTION {READ_BY_CONVOLUTIONS[precision]}"
    # The logits, the UPG and everything that sums stays in float32.
    assert {kind for kind in found["upg"] if kind.startswith("CONVOLUTION")} == {"CONVOLUTION FLOAT"}
    sensitive = ("POOLING", "REDUCE", "UNARY", "SOFTMAX", "MATRIX_MULTIPLY", "RESIZE")
    assert not [kind for kind in found["merged"] if kind.startswith(sensitive) and kind.endswith(("INT8", "FP8"))]
    return found


@pytest.mark.parametrize("precision", ALL_PRECISIONS)
def test_every_graph_of_the_demo_model_is_built(precision: EnginePrecision) -> None:
    model = load_model(default_model_folder())
    layers = build_all({key: model.graph(key) for key in model.manifest.artifacts}, model.manifest, precision)
    sensitive = ("POOLING", "REDUCE", "UNARY", "SOFTMAX", "MATRIX_MULTIPLY", "RESIZE")
    assert not [kind for kind in layers["merged"] if kind.endswith("HALF") and kind.startswith(sensitive)]
    assert layers["upg"]["CONVOLUTION FLOAT"] == 6
    narrow = READ_BY_CONVOLUTIONS[precision]
    if narrow != "FLOAT":  # 51 and 4 transposed ones; 6 of the UPG and the logits of both subnets stay as they are
        assert layers["merged"][f"CONVOLUTION {narrow}"] == 43
        assert layers["merged"][f"DECONVOLUTION {narrow}"] == 4


@pytest.mark.slow
@pytest.mark.parametrize(
    "precision",
    [
        "fp32",
        "int8",
        *(pytest.param(precision, marks=pytest.mark.long) for precision in ALL_PRECISIONS[1:] if precision != "int8"),
    ],
)
def test_every_graph_of_the_full_size_trio_is_built(full_size: Exported, precision: EnginePrecision) -> None:
    layers = build_all(full_size.graphs, full_size.spec, precision)
    assert sum(layers["merged"].values()) > 400


@pytest.fixture(scope="module")
def full_size() -> Exported:
    net = trained_like(TrioConfig(dim=3, in_channels=1, num_classes=2, tile_shape=(96, 96, 96)))
    return Exported(net, ModelSpec.model_validate(description(net.config)), onnx_graphs(net))


@pytest.mark.parametrize("precision", ALL_PRECISIONS)
def test_every_graph_of_a_trio_for_planes_is_built(planar: Exported, precision: EnginePrecision) -> None:
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


@pytest.mark.parametrize("precision", ["fp16", "int8", "fp8"])
def test_model_without_convolutions_to_convert_is_no_narrow_engine(tmp_path: Path, precision: EnginePrecision) -> None:
    """A request for 16 or 8 bits never ends in a float32 engine without a word."""
    model = load_model(ModelPhantom().write(tmp_path / "model"))
    calibration = calibrate(model.graph("merged"), [body_tile(model.manifest)])
    options = BuildOptions(precision=precision, compute_capability="8.9")
    with pytest.raises(AccuracyGateError, match=f"0 convolutions in {READ_BY_CONVOLUTIONS[precision]}.*{precision}"):
        build_engine(model.graph("merged"), "merged", model.manifest, options, load_builder(), calibration)


def test_8_bit_floats_for_a_gpu_that_has_none_are_refused_in_the_builders_words(planar: Exported) -> None:
    calibration = calibrate(planar.graphs["merged"], [body_tile(planar.spec)])
    options = BuildOptions(precision="fp8", compute_capability="8.6")
    with pytest.raises(BackendError, match=r"subnet_a: .*sm86.*fp8 needs compute capability 8\.9"):
        build_engine(planar.graphs["subnet_a"], "subnet_a", planar.spec, options, load_builder(), calibration)


@pytest.mark.parametrize("precision", ["int8", "fp8"])
def test_engines_that_need_a_calibration_are_refused_without_cases(tmp_path: Path, precision: str) -> None:
    arguments = ["tensorrt", str(default_model_folder()), "--precision", precision, "--out", str(tmp_path)]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 3
    assert f"{precision} engines are calibrated on tiles of real cases, and there are none" in result.stderr
    assert "--cases DIR" in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_engines_of_another_calibration_replace_the_old_ones_and_are_told_apart(
    softmax: Exported, tmp_path: Path
) -> None:
    folder = tmp_path / "model"
    write_model_folder(folder, build_manifest(softmax.spec, softmax.graphs, (), {}), softmax.graphs, overwrite=False)
    model, builder = load_model(folder), load_builder()
    options = BuildOptions(precision="int8", compute_capability="8.6")
    tile = body_tile(softmax.spec)
    first, second = (calibrate(model.graph("merged"), [factor * tile]) for factor in (np.float32(1), np.float32(2)))
    engines, _ = build_engines(model, options, builder, tmp_path / "engines", first)
    again, _ = build_engines(model, options, builder, tmp_path / "engines", second)
    assert engines == again
    key = EngineKey(model.digest, builder.name, builder.version, "8.6", "int8", 4, second.digest)
    assert load_engine_plan(tmp_path / "engines", key, "merged")
    with pytest.raises(EngineMismatchError, match="built for another calibration"):
        load_engine_plan(tmp_path / "engines", dataclasses.replace(key, calibration=first.digest), "merged")


def test_command_calibrates_on_the_cases_and_records_their_digest(softmax: Exported, tmp_path: Path) -> None:
    folder, cases = tmp_path / "model", tmp_path / "cases"
    write_model_folder(folder, build_manifest(softmax.spec, softmax.graphs, (), {}), softmax.graphs, overwrite=False)
    cases.mkdir()
    shape = (40, 40, 40)
    voxels = np.full(shape, -1000.0, dtype=np.float32)
    voxels[8:32, 8:32, 8:32] = 40.0
    nothing = np.zeros(shape, dtype=np.uint8)
    save_case(Case("a", voxels, nothing, nothing, centred_geometry(shape, (3.0, 3.0, 3.0), STRAIGHT)), cases / "a.npz")

    arguments = ["tensorrt", folder, "--precision", "int8", "--cases", cases, "--tiles-per-case", 2]
    arguments += ["--compute-capability", "8.6", "--out", tmp_path / "engines", "--json"]
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])

    assert result.exit_code == 0, result.output
    printed = json.loads(result.stdout)
    assert printed["engines"]["merged"]["layers"]["CONVOLUTION INT8"] > 0
    ((*tiles,),) = calibration_tiles(cases, softmax.spec, 2)
    record = json.loads((Path(printed["folder"]) / RECORD_NAME).read_text(encoding="utf-8"))
    assert record["key"]["calibration"] == digest_of(tiles)
