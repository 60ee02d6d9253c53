"""Values of header elements, whatever a file claims them to be: converted, or taken as absent."""

from __future__ import annotations

import re
import struct
import zlib
from functools import lru_cache

from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset
from pydicom.errors import BytesLengthException, InvalidDicomError
from pydicom.multival import MultiValue
from pydicom.sequence import Sequence
from pydicom.tag import BaseTag, Tag

UNREADABLE = (
    InvalidDicomError,
    BytesLengthException,
    NotImplementedError,
    OSError,
    EOFError,
    ValueError,
    TypeError,
    AttributeError,
    LookupError,
    ArithmeticError,
    AssertionError,
    struct.error,
    zlib.error,
    RecursionError,
    MemoryError,
)
"""What pydicom was seen to raise on damaged files; anything else is a defect and surfaces as one."""

_LARGEST_NUMBER = 1e9
_INTEGER_STRINGS_END = 2**31
_TEXT_VRS = frozenset({"AS", "CS", "DA", "DS", "IS", "LO", "PN", "SH", "TM", "UI"})
_PLAIN_TEXT = re.compile(rb"[ -~]*\0?")


def values_of(dataset: Dataset, keyword: str) -> list[object]:
    """The values of an element as a list; empty when it is missing, empty or cannot be converted."""
    try:
        raw = dataset.get_item(_tag_of(keyword))
        if isinstance(raw, RawDataElement) and (plain := _plain_values(raw)) is not None:
            return plain
        value = dataset.get(keyword)
    except UNREADABLE:
        return []
    if value is None:
        return []
    return list(value) if isinstance(value, list | tuple | MultiValue | Sequence) else [value]


def sequence_of(dataset: Dataset, keyword: str) -> list[Dataset]:
    """The items of a sequence; empty when it is missing or no sequence."""
    return [item for item in values_of(dataset, keyword) if isinstance(item, Dataset)]


@lru_cache(maxsize=256)
def _tag_of(keyword: str) -> BaseTag:
    return Tag(keyword)


def _plain_values(raw: RawDataElement) -> list[object] | None:
    """Values whose bytes mean the same in every character set; None for all others, which pydicom converts.

    pydicom takes ten times as long for these, which are nearly all that a scan reads.
    """
    if not raw.value:
        return []
    if raw.VR in _TEXT_VRS and _PLAIN_TEXT.fullmatch(raw.value):
        return [*raw.value.decode("ascii").rstrip(" \0").split("\\")]
    if raw.VR == "US" and raw.is_little_endian and len(raw.value) % 2 == 0:
        return [*struct.unpack(f"<{len(raw.value) // 2}H", raw.value)]
    return None


def texts_of(dataset: Dataset, keyword: str) -> list[str]:
    """All values as text; items of sequences have none, and to make it of deep, damaged ones takes pydicom for ever."""
    return [str(value) for value in values_of(dataset, keyword) if not isinstance(value, Dataset)]


def text_of(dataset: Dataset, keyword: str) -> str:
    """The first value as text without padding; empty when there is none."""
    return next(iter(texts_of(dataset, keyword)), "").strip(" \0")


def uid_of(dataset: Dataset, keyword: str) -> str:
    """Digits and dots, at most 64; empty for anything else. Leading zeros are forbidden but common, and kept."""
    text = text_of(dataset, keyword)
    return text if re.fullmatch(r"[0-9.]{1,64}", text) else ""


def code_of(dataset: Dataset, keyword: str) -> str:
    """A defined term; empty when the value could be free text, which must not reach a message."""
    text = text_of(dataset, keyword).upper()
    return text if re.fullmatch(r"[A-Z0-9_ ]{1,16}", text) else ""


def numbers_of(dataset: Dataset, keyword: str, count: int) -> list[float] | None:
    """Exactly `count` numbers of a size that arithmetic can bear, or None."""
    try:
        numbers = [float(text) for text in texts_of(dataset, keyword)]
    except ValueError:
        return None
    return numbers if len(numbers) == count and all(abs(number) < _LARGEST_NUMBER for number in numbers) else None


def integer_of(dataset: Dataset, keyword: str) -> int | None:
    """The first value as a whole number within what an Integer String can hold, or None."""
    try:
        number = float(texts_of(dataset, keyword)[0])
    except (IndexError, ValueError):
        return None
    return int(number) if number.is_integer() and abs(number) < _INTEGER_STRINGS_END else None
