"""Exported graphs: their tensors, their free number of tiles, and nothing in them but what runs them."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper

from tests.export.conftest import Exported
from ucseg_export.canonical import checked_bytes
from ucseg_export.stages import tensor_shape
from ucseg_runtime.backends.graphs import GRAPHS
from ucseg_runtime.backends.openvino import OpenVinoEngine
from ucseg_runtime.errors import ModelError
from ucseg_runtime.evidence import evidence_from_logits, probabilities_from_logits
from ucseg_runtime.manifest import MERGED, STAGES

Tensors = dict[str, npt.NDArray[np.float32]]

_HASHES_OF_EXPORT = """
import hashlib, json
from tests.export.conftest import CONFIGS, trained_like
from ucseg_export.to_onnx import onnx_graphs
graphs = onnx_graphs(trained_like(CONFIGS["softmax"]))
print(json.dumps({key: hashlib.sha256(content).hexdigest() for key, content in graphs.items()}))
"""


def run_ort(graph: bytes, tensors: Tensors) -> Tensors:
    session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    found = session.run(names, {item.name: tensors[item.name] for item in session.get_inputs()})
    return dict(zip(names, found, strict=True))


def run_openvino(graph: bytes, tensors: Tensors) -> Tensors:
    """With the number of tiles left free, which the runtime's own sessions fix to one."""
    OpenVinoEngine()  # the runtime's way of importing the package
    import openvino

    core = openvino.Core()
    model: Any = core.compile_model(core.read_model(graph), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    found = model({port.get_any_name(): tensors[port.get_any_name()] for port in model.inputs})
    return {port.get_any_name(): found[port] for port in model.outputs}


ENGINES = pytest.mark.parametrize("run", [run_ort, run_openvino], ids=["onnxruntime", "openvino"])


def inputs_of(exported: Exported, key: str, tiles: int) -> Tensors:
    rng = np.random.default_rng(1)
    return {
        name: rng.standard_normal((tiles, *tensor_shape(name, exported.net.config)), dtype=np.float32)
        for name in GRAPHS[key].inputs
    }


@pytest.mark.parametrize("key", GRAPHS)
def test_graph_declares_the_named_tensors_in_float32_with_free_tiles_and_fixed_sides(
    key: str, exported: Exported
) -> None:
    graph = onnx.load_from_string(exported.graphs[key]).graph

    assert [item.name for item in graph.input] == list(GRAPHS[key].inputs)
    assert [item.name for item in graph.output] == list(GRAPHS[key].outputs)
    for item in (*graph.input, *graph.output):
        tensor = item.type.tensor_type
        tiles, *sides = tensor.shape.dim
        assert tensor.elem_type == TensorProto.FLOAT
        assert tiles.dim_param == "tiles"
        assert tuple(side.dim_value for side in sides) == tensor_shape(item.name, exported.net.config)


@ENGINES
@pytest.mark.parametrize("key", GRAPHS)
def test_batch_of_three_gives_what_three_single_tiles_give(key: str, exported: Exported, run: Any) -> None:
    tensors = inputs_of(exported, key, 3)

    together = run(exported.graphs[key], tensors)

    for index in range(3):
        alone = run(exported.graphs[key], {name: array[index : index + 1] for name, array in tensors.items()})
        for name in GRAPHS[key].outputs:
            np.testing.assert_allclose(together[name][index : index + 1], alone[name], rtol=0, atol=1e-4)


def test_merged_graph_is_the_composition_of_the_stages(exported: Exported) -> None:
    tensors = inputs_of(exported, MERGED, 2)
    expected = run_ort(exported.graphs[MERGED], tensors)

    for key in STAGES:
        tensors |= run_ort(exported.graphs[key], tensors)

    for name in GRAPHS[MERGED].outputs:
        np.testing.assert_allclose(tensors[name], expected[name], rtol=0, atol=1e-5)


@ENGINES
def test_decode_agrees_with_the_reference_for_logits_of_any_size(exported: Exported, run: Any) -> None:
    tensors = {name: np.float32(100.0) * array for name, array in inputs_of(exported, "decode", 1).items()}
    fused = tensors["FUSED_LOGITS"]
    assert np.abs(fused).max() > 200.0

    found = run(exported.graphs["decode"], tensors)

    expected = probabilities_from_logits(fused, exported.spec.activation)
    np.testing.assert_allclose(found["PROBABILITIES"], expected, rtol=0, atol=1e-6)
    np.testing.assert_allclose(found["UNCERTAINTY"], evidence_from_logits(fused).uncertainty, rtol=1e-5)


@pytest.mark.parametrize("key", GRAPHS)
def test_graph_tells_nothing_about_the_machine_that_made_it(key: str, exported: Exported) -> None:
    content = exported.graphs[key]
    model = onnx.load_from_string(content)

    for trace in (b"site-packages", b".py", str(Path.cwd()).encode(), str(Path.home()).encode() + b"/", b"/tmp/"):
        assert trace not in content
    assert not model.metadata_props
    assert not any(node.doc_string or node.metadata_props for node in model.graph.node)


@pytest.mark.parametrize("key", GRAPHS)
def test_every_weight_is_used_and_nothing_of_training_is_left(key: str, exported: Exported) -> None:
    graph = onnx.load_from_string(exported.graphs[key]).graph
    used = {name for node in graph.node for name in node.input}

    assert {weight.name for weight in graph.initializer} <= used
    assert not {"Dropout", "BatchNormalization"} & {node.op_type for node in graph.node}
    assert not any("temperature" in weight.name for weight in graph.initializer)


@pytest.mark.long
def test_another_process_with_other_hashes_exports_the_same_bytes(softmax: Exported) -> None:
    environment = {**os.environ, "PYTHONHASHSEED": "7", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, "-c", _HASHES_OF_EXPORT]

    output = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout

    expected = {key: hashlib.sha256(content).hexdigest() for key, content in softmax.graphs.items()}
    assert json.loads(output) == expected


def one_node(operator: str, outputs: int = 1, **attributes: int) -> onnx.ModelProto:
    inputs = ["x", "s", "b", "m", "v"] if operator == "BatchNormalization" else ["x"]
    shapes = {"x": [1, 2, 4], **dict.fromkeys("sbmv", [2])}
    node = helper.make_node(operator, inputs, ["y", "m2", "v2"][:outputs], **attributes)
    graph = helper.make_graph(
        [node],
        "one",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shapes[name]) for name in inputs],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 2, 4])],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)


@pytest.mark.parametrize(
    ("model", "operator"),
    [
        (one_node("Dropout"), "Dropout"),
        (one_node("BatchNormalization"), "BatchNormalization"),
        (one_node("BatchNormalization", outputs=3, training_mode=1), "BatchNormalization"),
    ],
    ids=["dropout", "norm", "norm in training"],
)
def test_graph_with_an_operator_of_training_is_refused(model: onnx.ModelProto, operator: str) -> None:
    with pytest.raises(ModelError, match=f"graph one holds .*{operator}"):
        checked_bytes(model, "one")


def test_graph_that_is_not_onnx_is_refused() -> None:
    with pytest.raises(ModelError, match="graph one is not valid ONNX"):
        checked_bytes(one_node("NoSuchOperator"), "one")
