"""Walking over encapsulated pixel data, which decoders accept even when half of it is missing."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np
from pydicom import uid

from ucseg_runtime.dicom.instances import Instance
from ucseg_runtime.errors import PixelDataError

_ITEM = 0xE000
_ITEM_HEADER = 8
_SEQUENCE_END = 0xE0DD
_END_OF_IMAGE = b"\xff\xd9"
_PADDING = b"\0\xff"
"""What an odd codestream is followed by: zero as the standard says, or 255 from some archives."""


@dataclass(frozen=True)
class Item:
    """A stretch of a file.

    Attributes:
        offset: Bytes from the start of the file.
        length: Bytes.
    """

    offset: int
    length: int


def fragments_of_frames(stream: BinaryIO, instance: Instance) -> list[list[Item]]:
    """Where the fragments of every frame of a file lie.

    Args:
        stream: The file, at the start of the value of Pixel Data.
        instance: The file, or any frame of it.

    Returns:
        As many lists as the file has frames.

    Raises:
        PixelDataError: The items are cut off, or they do not make up the frames.

    Source: DICOM PS3.5 A.4.
    """
    table, *fragments = _items(stream, instance)
    frames = instance.pixel_format.frames
    if not any(item.length for item in fragments):
        raise _incomplete(instance, "has encapsulated pixel data without any frame")
    if frames == 1 and instance.transfer_syntax != uid.RLELossless:
        return [fragments]
    if len(fragments) == frames:
        return [[item] for item in fragments]
    starts = _starts(stream, table)
    if len(starts) != frames or instance.transfer_syntax == uid.RLELossless:
        raise _incomplete(instance, f"has {len(fragments)} fragments of pixel data (expected {frames})")
    begun_at = [item.offset - fragments[0].offset for item in fragments]
    frame_of = np.searchsorted(starts, begun_at, side="right") - 1
    by_frame: list[list[Item]] = [[] for _ in range(frames)]
    for item, frame in zip(fragments, frame_of, strict=True):
        by_frame[frame].append(item)
    return by_frame


def codestream(stream: BinaryIO, fragments: Sequence[Item], instance: Instance) -> bytes:
    """The compressed image of one frame, fragments joined.

    Raises:
        PixelDataError: The codestream does not end as its format must.
    """
    parts = []
    for item in fragments:
        stream.seek(item.offset)
        parts.append(stream.read(item.length))
    joined = b"".join(parts)
    if instance.transfer_syntax != uid.RLELossless and not joined.rstrip(_PADDING).endswith(_END_OF_IMAGE):
        raise _incomplete(instance, "has a compressed image that is cut off (no end marker)")
    return joined


def _starts(stream: BinaryIO, table: Item) -> list[int]:
    """The basic offset table: where frames begin, in bytes from the first fragment."""
    stream.seek(table.offset)
    return list(struct.unpack(f"<{table.length // 4}L", stream.read(table.length // 4 * 4)))


def _items(stream: BinaryIO, instance: Instance) -> list[Item]:
    """The basic offset table and all fragments."""
    items: list[Item] = []
    position = stream.tell()
    while len(header := stream.read(_ITEM_HEADER)) == _ITEM_HEADER:
        group, element, length = struct.unpack("<HHL", header)
        position += _ITEM_HEADER
        if group == 0xFFFE and element == _SEQUENCE_END and items:
            return items
        if group != 0xFFFE or element != _ITEM:
            raise _incomplete(instance, f"has a broken item after {len(items)} items of pixel data")
        items.append(Item(position, length))
        position = stream.seek(position + length)
    raise _incomplete(instance, f"is cut off within item {len(items)} of its encapsulated pixel data")


def _incomplete(instance: Instance, reason: str) -> PixelDataError:
    return PixelDataError(f"{instance.where} {reason}.", hint="Export or transfer the series again.")
