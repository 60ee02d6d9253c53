"""Frames as a stream: the same bytes as all frames joined, however they are read."""

from __future__ import annotations

import io
import os

import numpy as np
import pytest

from ucseg_runtime.dicom.frame_stream import frame_stream

FRAMES = [np.arange(21, dtype="<u2").reshape(3, 7) + 100 * number for number in range(4)]
JOINED = b"".join(frame.tobytes() for frame in FRAMES)


@pytest.mark.parametrize("chunk", [1, 5, 42, 43, 1000])
def test_chunks_of_any_size_give_all_frames_in_order(chunk: int) -> None:
    stream = frame_stream(FRAMES)
    assert b"".join(iter(lambda: stream.read(chunk), b"")) == JOINED


@pytest.mark.parametrize("chunk", [1, 63, 1000])
def test_odd_number_of_bytes_is_made_even(chunk: int) -> None:
    frames = [np.full((3, 7), number, dtype=np.uint8) for number in range(3)]
    stream = frame_stream(frames)

    assert b"".join(iter(lambda: stream.read(chunk), b"")) == b"".join(f.tobytes() for f in frames) + b"\0"
    assert stream.seek(0, os.SEEK_END) == 64


def test_stream_can_be_read_from_any_place() -> None:
    stream = frame_stream(FRAMES)
    assert stream.seek(0, os.SEEK_END) == len(JOINED)
    assert stream.read() == b""
    for place in (0, 1, 41, 42, 100):
        assert stream.seek(place) == place
        assert stream.read(10) == JOINED[place : place + 10]
    assert isinstance(stream, io.BufferedIOBase)  # what pydicom takes for a value
