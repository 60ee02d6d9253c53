"""Backends without an engine, for tests of what surrounds one."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ucseg_runtime.arrays import Float32Array
from ucseg_runtime.backends.base import BackendInfo, TileOutput, check_tiles
from ucseg_runtime.manifest import ModelSpec
from ucseg_runtime.segmentation import EngineInfo

FAKE_ENGINE = EngineInfo("fake", "0", "f32", "none")


class FakeBackend:
    """Answers every tile with a function of it, and remembers how large the batches were.

    Args:
        spec: What the model fixes.
        probabilities: From a tile (channels, z, y, x) to its probabilities (channels, z, y, x).
        uncertainty: Constant that every voxel gets.
    """

    def __init__(
        self, spec: ModelSpec, probabilities: Callable[[Float32Array], Float32Array], uncertainty: float = 0.25
    ) -> None:
        self.info = BackendInfo(FAKE_ENGINE, batch_atol=0.0)
        self.batch_sizes: list[int] = []
        self._spec = spec
        self._probabilities = probabilities
        self._uncertainty = uncertainty

    def infer(self, tiles: Float32Array, *, with_logits: bool = False) -> TileOutput:
        check_tiles(tiles, self._spec)
        self.batch_sizes.append(len(tiles))
        return TileOutput(
            probabilities=np.stack([self._probabilities(tile) for tile in tiles]),
            uncertainty=np.full((len(tiles), 1, *tiles.shape[2:]), self._uncertainty, dtype=np.float32),
        )
