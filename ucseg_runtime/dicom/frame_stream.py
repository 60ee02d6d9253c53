"""Frames of a multi-frame object as a stream that is written in pieces, without a second copy of all of them."""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt


def frame_stream(frames: Sequence[npt.NDArray[np.generic]]) -> io.BufferedReader:
    """The bytes of all frames, one after the other, as a value of Pixel Data that pydicom reads while it writes.

    Args:
        frames: C-contiguous, little endian, all of one size; they must not change until the object is written. An odd
            number of bytes is followed by a zero, since values have even lengths (DICOM PS3.5 8.1.1).
    """
    return io.BufferedReader(_RawFrames(frames))


class _RawFrames(io.RawIOBase):
    def __init__(self, frames: Sequence[npt.NDArray[np.generic]]) -> None:
        super().__init__()
        self._frames = frames
        self._bytes = sum(frame.nbytes for frame in frames)
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        size = self._bytes + self._bytes % 2
        self._position = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: size}[whence]
        return self._position

    def readinto(self, target: Any) -> int:  # noqa: ANN401  (whatever has a writable buffer)
        number, skipped = divmod(self._position, self._frames[0].nbytes)
        if number >= len(self._frames):
            return self._pad(target)
        source = self._frames[number].data.cast("B")[skipped:]
        size = min(len(target), len(source))
        target[:size] = source[:size]
        self._position += size
        return size

    def _pad(self, target: Any) -> int:  # noqa: ANN401  (see above)
        missing = self._bytes + self._bytes % 2 - self._position
        target[:missing] = bytes(missing)
        self._position += missing
        return missing
