"""Explicit quantisation of the convolutions: where it stands, what it is calibrated on, what it changes."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import numpy_helper

from tests.export.conftest import Exported, ExportedByName
from ucseg_export.calibration_tiles import calibration_tiles
from ucseg_export.quantized_convolutions import (
    NOT_CALIBRATED,
    Calibration,
    QuantisedType,
    calibrate,
    with_quantised_convolutions,
)
from ucseg_runtime.arrays import Float32Array
from ucseg_runtime.errors import InputError
from ucseg_runtime.model_folder import default_model_folder, load_model

TYPES: tuple[QuantisedType, ...] = ("int8", "fp8")


def body_tiles(shape: tuple[int, ...], number: int) -> list[Float32Array]:
    """A bright ball in the dark with some noise: what lies around it is as empty as air is on a CT."""
    rng = np.random.default_rng(0)
    grid = np.stack(np.meshgrid(*(np.linspace(-1, 1, side) for side in shape), indexing="ij"))
    ball = (np.linalg.norm(grid, axis=0) < 0.7).astype(np.float32)
    tiles = (ball + rng.normal(0, 0.05, shape) for _ in range(number))
    return [np.ascontiguousarray(tile[None, None].astype(np.float32)) for tile in tiles]


def run(graph: bytes, tile: Float32Array) -> list[Float32Array]:
    # onnxruntime 1.32 drops a Relu before 8-bit floats as if they held nothing below zero. Remove when it does not.
    session = onnxruntime.InferenceSession(
        graph, providers=["CPUExecutionProvider"], disabled_optimizers=["ReluQuantRewrite"]
    )
    found: list[Float32Array] = session.run(None, {"IMAGE": tile})
    return found


@pytest.fixture(scope="module")
def tiles(exported_by_name: ExportedByName) -> list[Float32Array]:
    return body_tiles(exported_by_name("softmax").net.config.tile_shape, 3)


@pytest.fixture(scope="module")
def calibration(exported_by_name: ExportedByName, tiles: list[Float32Array]) -> Calibration:
    return calibrate(exported_by_name("softmax").graphs["merged"], tiles[:2])


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("key", ["subnet_a", "subnet_b", "merged"])
def test_convolutions_of_the_subnets_read_8_bits_and_nothing_else_does(
    softmax: Exported, calibration: Calibration, key: str, kind: QuantisedType
) -> None:
    model = onnx.load_from_string(with_quantised_convolutions(softmax.graphs[key], calibration, kind))
    onnx.checker.check_model(model, full_check=True)
    widened = {name for node in model.graph.node if node.op_type == "DequantizeLinear" for name in node.output}
    for node in model.graph.node:
        part, last = node.name.partition("/")[0], {"LOGITS_A", "LOGITS_B"} & set(node.output)
        quantised = node.op_type in ("Conv", "ConvTranspose") and part in ("subnet_a", "subnet_b") and not last
        assert (set(node.input[:2]) <= widened) == quantised
        assert quantised or not set(node.input) & widened
    stored = {onnx.TensorProto.INT8, onnx.TensorProto.FLOAT8E4M3FN} & {w.data_type for w in model.graph.initializer}
    assert stored == {onnx.TensorProto.INT8 if kind == "int8" else onnx.TensorProto.FLOAT8E4M3FN}


@pytest.mark.parametrize("kind", TYPES)
def test_stages_without_a_subnet_are_computed_as_before(
    softmax: Exported, calibration: Calibration, kind: QuantisedType
) -> None:
    for key in ("upg", "decode"):
        before = onnx.load_from_string(softmax.graphs[key])
        assert onnx.load_from_string(with_quantised_convolutions(softmax.graphs[key], calibration, kind)) == before


def test_weights_have_one_scale_for_each_output_channel(softmax: Exported, calibration: Calibration) -> None:
    """Known answer: every channel uses the whole range, and is off by half a step at most."""
    before = {w.name: w for w in onnx.load_from_string(softmax.graphs["merged"]).graph.initializer}
    model = onnx.load_from_string(with_quantised_convolutions(softmax.graphs["merged"], calibration, "int8"))
    after = {w.name: numpy_helper.to_array(w) for w in model.graph.initializer}
    axes = {node.input[0]: node.attribute[0].i for node in model.graph.node if node.op_type == "DequantizeLinear"}
    kernels = [name for name in after if name.endswith("weight_quantised")]
    assert {axes[name] for name in kernels} == {0, 1}, "convolutions and transposed ones"
    for name in kernels:
        values = np.moveaxis(after[name], axes[name], 0)
        original = np.moveaxis(numpy_helper.to_array(before[name.removesuffix("_quantised")]), axes[name], 0)
        scales = after[name.replace("_quantised", "_scale")]
        assert (np.abs(values).max(axis=tuple(range(1, values.ndim))) == 127).all()
        error = np.abs(values * scales.reshape(-1, *[1] * (values.ndim - 1)) - original)
        assert (error.max(axis=tuple(range(1, values.ndim))) <= scales * 0.5001).all()


@pytest.mark.parametrize("kind", TYPES)
def test_decisions_change_little(
    softmax: Exported, calibration: Calibration, tiles: list[Float32Array], kind: QuantisedType
) -> None:
    graph = softmax.graphs["merged"]
    expected, found = run(graph, tiles[2]), run(with_quantised_convolutions(graph, calibration, kind), tiles[2])
    for full, quantised in zip(expected, found, strict=True):
        assert quantised.dtype == np.float32
        difference = np.abs(full - quantised)
        assert (
            0.0 < np.percentile(difference, 99) < 0.05
        )  # an untrained trio on one tile; figures of trained ones: docs


@pytest.mark.slow
@pytest.mark.real_data
@pytest.mark.parametrize(("kind", "agreement"), [("int8", 0.995), ("fp8", 0.985)])
def test_the_demo_model_labels_a_chest_nearly_as_in_float32(
    patient_a_folder: Path, kind: QuantisedType, agreement: float
) -> None:
    model = load_model(default_model_folder())
    ((*known, new),) = calibration_tiles(patient_a_folder, model.manifest, 4)
    quantised = with_quantised_convolutions(model.graph("merged"), calibrate(model.graph("merged"), known), kind)
    expected, found = (run(graph, new)[0].argmax(axis=1) for graph in (model.graph("merged"), quantised))
    assert len(np.unique(expected)) > 2, "the tile shows organs"
    assert (expected == found).mean() >= agreement


def names_read(graph: bytes) -> Iterator[str]:
    for node in onnx.load_from_string(graph).graph.node:
        if node.op_type in ("Conv", "ConvTranspose") and re.match("subnet_[ab]/", node.name):
            yield node.input[0]


def test_peaks_are_the_largest_magnitudes_over_all_tiles(
    softmax: Exported, calibration: Calibration, tiles: list[Float32Array]
) -> None:
    assert calibration.peaks["IMAGE"] == max(float(np.abs(tile).max()) for tile in tiles[:2])
    for key in ("subnet_a", "subnet_b"):
        assert set(list(names_read(softmax.graphs[key]))[:-1]) <= set(calibration.peaks), "stages share the names"


def test_digest_says_which_tiles_they_were(softmax: Exported, tiles: list[Float32Array]) -> None:
    graph = softmax.graphs["merged"]
    digests = [calibrate(graph, some).digest for some in (tiles[:1], tiles[:1], tiles[1:2], tiles[:2])]
    assert digests[0] == digests[1]
    assert len(set(digests)) == 3
    assert all(re.fullmatch("[0-9a-f]{64}", digest) for digest in digests)


def test_calibration_without_tiles_is_refused(softmax: Exported) -> None:
    with pytest.raises(InputError, match="no tiles to calibrate on.*--cases DIR"):
        calibrate(softmax.graphs["merged"], [])


def test_graph_that_was_never_calibrated_is_refused(softmax: Exported) -> None:
    with pytest.raises(InputError, match="tensor IMAGE of the graph was never calibrated"):
        with_quantised_convolutions(softmax.graphs["merged"], NOT_CALIBRATED, "int8")
