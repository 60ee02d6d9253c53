"""Damage to DICOM files that knows where their elements, items and codestream segments lie.

Every mutation takes the bytes of a file and a source of random numbers, and gives other bytes; the same numbers give
the same bytes.
"""

from __future__ import annotations

import random
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass

_META_START = 132
_LONG_VRS = frozenset({b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV"})
_VRS = (b"AE", b"AS", b"AT", b"CS", b"DA", b"DS", b"DT", b"FD", b"FL", b"IS", b"LO", b"LT", b"OB", b"OW", b"PN", b"SH")
_VRS += (b"SL", b"SQ", b"SS", b"ST", b"TM", b"UC", b"UI", b"UL", b"UN", b"UR", b"US", b"UT", b"XX", b"\0\0")
_LENGTHS = (0, 1, 2, 3, 0x7F, 0xFF, 0x7FFF, 0xFFFE, 0xFFFF, 0x10000, 0x7FFFFFFF, 0xFFFFFFFE, 0xFFFFFFFF)
_SHORTS = (0, 1, 2, 7, 8, 9, 12, 15, 16, 17, 32, 64, 255, 256, 0x7FFF, 0x8000, 0xFFFF)
_TEXTS = (
    b"nan",
    b"inf",
    b"-inf",
    b"1e308",
    b"1e999",
    b"-0",
    b"0",
    b"9" * 64,
    b"1\\2",
    b"\\" * 200,
    b"",
    b"\0",
    b"\xff\xfe",
)
_TEXTS += (b"1_0", b"0x10", b"1.5", b"-1", b"ISO_IR 192", b"ISO 2022 IR 87", b"\\ISO 2022 IR 999", b"GB18030", b"1.2.3")
_TEXTS += (
    b"LOCALIZER",
    b"MONOCHROME1",
    b"RGB",
    b"CT",
    b"MR",
    b"A" * 70_000,
    b"1" * 5_000,
    b"\x1b$B\xb0\xa1",
    b" " * 33,
)
_SYNTAXES = (b"1.2.840.10008.1.2", b"1.2.840.10008.1.2.1", b"1.2.840.10008.1.2.2", b"1.2.840.10008.1.2.1.99")
_SYNTAXES += (b"1.2.840.10008.1.2.5", b"1.2.840.10008.1.2.4.50", b"1.2.840.10008.1.2.4.70", b"1.2.840.10008.1.2.4.80")
_SYNTAXES += (b"1.2.840.10008.1.2.4.90", b"1.2.840.10008.1.2.4.201", b"1.2.840.10008.1.2.4.100", b"1..2", b"x", b"")
# fmt: off
_TAGS_READ = (
    0x00080008, 0x00080016, 0x00080018, 0x00080060, 0x00100010, 0x00100020, 0x00180050, 0x00180086, 0x0020000D,
    0x0020000E, 0x00200011, 0x00200012, 0x00200013, 0x00200032, 0x00200037, 0x00200052, 0x00280002, 0x00280004,
    0x00280008, 0x00280010, 0x00280011, 0x00280030, 0x00280100, 0x00280101, 0x00280102, 0x00280103, 0x00281052,
    0x00281053, 0x00080005, 0x52009229, 0x52009230, 0x7FE00010, 0x7FE00008, 0x7FE00009, 0xFFFEE000, 0xFFFEE00D,
    0xFFFEE0DD, 0x00020010, 0x00020000, 0xFFFCFFFC, 0x00091010,
)
# fmt: on
_TAGS = tuple(struct.pack("<HH", tag >> 16, tag & 0xFFFF) for tag in _TAGS_READ)
_FORMAT_TAGS = tuple(struct.pack("<HH", 0x0028, number) for number in (2, 8, 0x10, 0x11, 0x100, 0x101, 0x102, 0x103))
_PIXELS = struct.pack("<HH", 0x7FE0, 0x0010)
_ITEM, _SEQUENCE_END = b"\xfe\xff\x00\xe0", b"\xfe\xff\xdd\xe0"


@dataclass(frozen=True)
class Element:
    """Where an element lies.

    Attributes:
        start: Its tag.
        vr: Its value representation; equal to `length` where it has none.
        length: Its length field.
        value: Its value; a sequence's items are elements of their own.
        end: One past its value, at most the end of the file.
        tag: Four bytes.
    """

    start: int
    vr: int
    length: int
    value: int
    end: int
    tag: bytes


Mutation = Callable[[bytes, random.Random], bytes]


def elements(content: bytes) -> list[Element]:
    """Elements in the order of the file, as far as it can be walked."""
    found: list[Element] = []
    place = _META_START
    while place + 8 <= len(content):
        element = _element(content, place)
        found.append(element)
        if element.tag == _PIXELS:
            break
        place = element.value if _descends(content, element) else element.end
    return found


def _element(content: bytes, start: int) -> Element:
    vr = content[start + 4 : start + 6]
    if not vr.isalpha() or not vr.isupper():
        size, length_at = struct.unpack_from("<L", content, start + 4)[0], start + 4
        value = start + 8
    elif vr in _LONG_VRS:
        length_at, value = start + 8, start + 12
        size = int.from_bytes(content[length_at:value], "little")
    else:
        length_at, value = start + 6, start + 8
        size = struct.unpack_from("<H", content, length_at)[0]
    end = min(value + (0 if size == 0xFFFFFFFF else size), len(content))
    vr_at = length_at if length_at == start + 4 else start + 4
    return Element(start, vr_at, length_at, value, max(end, value), content[start : start + 4])


def _descends(content: bytes, element: Element) -> bool:
    return content[element.vr : element.vr + 2] == b"SQ" or element.tag == _ITEM


def _replaced(content: bytes, start: int, end: int, new: bytes) -> bytes:
    return content[:start] + new + content[end:]


def _place(content: bytes, rng: random.Random) -> int:
    return rng.randrange(min(_META_START, len(content) - 1), len(content)) if len(content) > 1 else 0


def flip_bits(content: bytes, rng: random.Random) -> bytes:
    """One to eight bits turned over."""
    changed = bytearray(content)
    for _ in range(rng.randint(1, 8)):
        changed[_place(content, rng)] ^= 1 << rng.randrange(8)
    return bytes(changed)


def cut(content: bytes, rng: random.Random) -> bytes:
    """The end missing."""
    return content[: rng.randrange(len(content))]


def delete(content: bytes, rng: random.Random) -> bytes:
    """A piece missing."""
    start = _place(content, rng)
    return _replaced(content, start, start + rng.choice((1, 2, 4, 8, 100)), b"")


def insert(content: bytes, rng: random.Random) -> bytes:
    """Random bytes, or a piece of the file itself, put in between."""
    start, other = _place(content, rng), _place(content, rng)
    new = rng.randbytes(rng.choice((1, 2, 8, 64))) if rng.random() < 0.5 else content[other : other + 64]
    return _replaced(content, start, start, new)


def change_length(content: bytes, rng: random.Random) -> bytes:
    """A length field that says something else."""
    element = rng.choice(elements(content))
    size = element.value - element.length
    return _replaced(
        content, element.length, element.value, (rng.choice(_LENGTHS) % 256**size).to_bytes(size, "little")
    )


def change_vr(content: bytes, rng: random.Random) -> bytes:
    """Another value representation."""
    element = rng.choice(elements(content))
    return _replaced(content, element.start + 4, element.start + 6, rng.choice(_VRS))


def change_tag(content: bytes, rng: random.Random) -> bytes:
    """A value under a tag that means something to the reader."""
    element = rng.choice(elements(content))
    return _replaced(content, element.start, element.start + 4, rng.choice(_TAGS))


def swap_tags(content: bytes, rng: random.Random) -> bytes:
    """Two elements that have changed names."""
    one, other = rng.choice(elements(content)), rng.choice(elements(content))
    changed = _replaced(content, one.start, one.start + 4, other.tag)
    return _replaced(changed, other.start, other.start + 4, one.tag)


def duplicate(content: bytes, rng: random.Random) -> bytes:
    """An element twice, the second one anywhere."""
    found = elements(content)
    element, target = rng.choice(found), rng.choice(found)
    return _replaced(content, target.start, target.start, content[element.start : element.end])


def remove(content: bytes, rng: random.Random) -> bytes:
    """An element missing."""
    element = rng.choice(elements(content))
    return _replaced(content, element.start, element.end, b"")


def change_value(content: bytes, rng: random.Random) -> bytes:
    """A value from the edge of what can be said, with a length that fits."""
    element = rng.choice(elements(content))
    return with_value(content, element, _value(content, element, rng))


def _value(content: bytes, element: Element, rng: random.Random) -> bytes:
    if element.end - element.value == 2 and rng.random() < 0.7:
        return struct.pack("<H", rng.choice(_SHORTS))
    if element.tag == b"\x02\x00\x10\x00":
        return rng.choice(_SYNTAXES)
    if element.end - element.value in (4, 8) and rng.random() < 0.3:
        return rng.choice((b"\xff", b"\x7f", b"\0", b"\x80")) * (element.end - element.value)
    return rng.choice(_TEXTS)


def with_value(content: bytes, element: Element, value: bytes) -> bytes:
    """The file with another value of an element, and the length that belongs to it."""
    size = element.value - element.length
    value = (value + b"\0" * (len(value) % 2))[: 256**size - 2]
    return _replaced(content, element.length, element.end, len(value).to_bytes(size, "little") + value)


def nest(content: bytes, rng: random.Random) -> bytes:
    """Sequences within sequences, many deep, closed or not."""
    depth = rng.choice((1, 3, 20, 100, 300, 700))
    tag = rng.choice(_TAGS)
    opening = tag + b"SQ\0\0\xff\xff\xff\xff" + _ITEM + b"\xff\xff\xff\xff"
    closing = b"\xfe\xff\x0d\xe0\0\0\0\0" + _SEQUENCE_END + b"\0\0\0\0"
    inner = opening * depth + (closing * depth if rng.random() < 0.7 else b"")
    place = rng.choice(elements(content)).start
    return _replaced(content, place, place, inner)


def bloat(content: bytes, rng: random.Random) -> bytes:
    """A large private element."""
    value = rng.randbytes(64) * 4096
    element = b"\x09\x00\x10\x10UN\0\0" + struct.pack("<L", len(value)) + value
    place = rng.choice(elements(content)).start
    return _replaced(content, place, place, element)


def change_format(content: bytes, rng: random.Random) -> bytes:
    """Another size, depth, sign or number of frames than the pixels have."""
    fitting = [element for element in elements(content) if element.tag in _FORMAT_TAGS]
    if not fitting:
        return change_value(content, rng)
    element = rng.choice(fitting)
    return with_value(content, element, _value(content, element, rng))


HEADER_MUTATIONS: tuple[Mutation, ...] = (
    flip_bits,
    cut,
    delete,
    insert,
    change_length,
    change_vr,
    change_tag,
    swap_tags,
    duplicate,
    remove,
    change_value,
    change_value,
    nest,
    bloat,
    change_format,
)


def _pixels_start(content: bytes) -> int:
    last = elements(content)[-1]
    return last.value if last.tag == _PIXELS else _META_START


def _markers(content: bytes) -> list[int]:
    """Places in the pixel data where a marker of the JPEG family may stand."""
    start = _pixels_start(content)
    places = []
    place = content.find(b"\xff", start)
    while 0 <= place < len(content) - 4:
        if content[place + 1] not in (0x00, 0xFF):
            places.append(place)
        place = content.find(b"\xff", place + 1)
    return places


def flip_pixel_bits(content: bytes, rng: random.Random) -> bytes:
    """Bits of the codestream turned over, more often near its start, where its own header is."""
    start = _pixels_start(content)
    changed = bytearray(content)
    if start >= len(content):
        return content
    for _ in range(rng.randint(1, 12)):
        reach = min(len(content) - start, rng.choice((60, 200, 1 << 30)))
        changed[start + rng.randrange(reach)] ^= 1 << rng.randrange(8)
    return bytes(changed)


def change_marker(content: bytes, rng: random.Random) -> bytes:
    """A number of a marker segment: its length, a size, a precision, a count."""
    places = _markers(content)
    if not places:
        return flip_pixel_bits(content, rng)
    place = rng.choice(places[:12]) + 2 + rng.randrange(24)
    return _replaced(content, place, place + 2, struct.pack(">H", rng.choice(_SHORTS)))[: len(content)]


def repeat_segment(content: bytes, rng: random.Random) -> bytes:
    """A marker segment twice, or in another place."""
    places = _markers(content)
    if len(places) < 2:
        return flip_pixel_bits(content, rng)
    first, target = rng.choice(places), rng.choice(places)
    following = next((place for place in places if place > first), first + 2)
    return _replaced(content, target, target, content[first : min(following, first + 400)])


def cut_codestream(content: bytes, rng: random.Random) -> bytes:
    """The middle of the codestream missing; its end marker is still there."""
    start = _pixels_start(content)
    if len(content) - start < 60:
        return content
    first = rng.randrange(start + 16, len(content) - 24)
    return _replaced(content, first, min(first + rng.choice((2, 20, 1 << 20)), len(content) - 12), b"")


def change_items(content: bytes, rng: random.Random) -> bytes:
    """Items of the encapsulated pixel data with other lengths, other tags, or none at all."""
    start = _pixels_start(content)
    places = [
        place for place in (start, content.find(_ITEM, start + 4), content.rfind(_SEQUENCE_END)) if place >= start
    ]
    if not places:
        return flip_pixel_bits(content, rng)
    place = rng.choice(places)
    choice = rng.randrange(3)
    if choice == 0:
        return _replaced(content, place + 4, place + 8, struct.pack("<L", rng.choice(_LENGTHS)))
    if choice == 1:
        return _replaced(content, place, place + 4, rng.choice((_ITEM, _SEQUENCE_END, b"\0\0\0\0")))
    return _replaced(content, place, place, _ITEM + struct.pack("<L", rng.choice((0, 2, 4, 0xFFFF))))


PIXEL_MUTATIONS: tuple[Mutation, ...] = (
    flip_pixel_bits,
    flip_pixel_bits,
    flip_pixel_bits,
    change_marker,
    change_marker,
    repeat_segment,
    cut_codestream,
    change_items,
    change_format,
)


def mutated(content: bytes, mutations: Sequence[Mutation], rng: random.Random) -> bytes:
    """The file after one to three of `mutations`; what leaves nothing to damage ends it early."""
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        if len(content) <= _META_START + 8:
            return content
        content = rng.choice(mutations)(content, rng)
    return content
