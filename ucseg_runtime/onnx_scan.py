"""What an ONNX file asks for beyond itself, read from its bytes without an ONNX library.

A file of a model folder may hold standard operators and its own weights, nothing else: no weights in other files, no
operators of foreign domains, no functions of its own under which such operators could hide.

Source: onnx.proto of ONNX 1.23 for the field numbers, and the Protocol Buffers encoding guide for the wire format.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import MappingProxyType

_STANDARD_DOMAINS = (b"", b"ai.onnx")
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_EXTERNAL = 1

_CHILDREN: Mapping[str, Mapping[int, str]] = MappingProxyType(
    {
        "model": {7: "graph"},
        "graph": {1: "node", 5: "tensor", 15: "sparse_tensor"},
        "node": {5: "attribute"},
        "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse_tensor", 23: "sparse_tensor"},
        "sparse_tensor": {1: "tensor", 2: "tensor"},
        "tensor": {},
    }
)
"""Which fields of a message are messages worth looking into."""


def objections(graph: bytes) -> frozenset[str]:
    """Everything in an ONNX file that a model folder must not hold, in words; empty for an acceptable file.

    Raises:
        ValueError: The bytes are not an ONNX file.
    """
    found: set[str] = set()
    pending = [("model", memoryview(graph))]
    kinds = set()
    while pending:  # a list instead of recursion: graphs may be nested without limit
        kind, message = pending.pop()
        kinds.add(kind)
        for number, value in _fields(message):
            found.update(_objection(kind, number, value))
            child = _CHILDREN[kind].get(number)
            if child is not None:
                pending.append((child, _as_bytes(value)))
    if "node" not in kinds:
        raise ValueError("no graph with operators")
    return frozenset(found)


def _objection(kind: str, number: int, value: memoryview | int) -> Iterator[str]:
    if (kind, number) == ("node", 7) and bytes(_as_bytes(value)) not in _STANDARD_DOMAINS:
        yield "operators of a foreign domain"
    if (kind, number) == ("tensor", 13) or ((kind, number) == ("tensor", 14) and value == _EXTERNAL):
        yield "weights in another file"
    if (kind, number) == ("model", 25):
        yield "functions of its own"
    if (kind, number) == ("model", 20):
        yield "training steps"


def _fields(message: memoryview) -> Iterator[tuple[int, memoryview | int]]:
    """Number and value of every field of one message, in order."""
    position = 0
    while position < len(message):
        key, position = _varint(message, position)
        number, wire_type = key >> 3, key & 7
        if wire_type == _VARINT:
            value, position = _varint(message, position)
            yield number, value
            continue
        length, position = _length(message, position, wire_type)
        if position + length > len(message):
            raise ValueError("a field reaches past the end")
        yield number, message[position : position + length]
        position += length


def _length(message: memoryview, position: int, wire_type: int) -> tuple[int, int]:
    """Size of a field's value, and where the value starts."""
    if wire_type == _BYTES:
        return _varint(message, position)
    if wire_type in (_FIXED32, _FIXED64):
        return 4 if wire_type == _FIXED32 else 8, position
    raise ValueError(f"unknown wire type {wire_type}")


def _varint(message: memoryview, position: int) -> tuple[int, int]:
    """An integer of seven bits per byte, and the position after it."""
    result = 0
    for shift in range(0, 64 + 6, 7):
        if position >= len(message):
            raise ValueError("the file ends within a number")
        byte = message[position]
        position += 1
        result |= (byte & 0x7F) << shift
        if byte < 0x80:
            return result, position
    raise ValueError("a number is longer than 64 bits")


def _as_bytes(value: memoryview | int) -> memoryview:
    if isinstance(value, int):
        raise ValueError("a message is encoded as a number")
    return value
