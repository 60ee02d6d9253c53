"""Where the tiles lie: a plan of fixed-size boxes that covers a volume."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass

from ucseg_runtime.arrays import Slices3
from ucseg_runtime.manifest import Tiling


@dataclass(frozen=True)
class Tile:
    """A box of the model grid, half-open: voxels start … stop − 1 along (z, y, x). It may reach outside the volume.

    Attributes:
        start: First voxel along (z, y, x); negative where the volume is smaller than the tile.
        shape: Sides in voxels.
    """

    start: tuple[int, int, int]
    shape: tuple[int, int, int]

    def overlap_with(self, spatial_shape: tuple[int, int, int]) -> tuple[Slices3, Slices3]:
        """The part inside a volume: as slices of the volume, and as slices of the tile."""
        inside, within = [], []
        for first, side, limit in zip(self.start, self.shape, spatial_shape, strict=True):
            low, high = max(first, 0), min(first + side, limit)
            inside.append(slice(low, high))
            within.append(slice(low - first, high - first))
        return (inside[0], inside[1], inside[2]), (within[0], within[1], within[2])


@dataclass(frozen=True)
class TilePlan:
    """Tiles that together cover every voxel of a box of `spatial_shape`, usually all of it, at least once."""

    spatial_shape: tuple[int, int, int]
    tiles: tuple[Tile, ...]
    tiling: Tiling

    def batches(self, batch_size: int) -> Iterator[tuple[Tile, ...]]:
        """The tiles in order, `batch_size` at a time; the last batch may be smaller."""
        for first in range(0, len(self.tiles), batch_size):
            yield self.tiles[first : first + batch_size]


def axis_starts(side: int, tile: int, overlap: float) -> tuple[int, ...]:
    """First voxels of the tiles along one axis, spread evenly.

    Args:
        side: Voxels of the volume.
        tile: Voxels of a tile.
        overlap: Least shared fraction of neighbouring tiles, in [0, 1).

    Returns:
        Ascending. One centred tile, with a start of 0 or less, where the volume is not larger than the tile; else the
        first start is 0 and the last is side − tile.
    """
    if side <= tile:
        return (-((tile - side) // 2),)
    # 96 x (1 - 92/96) is a little less than 4 in floating point, and must not become 3.
    stride = max(1, math.floor(tile * (1.0 - overlap) + 1e-6))
    intervals = math.ceil((side - tile) / stride)
    return tuple(round(index * (side - tile) / intervals) for index in range(intervals + 1))


def plan_tiles(spatial_shape: tuple[int, int, int], tiling: Tiling, region: Slices3 | None = None) -> TilePlan:
    """Cover a volume, or a box of it, with the fewest tiles that keep the least overlap; z varies slowest.

    Args:
        spatial_shape: Sides of the volume along (z, y, x).
        tiling: Shape of a tile, least overlap.
        region: Box that has to be covered, not empty; None for all of the volume. Along an axis where the box takes as
            many tiles as the volume, all of the volume is covered: leaving some out would gain nothing. Tiles larger
            than the box reach beyond it into the volume, and beyond the volume only where they are larger than that.
    """
    region = region or (slice(0, spatial_shape[0]), slice(0, spatial_shape[1]), slice(0, spatial_shape[2]))
    z, y, x = (
        _starts_within(part, side, tile, tiling.overlap)
        for part, side, tile in zip(region, spatial_shape, tiling.tile_shape, strict=True)
    )
    tiles = tuple(Tile(start, tiling.tile_shape) for start in itertools.product(z, y, x))
    return TilePlan(spatial_shape, tiles, tiling)


def _starts_within(part: slice, side: int, tile: int, overlap: float) -> tuple[int, ...]:
    """As `axis_starts` for the whole axis of `side` voxels, or for `part` of it where that takes fewer tiles."""
    whole, starts = axis_starts(side, tile, overlap), axis_starts(part.stop - part.start, tile, overlap)
    if len(starts) >= len(whole):
        return whole
    return tuple(min(max(part.start + start, 0), side - tile) for start in starts)
