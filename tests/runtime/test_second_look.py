"""A second look: where it goes, and that both passes together are one average of all tiles."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from tests.model_phantom import ModelPhantom, manifest_fields
from ucseg_runtime.backends.base import TileOutput
from ucseg_runtime.manifest import ModelSpec, Tiling
from ucseg_runtime.second_look import averaged, second_look_plan
from ucseg_runtime.stitching import Stitched, Stitcher, joined
from ucseg_runtime.tiling import Tile, TilePlan, plan_tiles

TILING = Tiling(tile_shape=(8, 8, 8), overlap=0.25)
GRID = (16, 20, 24)


@pytest.fixture
def spec() -> ModelSpec:
    fields = manifest_fields(ModelPhantom(tile_shape=(8, 8, 8)), {})
    return ModelSpec(**{name: value for name, value in fields.items() if name in ModelSpec.model_fields})


@pytest.fixture
def plan() -> TilePlan:
    return plan_tiles(GRID, TILING)


def result(found: tuple[slice, ...], uncertain: tuple[slice, ...]) -> Stitched:
    """Class 1 in one box, uncertainty 0.9 in another and 0.1 elsewhere."""
    probabilities = np.zeros((3, *GRID), dtype=np.float32)
    probabilities[0] = 1.0
    probabilities[(0, *found)], probabilities[(1, *found)] = 0.0, 1.0
    uncertainty = np.full(GRID, 0.1, dtype=np.float32)
    uncertainty[uncertain] = 0.9
    return Stitched(0, probabilities, uncertainty)


def test_looks_where_it_is_uncertain_and_nowhere_else(plan: TilePlan, spec: ModelSpec) -> None:
    everything, corner = np.s_[0:16, 0:20, 0:24], np.s_[10:16, 14:20, 18:24]
    whole = second_look_plan(plan, result(everything, np.s_[::2, ::5, ::5]), spec).tiles
    some = second_look_plan(plan, result(everything, corner), spec).tiles
    assert 0 < len(some) < len(whole)
    assert not {tile.start for tile in whole} & {tile.start for tile in plan.tiles}
    for tile in some:
        assert all(start + 6 > low for start, low in zip(tile.start, (10, 14, 18), strict=True))


def test_does_not_look_where_nothing_was_found_or_nothing_is_more_uncertain(plan: TilePlan, spec: ModelSpec) -> None:
    nowhere = np.s_[0:0, 0:0, 0:0]
    assert second_look_plan(plan, result(nowhere, np.s_[0:8, 0:8, 0:8]), spec).tiles == ()
    assert second_look_plan(plan, result(np.s_[0:16, 0:20, 0:24], nowhere), spec).tiles == ()


def test_plan_of_one_tile_leaves_nothing_between(spec: ModelSpec) -> None:
    plan = plan_tiles((8, 8, 8), TILING)
    first = Stitched(
        0, np.full((3, 8, 8, 8), 1 / 3, np.float32), np.random.default_rng(0).random((8, 8, 8), np.float32)
    )
    assert second_look_plan(plan, first, spec).tiles == ()


def test_both_passes_are_the_average_of_all_tiles(plan: TilePlan) -> None:
    rng = np.random.default_rng(1)
    more = replace(plan, tiles=(Tile((2, 3, 4), (8, 8, 8)), Tile((4, 6, 12), (8, 8, 8))))
    both = replace(plan, tiles=tuple(sorted((*plan.tiles, *more.tiles), key=lambda tile: tile.start)))
    outputs = {
        tile.start: TileOutput(rng.random((1, 3, 8, 8, 8), np.float32), rng.random((1, 1, 8, 8, 8), np.float32))
        for tile in both.tiles
    }

    first, second, expected = (stitched(part, outputs) for part in (plan, more, both))
    found = averaged(plan, first, more, second)

    np.testing.assert_allclose(found.probabilities, expected.probabilities, rtol=0, atol=1e-6)
    np.testing.assert_allclose(found.uncertainty, expected.uncertainty, rtol=0, atol=1e-6)


def stitched(plan: TilePlan, outputs: dict[tuple[int, int, int], TileOutput]) -> Stitched:
    canvas = Stitcher(plan, 3)
    parts = [part for tile in plan.tiles for part in canvas.add((tile,), outputs[tile.start])]
    return joined(parts, slice(0, GRID[0]))
