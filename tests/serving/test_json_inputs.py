"""Numbers in JSON text are counted before a server makes room for them."""

from __future__ import annotations

import gc
import json
import math
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ucseg_serving.json_inputs import MOST_BYTES, RefusedRequestError, check_json_inputs

JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)


def request(**tensor: Any) -> bytes:
    return json.dumps({"inputs": [{"name": "IMAGE", "datatype": "FP32"} | tensor]}).encode()


def nested(shape: list[int]) -> list[Any]:
    return [nested(shape[1:]) if shape[1:] else 0.5 for _ in range(shape[0])]


@given(st.lists(st.integers(1, 4), min_size=1, max_size=4))
def test_as_many_numbers_as_declared_pass_flat_and_nested(shape: list[int]) -> None:
    check_json_inputs(request(shape=shape, data=nested(shape)))
    check_json_inputs(request(shape=shape, data=[0.5] * math.prod(shape)))


@given(st.lists(st.integers(0, 90), min_size=1, max_size=6), st.integers(0, 30))
def test_another_count_is_refused_with_both_counts(shape: list[int], given_values: int) -> None:
    declared = math.prod(shape)
    if declared == given_values:
        check_json_inputs(request(shape=shape, data=[1] * given_values))
        return
    with pytest.raises(RefusedRequestError, match=f"input 'IMAGE': .*values that came: {given_values};") as caught:
        check_json_inputs(request(shape=shape, data=[1] * given_values))
    shown = str(declared) if declared <= MOST_BYTES else "more than can come"
    assert f"its shape declares: {shown}," in str(caught.value) or 0 in shape


@pytest.mark.parametrize("shape", [None, "5", 5, [-5], [2.5], ["5"], [True], [[5]], {"a": 5}])
def test_a_shape_that_is_none_is_refused(shape: object) -> None:
    with pytest.raises(RefusedRequestError, match="its shape is no list of whole numbers"):
        check_json_inputs(request(shape=shape, data=[1, 2, 3, 4, 5]))


@pytest.mark.parametrize(
    "text",
    [
        b'{"inputs": [{"name": "A", "shape": [1], "shape": [99999, 99999, 99999], "data": [1]}]}',
        b'{"inputs": [{"name": "A", "shape": [1], "data": [1], "d\\u0061ta": []}]}',
        b'{"inputs": [], "inputs": [{"name": "A", "shape": [99999, 99999, 99999], "data": []}]}',
    ],
)
def test_a_field_that_comes_twice_is_refused(text: bytes) -> None:
    with pytest.raises(RefusedRequestError, match="comes twice"):
        check_json_inputs(text)


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"{",
        b"\x00" * 1000,
        b"\xff\xfe",
        b"[" * 100_000,
        request(shape=[1], data=0).replace(b"0", b"[" * 900 + b"]" * 900),
    ],
)
def test_what_cannot_be_read_is_refused(text: bytes) -> None:
    with pytest.raises(RefusedRequestError):
        check_json_inputs(text)


@pytest.mark.parametrize(
    "text",
    [
        b"5",
        b"[]",
        b'{"inputs": 5}',
        b'{"inputs": [5]}',
        request(shape=[9_999] * 3, parameters={"binary_data_size": 10}),
        request(shape=[9_999] * 3, parameters={"shared_memory_region": "x", "shared_memory_byte_size": 10}),
    ],
)
def test_what_holds_no_numbers_is_left_to_the_server(text: bytes) -> None:
    check_json_inputs(text)


def test_the_garbage_collector_is_as_it_was() -> None:
    assert gc.isenabled()
    check_json_inputs(b"{}")
    assert gc.isenabled()


@pytest.mark.parametrize("name", [None, 5, ["x"] * 100, {"x": 1}])
def test_a_name_that_is_none_is_not_shown(name: object) -> None:
    with pytest.raises(RefusedRequestError, match="^an input without a name: "):
        check_json_inputs(request(name=name, shape=[2], data=[1]))


@given(JSON_VALUES)
def test_any_json_passes_or_is_refused(value: Any) -> None:
    """Anything else that escapes is a defect."""
    tensor = {"shape": value, "data": value}
    for document in (value, {"inputs": value}, {"inputs": [value]}, {"inputs": [tensor]}):
        with suppress(RefusedRequestError):
            check_json_inputs(json.dumps(document).encode())


def test_a_shape_of_huge_numbers_is_refused() -> None:
    with pytest.raises(RefusedRequestError, match="sides that no array has"):
        check_json_inputs(request(shape=[10**4000] * 2000, data=[]))


def test_no_value_is_in_a_message() -> None:
    with pytest.raises(RefusedRequestError) as caught:
        check_json_inputs(request(shape=[5], data=["DOE^JANE", 123456]))
    assert "DOE" not in str(caught.value)
    assert "123456" not in str(caught.value)
