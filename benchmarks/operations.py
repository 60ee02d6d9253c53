"""Operations and bytes of an ONNX graph, counted from its shapes.

Counted are the operators that do the arithmetic: Conv, ConvTranspose, MatMul and Gemm, a multiply-add as two
operations. Everything else is taken to ride along with them: an engine that fuses perfectly reads and writes nothing
more. So the floor that follows from a count is one that no engine goes below, not what one should reach.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import onnx
from onnx import NodeProto

_Shape = tuple[int, ...]


@dataclass(frozen=True)
class Operator:
    """One counted node.

    Attributes:
        name: Name of its first output.
        kind: Operator of ONNX.
        operations: Multiplications and additions.
        weights: Numbers in its constant inputs.
        activations: Numbers in its other inputs and its outputs.
    """

    name: str
    kind: str
    operations: int
    weights: int
    activations: int

    def floor_s(self, operations_per_s: float, bytes_per_s: float, bytes_per_number: int) -> float:
        """Least time in s: either arithmetic or memory is busy throughout."""
        moved = (self.weights + self.activations) * bytes_per_number
        return max(self.operations / operations_per_s, moved / bytes_per_s)


@dataclass(frozen=True)
class Count:
    """What one run of a graph costs at least.

    Attributes:
        operators: Its counted nodes.
        ports: Numbers in its inputs and outputs, which cross memory even where nothing is counted.
    """

    operators: tuple[Operator, ...]
    ports: int

    @property
    def operations(self) -> int:
        """Multiplications and additions."""
        return sum(item.operations for item in self.operators)

    def bytes_moved(self, bytes_per_number: int) -> int:
        """Weights, inputs and outputs of every counted operator, each once; at least those of the graph."""
        return max(self.ports, sum(item.weights + item.activations for item in self.operators)) * bytes_per_number

    def weight_bytes(self, bytes_per_number: int) -> int:
        """Weights of every counted operator."""
        return sum(item.weights for item in self.operators) * bytes_per_number

    def floor_s(self, operations_per_s: float, bytes_per_s: float, bytes_per_number: int) -> float:
        """Sum of the floors of all operators, at least that of the ports: the roofline bound of the graph, in s."""
        floors = sum(item.floor_s(operations_per_s, bytes_per_s, bytes_per_number) for item in self.operators)
        return max(floors, self.ports * bytes_per_number / bytes_per_s)


def count(graph: bytes, tiles: int = 1) -> Count:
    """Count a graph.

    Args:
        graph: ONNX file.
        tiles: What the free first side of the inputs is.

    Raises:
        ValueError: The shape of a tensor cannot be inferred.
    """
    model = onnx.load_from_string(graph)
    for port in model.graph.input:
        port.type.tensor_type.shape.dim[0].dim_value = tiles
    model = onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True)
    constants = {item.name: tuple(item.dims) for item in model.graph.initializer}
    constants |= {
        node.output[0]: tuple(node.attribute[0].t.dims) for node in model.graph.node if node.op_type == "Constant"
    }
    shapes = {item.name: _shape(item) for item in (*model.graph.input, *model.graph.value_info, *model.graph.output)}
    shapes |= constants
    counted = [node for node in model.graph.node if node.op_type in _OPERATIONS]
    ports = sum(math.prod(shapes[item.name]) for item in (*model.graph.input, *model.graph.output))
    return Count(tuple(_operator(node, shapes, constants.keys()) for node in counted), ports)


def _operator(node: NodeProto, shapes: dict[str, _Shape], constants: Iterable[str]) -> Operator:
    used = [name for name in node.input if name]
    if missing := [name for name in (*used, *node.output) if name not in shapes or min(shapes[name], default=1) < 1]:
        raise ValueError(f"the shape of {missing[0]!r} is not known")
    known = set(constants)
    weights = sum(math.prod(shapes[name]) for name in used if name in known)
    activations = sum(math.prod(shapes[name]) for name in (*used, *node.output) if name not in known)
    operations = _OPERATIONS[node.op_type](node, [shapes[name] for name in used], shapes[node.output[0]])
    return Operator(node.output[0], node.op_type, operations, weights, activations)


def _conv(node: NodeProto, inputs: Sequence[_Shape], output: _Shape) -> int:
    """Every output sums over the kernel and the input channels of its group, which the weight's shape holds."""
    return 2 * math.prod(output) * math.prod(inputs[1][1:])


def _conv_transpose(node: NodeProto, inputs: Sequence[_Shape], output: _Shape) -> int:
    """Every input is spread over the kernel and the output channels of its group, which the weight's shape holds."""
    return 2 * math.prod(inputs[0]) * math.prod(inputs[1][1:])


def _matmul(node: NodeProto, inputs: Sequence[_Shape], output: _Shape) -> int:
    return 2 * math.prod(output) * inputs[0][-1]


def _gemm(node: NodeProto, inputs: Sequence[_Shape], output: _Shape) -> int:
    turned = any(attribute.name == "transA" and attribute.i for attribute in node.attribute)
    return 2 * math.prod(output) * inputs[0][0 if turned else 1]


def _shape(value: onnx.ValueInfoProto) -> _Shape:
    """Sides; 0 for one that is not known."""
    return tuple(side.dim_value for side in value.type.tensor_type.shape.dim)


_OPERATIONS: dict[str, Callable[[NodeProto, Sequence[_Shape], _Shape], int]] = {
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
    "MatMul": _matmul,
    "Gemm": _gemm,
}
