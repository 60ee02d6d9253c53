"""A graph whose convolutions compute in float16 and everything sensitive in float32.

Precision stands in the graph and not in flags of a builder: TensorRT 11 has no others, and 10 keeps to it in strongly
typed networks. Converters that wrap every operator in casts store what lies between two float32 operators in float16,
which the squares of an instance norm do not survive; here only tensors between float16 operators are stored so.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from ucseg_runtime.backends.graphs import LOGITS_A, LOGITS_B

_SUBNETS = ("subnet_a", "subnet_b")
_CONVOLUTIONS = ("Conv", "ConvTranspose")
_FOLLOWERS = ("Relu", "MaxPool", "Concat", "Add")
"""Take the precision of their inputs: the first three round nothing, the last adds what was rounded before."""


def with_half_convolutions(graph: bytes) -> bytes:
    """Rewrite a graph of a model folder.

    The convolutions of both subnets take and give float16, with weights in float16; what joins two of them follows.
    Instance norms, upsampling, the last convolution of each subnet (the logits), the UPG, the read-out and all inputs
    and outputs of the graph stay in float32.

    Args:
        graph: ONNX file as the export writes it.

    Returns:
        ONNX file; the same computation where the graph holds no subnet.
    """
    model = onnx.load_from_string(graph)
    conversion = _Conversion(model.graph)
    nodes = [made for node in model.graph.node for made in conversion.of(node)]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    content: bytes = model.SerializeToString()
    return content


class _Conversion:
    """One pass over the nodes in their order; a tensor is cast when the first node needs it in the other precision."""

    def __init__(self, graph: onnx.GraphProto) -> None:
        self._weights = {weights.name: weights for weights in graph.initializer}
        self._half: dict[str, str] = {}  # name in the original graph to the name of the float16 tensor
        self._full = {tensor.name for tensor in (*graph.input, *graph.initializer)}  # names that exist in float32
        self._kept = {tensor.name for tensor in graph.output} | {LOGITS_A, LOGITS_B}

    def of(self, node: onnx.NodeProto) -> list[onnx.NodeProto]:
        """The node in its precision, after the casts that it needs."""
        if self._computes_in_half(node):
            casts = self._narrowed(node.input)
            inputs, outputs = [self._half[name] for name in node.input], [_half_name(name) for name in node.output]
            self._half.update(zip(node.output, outputs, strict=True))
        else:
            casts = self._widened(node.input)
            inputs, outputs = list(node.input), list(node.output)
            self._full.update(outputs)
        converted = onnx.NodeProto()
        converted.CopyFrom(node)
        del converted.input[:], converted.output[:]
        converted.input.extend(inputs)
        converted.output.extend(outputs)
        return [*casts, converted]

    def _computes_in_half(self, node: onnx.NodeProto) -> bool:
        if node.name.partition("/")[0] not in _SUBNETS or self._kept & set(node.output):
            return False
        followed = node.op_type in _FOLLOWERS and all(name in self._half for name in node.input)
        return followed or node.op_type in _CONVOLUTIONS

    def _narrowed(self, names: Iterable[str]) -> list[onnx.NodeProto]:
        """Casts to float16 of those tensors that have no twin yet; weights are converted where they lie."""
        casts = []
        for name in names:
            if name in self._half:
                continue
            if name in self._weights:
                weights = self._weights[name]
                weights.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weights).astype(np.float16), name))
                self._half[name] = name
            else:
                self._half[name] = _half_name(name)
                casts.append(_cast(name, self._half[name], TensorProto.FLOAT16))
        return casts

    def _widened(self, names: Iterable[str]) -> list[onnx.NodeProto]:
        """Casts to float32 of those tensors that exist in float16 alone."""
        missing = [name for name in dict.fromkeys(names) if name in self._half and name not in self._full]
        self._full.update(missing)
        return [_cast(self._half[name], name, TensorProto.FLOAT) for name in missing]


def _half_name(name: str) -> str:
    return f"{name}_half"


def _cast(source: str, target: str, to: int) -> onnx.NodeProto:
    return helper.make_node("Cast", [source], [target], name=f"{target}_cast", to=to)
