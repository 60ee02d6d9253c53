"""Label maps of the frames of a clip, held compressed: a long clip has more pixels than memory has bytes for."""

from __future__ import annotations

import zlib

import numpy as np

from ucseg_runtime.arrays import UInt8Array

_FAST = 1
"""Label maps are areas of one value each; trying harder saves nothing that counts."""


class LabelFrames:
    """Label maps of equal size, in order.

    Args:
        rows: Of each.
        columns: Of each.
    """

    def __init__(self, rows: int, columns: int) -> None:
        self.frame_shape = (rows, columns)
        self._compressed: list[bytes] = []

    def append(self, labels: UInt8Array) -> None:
        """Add a label map of uint8, shape (rows, columns).

        Raises:
            ValueError: It has another shape.
        """
        if labels.shape != self.frame_shape:
            raise ValueError(f"the label map has shape {labels.shape}; expected {self.frame_shape}")
        self._compressed.append(zlib.compress(labels.tobytes(), _FAST))

    def __len__(self) -> int:
        return len(self._compressed)

    def __getitem__(self, frame: int) -> UInt8Array:
        """The label map of a frame, from 0: uint8, shape (rows, columns), read-only."""
        return np.frombuffer(zlib.decompress(self._compressed[frame]), dtype=np.uint8).reshape(self.frame_shape)
