"""Numbers that come as JSON text: as many as their shape declares, or the request is refused.

Triton 2.51 makes room for what a shape declares before it counts the numbers, and ends when there is no such room.
"""

from __future__ import annotations

import gc
import json
from collections.abc import Iterator
from contextlib import contextmanager

MOST_BYTES = 16 << 20
"""Of JSON text in one request: the worst one is read in 3 s and a gigabyte."""

_MORE_THAN_ANY_TEXT = MOST_BYTES + 1
_MOST_VALUES = 1 << 40
"""Of a tensor, a side of 0 taken as 1: the processes of Triton's Python models end where NumPy has no such array."""
_Json = dict[str, "_Json"] | list["_Json"] | str | int | float | bool | None


class RefusedRequestError(ValueError):
    """A request that must not reach the server; the message holds names and counts, and no values."""


def check_json_inputs(text: bytes) -> None:
    """Compare declared and given numbers of the inputs of a KServe v2 inference request.

    What cannot end the server is left to its own errors: unknown names, wrong types, inputs that come as bytes.

    Args:
        text: The request, or its JSON header where tensors follow as bytes.

    Raises:
        RefusedRequestError: No JSON, a field that comes twice, another count of numbers than the shape declares, or
            sides that no array has.
    """
    try:
        with _without_garbage_collection():
            for tensor in _tensors(json.loads(text, object_pairs_hook=_once)):
                _check_extent(tensor)
                if "data" in tensor:
                    _check_count(tensor)
    except RefusedRequestError:
        raise
    except (ValueError, RecursionError) as error:
        raise RefusedRequestError("the request cannot be read as JSON") from error


@contextmanager
def _without_garbage_collection() -> Iterator[None]:
    """Millions of small lists without a circle among them: looking for one takes ten times as long as reading them."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def _once(pairs: list[tuple[str, _Json]]) -> dict[str, _Json]:
    """An object of JSON; where a field comes twice, the server might read the other one."""
    found = dict(pairs)
    if len(found) < len(pairs):
        raise RefusedRequestError("a field of the request comes twice")
    return found


def _tensors(request: _Json) -> Iterator[dict[str, _Json]]:
    """The inputs of a request, as far as they are described by objects."""
    inputs = request.get("inputs") if isinstance(request, dict) else None
    for tensor in inputs if isinstance(inputs, list) else ():
        if isinstance(tensor, dict):
            yield tensor


def _check_extent(tensor: dict[str, _Json]) -> None:
    shape, extent = tensor.get("shape"), 1
    for length in shape if isinstance(shape, list) else ():
        extent = min(extent * max(length, 1) if type(length) is int else extent, _MOST_VALUES + 1)
    if extent > _MOST_VALUES:
        raise RefusedRequestError(f"{_called(tensor)}: its shape has sides that no array has")


def _check_count(tensor: dict[str, _Json]) -> None:
    called, shape, given, declared = _called(tensor), tensor.get("shape"), _count(tensor["data"]), 1
    for length in shape if isinstance(shape, list) else [None]:
        if type(length) is not int or length < 0:
            raise RefusedRequestError(f"{called}: its shape is no list of whole numbers from 0 on")
        declared = min(declared * length, _MORE_THAN_ANY_TEXT)
    if declared != given:
        many = "more than can come" if declared == _MORE_THAN_ANY_TEXT else str(declared)
        raise RefusedRequestError(
            f"{called}: values that its shape declares: {many}, values that came: {given}; "
            "send as many as it declares, or the tensor as bytes with binary_data_size"
        )


def _called(tensor: dict[str, _Json]) -> str:
    name = tensor.get("name")
    return f"input {name[:64]!r}" if isinstance(name, str) else "an input without a name"


def _count(data: _Json) -> int:
    """Values in lists of lists, however deep."""
    if not isinstance(data, list):
        return 1
    lists = [item for item in data if isinstance(item, list)]
    return len(data) - len(lists) + sum(map(_count, lists))
