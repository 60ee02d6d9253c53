"""Tiles back to one volume: weighted sums of overlapping tiles, divided by the true sum of their weights.

Slices are handed on as soon as no later tile touches them, so that no array of the whole model grid is needed.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from ucseg_runtime.arrays import Float32Array
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
    """Averages over all tiles, for consecutive slices of the model grid.

    Attributes:
        first: z index of the first of these slices.
        probabilities: float32, shape (channels, z, y, x), in [0, 1]; one channel for a sigmoid model, else K.
        uncertainty: float32, shape (z, y, x), in [0, 1]; 1 = no evidence.
    """

    first: int
    probabilities: Float32Array
    uncertainty: Float32Array

    @property
    def stop(self) -> int:
        """Z index after the last slice."""
        return self.first + len(self.uncertainty)


class Stitcher:
    """A canvas on which the tiles of one plan are averaged, with only those slices that tiles still to come touch.

    Tiles come with z slowest, so the canvas is about as deep as a tile, however many slices the volume has.

    What no tile covers is background: its probabilities say so, and its uncertainty is 0.

    Args:
        plan: Where the tiles lie.
        channels: Channels of the probabilities.
    """

    def __init__(self, plan: TilePlan, channels: int) -> None:
        self._plan = plan
        self._tile_weights = tile_weights(plan.tiling)
        self._final = _final_slices(plan)
        self._first = 0  # z index of the first slice of the canvas
        sides = (_canvas_depth(plan, self._final), *plan.spatial_shape[1:])
        self._sums = np.zeros((channels + 1, *sides), dtype=np.float32)  # probabilities, then uncertainty
        self._weights = np.zeros(sides, dtype=np.float32)
        self._added = 0

    def add(self, tiles: tuple[Tile, ...], output: TileOutput) -> tuple[Stitched, ...]:
        """Add the results of the next tiles of the plan, in the order of the plan.

        Returns:
            Slices that no later tile touches, each once, in ascending order; after the last tile of the plan all slices
            of the model grid were returned.

        Raises:
            BackendError: The results have another shape than the tiles, or hold values that are not finite or lie
                outside [0, 1].
        """
        self._check_shape(tiles, output)
        final: list[Stitched] = []
        for tile, probabilities, uncertainty in zip(tiles, output.probabilities, output.uncertainty, strict=True):
            final += self._take_final()  # of the first tile: slices before it that no tile touches
            self._add_tile(tile, probabilities, uncertainty)
            final += self._take_final()
        return tuple(final)

    def _add_tile(self, tile: Tile, probabilities: Float32Array, uncertainty: Float32Array) -> None:
        self._added += 1
        self._check_range(probabilities)
        self._check_range(uncertainty)
        (z, y, x), within = tile.overlap_with(self._plan.spatial_shape)
        inside = (slice(z.start - self._first, z.stop - self._first), y, x)
        weights = self._tile_weights[within]
        self._sums[(slice(-1), *inside)] += probabilities[(slice(None), *within)] * weights
        self._sums[(-1, *inside)] += uncertainty[(0, *within)] * weights
        self._weights[inside] += weights

    def _take_final(self) -> Iterator[Stitched]:
        """Slices that no later tile touches: so many at a time as the canvas holds, as tiles need not cover all."""
        while self._first < self._final[self._added]:
            yield self._take(min(self._final[self._added] - self._first, len(self._weights)))

    def _take(self, slices: int) -> Stitched:
        """Average the first slices of the canvas, and move the others to its beginning."""
        sums, weights = self._sums[:, :slices], self._weights[:slices]
        unseen = weights == 0.0  # every tile gives all of its voxels a weight
        has_background = len(sums) > 2  # a foreground that is alone has no channel for it
        if unseen.all():
            taken = _background(self._first, sums.shape, has_background)
        else:
            weights[unseen] = 1.0
            if has_background:
                sums[0][unseen] = 1.0
            taken = Stitched(self._first, sums[:-1] / weights, sums[-1] / weights)
        self._first += slices
        for canvas in (*self._sums, self._weights):
            kept = len(canvas) - slices
            canvas[:kept] = canvas[slices:]
            canvas[kept:] = 0.0
        return taken

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


def joined(parts: Iterable[Stitched], slices: slice) -> Stitched:
    """Some slices of the model grid in one piece.

    Args:
        parts: Consecutive, in ascending order; together they hold `slices`.
        slices: z indices of the model grid.
    """
    cuts = [(part, slice(*(max(end - part.first, 0) for end in (slices.start, slices.stop)))) for part in parts]
    return Stitched(
        slices.start,
        np.concatenate([part.probabilities[:, cut] for part, cut in cuts], axis=1),
        np.concatenate([part.uncertainty[cut] for part, cut in cuts]),
    )


def _background(first: int, shape: tuple[int, ...], has_background: bool) -> Stitched:
    """Slices that no tile touches, as views that take no memory; `shape` is (channels + 1, z, y, x)."""
    values = np.zeros((shape[0], 1, 1, 1), dtype=np.float32)
    if has_background:
        values[0] = 1.0
    whole = np.broadcast_to(values, shape)
    return Stitched(first, whole[:-1], whole[-1])


def _final_slices(plan: TilePlan) -> list[int]:
    """How many slices of the model grid are final before each tile of the plan, and after the last one."""
    final = [plan.spatial_shape[0]]
    for tile in reversed(plan.tiles):
        final.append(min(final[-1], max(tile.start[0], 0)))
    return final[::-1]


def _canvas_depth(plan: TilePlan, final: list[int]) -> int:
    """Most slices between what is final before a tile and what the tile reaches."""
    ends: list[int] = [tile.overlap_with(plan.spatial_shape)[0][0].stop for tile in plan.tiles]
    return max(end - before for end, before in zip(ends, final[:-1], strict=True))


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
