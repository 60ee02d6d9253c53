"""A graph whose convolutions read 8-bit integers or floats, by explicit quantisation; everything else in float32.

Quantisation stands in the graph, as pairs of QuantizeLinear and DequantizeLinear that builders fuse into the
convolution between them: TensorRT 11 has no other way, and 10 prefers it. All is symmetric, as TensorRT demands:
activations with one scale for a tensor, weights with one for each output channel. Biases and results of the
convolutions stay in float32, and so do the norms between them.

ONNX Runtime's own quantiser would calibrate every graph anew, keeps the activations of all tiles in memory for 8-bit
floats, and lets them saturate; here the stages and the merged graph share the peaks of one calibration.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import ml_dtypes
import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from ucseg_export.calibration_tiles import digest_of
from ucseg_runtime.arrays import Float32Array
from ucseg_runtime.backends.cores import usable_cores
from ucseg_runtime.backends.engines import load_engine
from ucseg_runtime.backends.graphs import IMAGE, LOGITS_A, LOGITS_B
from ucseg_runtime.backends.session import GraphFile, SessionSettings
from ucseg_runtime.errors import InputError

QuantisedType = Literal["int8", "fp8"]

_SUBNETS = ("subnet_a", "subnet_b")
_CHANNEL_AXIS = {"Conv": 0, "ConvTranspose": 1}
"""Axis of the weights that has the output channels."""
_LEAST_PEAK = 1e-12
"""A tensor that is zero everywhere is still divided by its scale."""


@dataclass(frozen=True)
class _Type:
    element: int
    dtype: npt.DTypeLike
    largest: float


_TYPES: Mapping[QuantisedType, _Type] = {
    "int8": _Type(TensorProto.INT8, np.int8, 127.0),
    "fp8": _Type(TensorProto.FLOAT8E4M3FN, ml_dtypes.float8_e4m3fn, 448.0),
}


@dataclass(frozen=True)
class Calibration:
    """What real tiles said about the activations.

    Attributes:
        peaks: Largest magnitude of every tensor that a convolution reads, by name; the merged graph and the stages have
            the same names.
        digest: SHA-256 of the tiles, 64 hexadecimal digits; empty where nothing was calibrated.
    """

    peaks: Mapping[str, float] = field(default_factory=dict)
    digest: str = ""


NOT_CALIBRATED = Calibration()


def calibrate(merged: bytes, tiles: Sequence[Float32Array]) -> Calibration:
    """Run real tiles through the merged graph and keep the peaks of what its convolutions read.

    Args:
        merged: ONNX file as the export writes it.
        tiles: float32, shape (1, channels, *tile in the order of the network), network input units.

    Raises:
        InputError: There are no tiles.
        BackendUnavailableError: ONNX Runtime is not installed.
    """
    if not tiles:
        raise InputError("there are no tiles to calibrate on.", hint="Give a folder with real cases: --cases DIR.")
    model = onnx.load_from_string(merged)
    names = list(dict.fromkeys(node.input[0] for node in _convolutions(model.graph)))
    del model.graph.output[:]
    for name in names:
        model.graph.node.append(helper.make_node("Abs", [name], [f"{name}_magnitude"]))
        model.graph.node.append(helper.make_node("ReduceMax", [f"{name}_magnitude"], [f"{name}_peak"], keepdims=0))
        model.graph.output.append(helper.make_tensor_value_info(f"{name}_peak", TensorProto.FLOAT, []))
    peaks = dict.fromkeys(names, 0.0)
    if names:
        session = load_engine("onnxruntime").open_session(
            GraphFile("peaks", model.SerializeToString()), SessionSettings("f32", usable_cores())
        )
        for tile in tiles:
            found = session.run({IMAGE: tile})
            peaks = {name: max(peak, float(np.asarray(found[f"{name}_peak"]))) for name, peak in peaks.items()}
        session.close()
    return Calibration(peaks, digest_of(tiles))


def with_quantised_convolutions(graph: bytes, calibration: Calibration, kind: QuantisedType) -> bytes:
    """Rewrite a graph of a model folder.

    The convolutions of both subnets read 8 bits, but the last one of each, which gives the logits. UPG, read-out,
    inputs and outputs of the graph are as they were.

    Args:
        graph: ONNX file as the export writes it, the merged one or a stage.
        calibration: Of the same model.
        kind: ``int8``, or ``fp8``: 4 bits of exponent and 3 of mantissa.

    Returns:
        ONNX file; the same computation where the graph holds no subnet.

    Raises:
        InputError: The graph reads a tensor that was not calibrated.
    """
    model = onnx.load_from_string(graph)
    quantisation = _Quantisation(model.graph, calibration, _TYPES[kind])
    convolutions = {node.name for node in _convolutions(model.graph)}
    nodes: list[onnx.NodeProto] = []
    for node in model.graph.node:
        converted = onnx.NodeProto()
        converted.CopyFrom(node)
        nodes += quantisation.around(converted) if node.name in convolutions else []
        nodes.append(converted)
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    quantisation.exchange_weights()
    content: bytes = model.SerializeToString()
    return content


class _Quantisation:
    """One pass over the convolutions; a tensor is quantised where the first of them needs it."""

    def __init__(self, graph: onnx.GraphProto, calibration: Calibration, kind: _Type) -> None:
        self._graph = graph
        self._peaks = calibration.peaks
        self._kind = kind
        self._weights = {weights.name: weights for weights in graph.initializer}
        self._made: list[onnx.TensorProto] = []
        self._done: set[str] = set()

    def around(self, node: onnx.NodeProto) -> list[onnx.NodeProto]:
        """Let a convolution read 8 bits; the nodes that have to stand before it."""
        activation, weights = node.input[:2]
        nodes = [*self._activation(activation), *self._kernel(weights, _CHANNEL_AXIS[node.op_type])]
        node.input[0], node.input[1] = _widened(activation), _widened(weights)
        return nodes

    def exchange_weights(self) -> None:
        """Put the quantised weights in the place of those that nothing reads any more."""
        read = {name for node in self._graph.node for name in node.input}
        for name in sorted(set(self._weights) - read):
            self._graph.initializer.remove(self._weights[name])
        self._graph.initializer.extend(self._made)

    def _activation(self, name: str) -> list[onnx.NodeProto]:
        if name in self._done:
            return []
        if name not in self._peaks:
            raise InputError(
                f"tensor {name} of the graph was never calibrated.",
                hint="Calibrate on real tiles of this very model: --cases DIR.",
            )
        self._done.add(name)
        scale = np.float32(max(self._peaks[name], _LEAST_PEAK) / self._kind.largest)
        self._made.append(numpy_helper.from_array(np.asarray(scale), f"{name}_scale"))
        self._made.append(helper.make_tensor(f"{name}_zero", self._kind.element, [], [0]))
        parameters = [f"{name}_scale", f"{name}_zero"]
        return [
            helper.make_node("QuantizeLinear", [name, *parameters], [f"{name}_quantised"], name=f"{name}_quantise"),
            _dequantise(name, [f"{name}_quantised", *parameters]),
        ]

    def _kernel(self, name: str, axis: int) -> list[onnx.NodeProto]:
        if name in self._done:
            return []
        self._done.add(name)
        values = numpy_helper.to_array(self._weights[name]).astype(np.float32)  # (out, in, …) or (in, out, …)
        others = tuple(side for side in range(values.ndim) if side != axis)
        scales = np.maximum(np.abs(values).max(axis=others), _LEAST_PEAK).astype(np.float32) / self._kind.largest
        scaled = values / np.expand_dims(scales, others)
        exact = np.rint(scaled) if self._kind.element == TensorProto.INT8 else scaled
        raw = exact.astype(self._kind.dtype).tobytes()
        self._made.append(helper.make_tensor(f"{name}_quantised", self._kind.element, values.shape, raw, raw=True))
        self._made.append(numpy_helper.from_array(scales.astype(np.float32), f"{name}_scale"))
        return [_dequantise(name, [f"{name}_quantised", f"{name}_scale"], axis=axis)]


def _convolutions(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    """Those of both subnets, without the last one of each."""
    for node in graph.node:
        in_subnet = node.name.partition("/")[0] in _SUBNETS
        if node.op_type in _CHANNEL_AXIS and in_subnet and not {LOGITS_A, LOGITS_B} & set(node.output):
            yield node


def _dequantise(name: str, inputs: list[str], axis: int = 1) -> onnx.NodeProto:
    """The axis means nothing where there is one scale."""
    return helper.make_node("DequantizeLinear", inputs, [_widened(name)], f"{name}_dequantise", axis=axis)


def _widened(name: str) -> str:
    return f"{name}_widened"
