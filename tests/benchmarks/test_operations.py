"""The counter of operations against values worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from benchmarks.operations import count


def graph(kind: str, image: list[int | str], weight: list[int], result: list[int | str], **attributes: object) -> bytes:
    """One operator with a constant second input."""
    node = helper.make_node(kind, ["x", "w"], ["y"], **attributes)
    weights = numpy_helper.from_array(np.zeros(weight, dtype=np.float32), "w")
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, image)
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, result)
    model = helper.make_model(
        helper.make_graph([node], kind, [x], [y], [weights]), opset_imports=[helper.make_opsetid("", 17)]
    )
    return bytes(model.SerializeToString())


@pytest.mark.parametrize("tiles", [1, 3])
def test_conv_costs_two_operations_per_output_weight_pair(tiles: int) -> None:
    found = count(graph("Conv", ["n", 2, 8, 8], [5, 2, 3, 3], ["n", 5, 6, 6]), tiles)

    assert found.operations == tiles * 2 * (5 * 6 * 6) * (2 * 3 * 3)
    assert found.weight_bytes(4) == 4 * 5 * 2 * 3 * 3
    assert found.bytes_moved(2) == 2 * (5 * 2 * 3 * 3 + tiles * (2 * 8 * 8 + 5 * 6 * 6))


def test_grouped_conv_counts_the_channels_of_one_group() -> None:
    found = count(graph("Conv", ["n", 4, 8, 8], [4, 1, 3, 3], ["n", 4, 6, 6], group=4))

    assert found.operations == 2 * (4 * 6 * 6) * (3 * 3)


def test_transposed_conv_costs_two_operations_per_input_weight_pair() -> None:
    strided = graph("ConvTranspose", ["n", 6, 4, 4], [6, 3, 2, 2], ["n", 3, 8, 8], strides=[2, 2])

    assert count(strided).operations == 2 * (6 * 4 * 4) * (3 * 2 * 2)


def test_matrix_product_costs_two_operations_per_term() -> None:
    assert count(graph("MatMul", ["n", 7, 5], [5, 3], ["n", 7, 3]), 2).operations == 2 * 2 * 7 * 5 * 3


def test_floor_is_the_slower_of_arithmetic_and_memory() -> None:
    found = count(graph("MatMul", ["n", 7, 5], [5, 3], ["n", 7, 3]))
    operations, moved = 2 * 7 * 5 * 3, 4 * (7 * 5 + 5 * 3 + 7 * 3)

    assert found.floor_s(operations, moved * 10.0, 4) == pytest.approx(1.0)
    assert found.floor_s(operations * 10.0, moved, 4) == pytest.approx(1.0)


def test_graph_without_arithmetic_still_moves_its_inputs_and_outputs() -> None:
    found = count(graph("Add", ["n", 7, 5], [5], ["n", 7, 5]))

    assert found.operations == 0
    assert found.bytes_moved(4) == 4 * 2 * 7 * 5
    assert found.floor_s(1.0, 4.0 * 2 * 7 * 5, 4) == pytest.approx(1.0)
