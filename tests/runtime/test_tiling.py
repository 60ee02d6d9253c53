"""Tiling: every voxel is covered, neighbours overlap enough, and nothing is larger than needed."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ucseg_runtime.manifest import Tiling
from ucseg_runtime.tiling import Tile, axis_starts, plan_tiles


@pytest.mark.parametrize(
    ("side", "overlap", "starts"),
    [
        pytest.param(100, 1 - 18 / 96, (0, 4), id="stride 18"),
        pytest.param(100, 1 - 4 / 96, (0, 4), id="stride 4"),
        pytest.param(96, 0.5, (0,), id="as large as the tile"),
        pytest.param(90, 0.5, (-3,), id="smaller than the tile: centred"),
        pytest.param(91, 0.5, (-2,), id="smaller by an odd number: the larger half behind"),
        pytest.param(192, 0.0, (0, 96), id="no overlap"),
        pytest.param(240, 0.5, (0, 48, 96, 144), id="half overlap"),
    ],
)
def test_starts_of_tiles_of_96_voxels(side: int, overlap: float, starts: tuple[int, ...]) -> None:
    assert axis_starts(side, 96, overlap) == starts


@settings(deadline=None)  # a busy machine is not a defect
@given(side=st.integers(1, 700), tile=st.integers(1, 128), overlap=st.floats(0.0, 0.95))
def test_starts_cover_the_axis_with_at_least_the_overlap(side: int, tile: int, overlap: float) -> None:
    starts = axis_starts(side, tile, overlap)
    assert starts[0] <= 0
    assert starts[-1] + tile >= side
    widest = max(1, tile * (1 - overlap) + 1e-6)
    assert all(0 < later - earlier <= widest for earlier, later in itertools.pairwise(starts))
    if side > tile:
        assert (starts[0], starts[-1]) == (0, side - tile)


def test_plan_covers_every_voxel_and_z_varies_slowest() -> None:
    plan = plan_tiles((20, 9, 33), Tiling(tile_shape=(8, 16, 12), overlap=0.25))
    covered = np.zeros(plan.spatial_shape, dtype=int)
    for tile in plan.tiles:
        covered[tile.overlap_with(plan.spatial_shape)[0]] += 1
    assert covered.min() >= 1
    assert [tile.start for tile in plan.tiles] == sorted(tile.start for tile in plan.tiles)


@settings(deadline=None)
@given(
    side=st.integers(1, 200),
    tile=st.integers(1, 64),
    overlap=st.floats(0.0, 0.9),
    ends=st.tuples(st.floats(0.0, 1.0), st.floats(0.0, 1.0)),
)
def test_region_is_covered_by_tiles_that_leave_the_volume_only_where_they_must(
    side: int, tile: int, overlap: float, ends: tuple[float, float]
) -> None:
    low, high = sorted(int(end * side) for end in ends)
    region = slice(min(low, side - 1), max(high, low + 1))
    whole = slice(0, 1)
    plan = plan_tiles((1, 1, side), Tiling(tile_shape=(1, 1, tile), overlap=overlap), (whole, whole, region))
    starts = [item.start[2] for item in plan.tiles]
    covered = np.zeros(side, dtype=bool)
    for start in starts:
        covered[max(start, 0) : start + tile] = True
    assert covered[region].all()
    assert len(starts) <= len(axis_starts(side, tile, overlap))
    if tile <= side:
        assert 0 <= min(starts) <= max(starts) <= side - tile


def test_region_that_saves_no_tile_changes_nothing() -> None:
    tiling = Tiling(tile_shape=(8, 16, 12), overlap=0.25)
    assert plan_tiles((20, 9, 33), tiling, (slice(1, 20), slice(3, 5), slice(0, 32))) == plan_tiles((20, 9, 33), tiling)


def test_overlap_with_pairs_the_same_voxels_of_volume_and_tile() -> None:
    tile = Tile(start=(-2, 3, 5), shape=(4, 4, 4))
    inside, within = tile.overlap_with((10, 5, 9))
    assert inside == (slice(0, 2), slice(3, 5), slice(5, 9))
    assert within == (slice(2, 4), slice(0, 2), slice(0, 4))


@pytest.mark.parametrize(("batch_size", "sizes"), [(1, [1, 1, 1, 1]), (3, [3, 1]), (99, [4])])
def test_batches_keep_the_order_and_the_last_may_be_smaller(batch_size: int, sizes: list[int]) -> None:
    plan = plan_tiles((8, 8, 32), Tiling(tile_shape=(8, 8, 8), overlap=0.0))
    batches = list(plan.batches(batch_size))
    assert [len(batch) for batch in batches] == sizes
    assert tuple(itertools.chain.from_iterable(batches)) == plan.tiles
