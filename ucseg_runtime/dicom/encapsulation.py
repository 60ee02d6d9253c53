"""Walking over encapsulated pixel data, which decoders accept even when half of it is missing."""

from __future__ import annotations

import struct

from pydicom import uid

from ucseg_runtime.dicom.instances import Instance
from ucseg_runtime.errors import PixelDataError

_ITEM = 0xE000
_SEQUENCE_END = 0xE0DD
_END_OF_IMAGE = b"\xff\xd9"


def single_frame(value: bytes, instance: Instance) -> bytes:
    """The codestream of the only frame, fragments joined.

    Args:
        value: From the start of the value of Pixel Data to the end of the file.
        instance: Where it comes from.

    Raises:
        PixelDataError: The items are cut off, there is no frame, or the codestream does not end as its format must.

    Source: DICOM PS3.5 A.4.
    """
    fragments = _items(value, instance)[1:]  # the first item is the basic offset table
    if not fragments or not any(fragments):
        raise _incomplete(instance, "has encapsulated pixel data without any frame")
    if instance.transfer_syntax == uid.RLELossless:
        if len(fragments) != 1:
            raise _incomplete(instance, f"has {len(fragments)} frames of pixel data (expected 1)")
        return fragments[0]
    codestream = b"".join(fragments)
    if not codestream.rstrip(b"\0").endswith(_END_OF_IMAGE):
        raise _incomplete(instance, "has a compressed image that is cut off (no end marker)")
    return codestream


def _items(value: bytes, instance: Instance) -> list[bytes]:
    items: list[bytes] = []
    position = 0
    while position + 8 <= len(value):
        group, element, length = struct.unpack_from("<HHL", value, position)
        position += 8
        if group == 0xFFFE and element == _SEQUENCE_END:
            return items
        if group != 0xFFFE or element != _ITEM:
            raise _incomplete(instance, f"has a broken item after {len(items)} items of pixel data")
        items.append(value[position : position + length])
        position += length
    raise _incomplete(instance, f"is cut off within item {len(items)} of its encapsulated pixel data")


def _incomplete(instance: Instance, reason: str) -> PixelDataError:
    return PixelDataError(f"{instance.where} {reason}.", hint="Export or transfer the series again.")
