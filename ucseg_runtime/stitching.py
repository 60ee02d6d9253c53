"""Tiles back to one volume: weighted sums of overlapping tiles, divided by the true sum of their weights."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ucseg_runtime.arrays import Float32Array, Slices3
from ucseg_runtime.backends.base import TileOutput
from ucseg_runtime.errors import BackendError
from ucseg_runtime.manifest import Tiling
from ucseg_runtime.tiling import Tile, TilePlan

_WEIGHT_FLOOR = 1e-3
"""Least weight, the centre of a tile having 1: what only corners of tiles reach is still divided by something."""

_RANGE_SLACK = 1e-3
"""How far rounding may carry a value out of [0, 1]; float32 needs about 1e-6."""


@dataclass(frozen=True, eq=False)
class Stitched:
    """Averages over all tiles, on the model grid.

    Attributes:
        probabilities: float32, shape (channels, z, y, x), in [0, 1]; one channel for a sigmoid model, else K.
        uncertainty: float32, shape (z, y, x), in [0, 1]; 1 = no evidence.
    """

    probabilities: Float32Array
    uncertainty: Float32Array


class Stitcher:
    """A canvas of the size of the model grid on which the tiles of one plan are averaged.

    What no tile covers is background: its probabilities say so, and its uncertainty is 0.

    Args:
        plan: Where the tiles lie.
        channels: Channels of the probabilities.
    """

    def __init__(self, plan: TilePlan, channels: int) -> None:
        self._plan = plan
        self._tile_weights = tile_weights(plan.tiling)
        self._sums = np.zeros((channels + 1, *plan.spatial_shape), dtype=np.float32)  # probabilities, then uncertainty
        self._weights = np.zeros(plan.spatial_shape, dtype=np.float32)
        self._added = 0
        self._fill_unseen(plan.reach)

    def _fill_unseen(self, reach: Slices3) -> None:
        unseen = np.ones(self._weights.shape, dtype=bool)
        unseen[reach] = False
        self._weights[unseen] = 1.0
        if len(self._sums) > 2:  # a foreground that is alone has no channel for background, and stays 0
            self._sums[0][unseen] = 1.0

    def add(self, tiles: tuple[Tile, ...], output: TileOutput) -> None:
        """Add the results of the next tiles of the plan, in the order of the plan.

        Raises:
            BackendError: The results have another shape than the tiles, or hold values that are not finite or lie
                outside [0, 1].
        """
        self._check_shape(tiles, output)
        for tile, probabilities, uncertainty in zip(tiles, output.probabilities, output.uncertainty, strict=True):
            self._added += 1
            self._check_range(probabilities)
            self._check_range(uncertainty)
            inside, within = tile.overlap_with(self._plan.spatial_shape)
            weights = self._tile_weights[within]
            self._sums[(slice(-1), *inside)] += probabilities[(slice(None), *within)] * weights
            self._sums[(-1, *inside)] += uncertainty[(0, *within)] * weights
            self._weights[inside] += weights

    def finish(self) -> Stitched:
        """The weighted averages.

        Raises:
            BackendError: Fewer tiles were added than the plan has.
        """
        if self._added != len(self._plan.tiles):
            raise BackendError(
                f"results of {self._added} tiles were stitched; the plan has {len(self._plan.tiles)} tiles"
            )
        return Stitched(self._sums[:-1] / self._weights, self._sums[-1] / self._weights)

    def _check_shape(self, tiles: tuple[Tile, ...], output: TileOutput) -> None:
        for values, channels in ((output.probabilities, len(self._sums) - 1), (output.uncertainty, 1)):
            expected = (len(tiles), channels, *self._plan.tiling.tile_shape)
            if values.shape != expected:
                raise BackendError(f"the engine returned an array of shape {values.shape}; expected {expected}")

    def _check_range(self, values: Float32Array) -> None:
        # Comparisons with NaN are false, so this refuses NaN and infinities too.
        if not (values.min() >= -_RANGE_SLACK and values.max() <= 1.0 + _RANGE_SLACK):
            raise BackendError(
                f"tile {self._added} of {len(self._plan.tiles)}: the engine returned values that are not finite or lie "
                "outside [0, 1].",
                hint="Try the precision f32 or another engine, and report the model and engine versions.",
                code="UCSEG-E142",
            )


def tile_weights(tiling: Tiling) -> Float32Array:
    """How much each voxel of a tile counts in the average.

    Returns:
        float32, shape (z, y, x) of the tile, in (0, 1]: all 1 for ``uniform``; for ``gaussian`` the product of three
        bells around the centre with sigma = side / 8, but never less than 0.001.
    """
    if tiling.weighting == "uniform":
        return np.ones(tiling.tile_shape, dtype=np.float32)
    z, y, x = (_bell(side) for side in tiling.tile_shape)
    weights: Float32Array = np.maximum(z[:, None, None] * y[:, None] * x, np.float32(_WEIGHT_FLOOR))
    return weights


def _bell(side: int) -> Float32Array:
    distance = np.arange(side, dtype=np.float32) - np.float32((side - 1) / 2)
    bell: Float32Array = np.exp(np.float32(-0.5) * (distance / np.float32(side / 8)) ** 2)
    return bell
