"""Stitching: averages are true averages, checked against a slow reference, and bad results are refused by name."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ucseg_runtime.backends.base import TileOutput
from ucseg_runtime.errors import BackendError
from ucseg_runtime.manifest import Tiling
from ucseg_runtime.stitching import Stitched, Stitcher, joined, tile_weights
from ucseg_runtime.tiling import Tile, TilePlan, plan_tiles

SHAPES = [
    pytest.param((11, 14, 17), id="larger than a tile"),
    pytest.param((5, 30, 9), id="partly smaller than a tile"),
    pytest.param((3, 3, 3), id="smaller than a tile"),
]
WEIGHTINGS = ["uniform", "gaussian"]


def plan_of(shape: tuple[int, int, int], weighting: str, overlap: float = 0.4) -> TilePlan:
    tiling = {"tile_shape": (8, 10, 12), "overlap": overlap, "weighting": weighting}
    return plan_tiles(shape, Tiling.model_validate(tiling))


def random_output(plan: TilePlan, channels: int) -> TileOutput:
    rng = np.random.default_rng(0)
    shape = (len(plan.tiles), channels, *plan.tiling.tile_shape)
    return TileOutput(rng.random(shape, dtype=np.float32), rng.random((shape[0], 1, *shape[2:]), dtype=np.float32))


def part(output: TileOutput, which: slice) -> TileOutput:
    return TileOutput(output.probabilities[which], output.uncertainty[which])


def stitched_parts(plan: TilePlan, output: TileOutput, batch_size: int = 1) -> Iterator[Stitched]:
    canvas = Stitcher(plan, output.probabilities.shape[1])
    for first, batch in zip(itertools.count(0, batch_size), plan.batches(batch_size)):  # noqa: B905  # count is endless
        yield from canvas.add(batch, part(output, slice(first, first + len(batch))))


def stitched(plan: TilePlan, output: TileOutput, batch_size: int = 1) -> Stitched:
    return joined(stitched_parts(plan, output, batch_size), slice(0, plan.spatial_shape[0]))


def slow_average(plan: TilePlan, values: np.ndarray) -> np.ndarray:
    """Weighted average voxel by voxel in double precision, with the weights computed from their definition."""
    sums, weights = np.zeros(plan.spatial_shape), np.zeros(plan.spatial_shape)
    for tile, content in zip(plan.tiles, values, strict=True):
        for within in itertools.product(*map(range, tile.shape)):
            voxel = tuple(start + offset for start, offset in zip(tile.start, within, strict=True))
            if all(0 <= index < side for index, side in zip(voxel, plan.spatial_shape, strict=True)):
                weight = 1.0
                if plan.tiling.weighting == "gaussian":
                    steps = [(w - (s - 1) / 2) / (s / 8) for w, s in zip(within, tile.shape, strict=True)]
                    weight = max(np.exp(-0.5 * np.square(steps).sum()), 1e-3)
                sums[voxel] += weight * content[within]
                weights[voxel] += weight
    return sums / weights


@pytest.mark.parametrize("weighting", WEIGHTINGS)
@pytest.mark.parametrize("shape", SHAPES)
def test_average_equals_the_slow_reference(shape: tuple[int, int, int], weighting: str) -> None:
    plan = plan_of(shape, weighting)
    output = random_output(plan, channels=2)
    result = stitched(plan, output)
    for channel in range(2):
        expected = slow_average(plan, output.probabilities[:, channel])
        np.testing.assert_allclose(result.probabilities[channel], expected, atol=1e-6)
    np.testing.assert_allclose(result.uncertainty, slow_average(plan, output.uncertainty[:, 0]), atol=1e-6)


@pytest.mark.parametrize("weighting", WEIGHTINGS)
@pytest.mark.parametrize("overlap", [0.0, 0.5, 0.9])
@pytest.mark.parametrize("constant", [1.0, 0.3])
def test_constant_tiles_give_the_constant_everywhere(weighting: str, overlap: float, constant: float) -> None:
    plan = plan_of((20, 24, 17), weighting, overlap)
    shape = (len(plan.tiles), 1, *plan.tiling.tile_shape)
    ones = np.full(shape, constant, dtype=np.float32)
    result = stitched(plan, TileOutput(ones, ones))
    # Two roundings per tile in float32, of relative size 6e-8 each.
    tolerance = 0.0 if constant == 1.0 else 1.2e-7 * len(plan.tiles)
    np.testing.assert_allclose(result.probabilities, np.float32(constant), rtol=tolerance)
    np.testing.assert_allclose(result.uncertainty, np.float32(constant), rtol=tolerance)


def test_batches_do_not_change_a_bit() -> None:
    plan = plan_of((20, 24, 17), "gaussian")
    output = random_output(plan, channels=3)
    one_by_one, at_once = stitched(plan, output, 1), stitched(plan, output, len(plan.tiles))
    np.testing.assert_array_equal(one_by_one.probabilities, at_once.probabilities)
    np.testing.assert_array_equal(one_by_one.uncertainty, at_once.uncertainty)


def test_gaussian_weights_fall_to_the_known_value_one_sigma_from_the_centre() -> None:
    weights = tile_weights(Tiling(tile_shape=(17, 17, 17), weighting="gaussian"))
    assert weights[8, 8, 8] == 1.0
    # sigma is 17 / 8, so 4 voxels are 1.882 of it.
    assert weights[8, 12, 8] == pytest.approx(np.exp(-0.5 * (4 * 8 / 17) ** 2))
    assert weights.min() == pytest.approx(1e-3)
    np.testing.assert_array_equal(weights, weights[::-1, ::-1, ::-1])


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1.5, -0.5])
@pytest.mark.parametrize("field", ["probabilities", "uncertainty"])
def test_unusable_values_are_refused_with_the_ordinal_of_the_tile(field: str, value: float) -> None:
    plan = plan_of((20, 24, 17), "uniform")
    output = random_output(plan, channels=2)
    getattr(output, field)[2, 0, 3, 3, 3] = value
    with pytest.raises(BackendError, match=f"tile 3 of {len(plan.tiles)}:") as caught:
        stitched(plan, output, batch_size=4)
    assert caught.value.code == "UCSEG-E142"


def test_results_of_another_shape_are_refused() -> None:
    plan = plan_of((20, 24, 17), "uniform")
    output = random_output(plan, channels=2)
    with pytest.raises(BackendError, match=r"\(1, 2, 8, 10, 12\); expected \(1, 3, 8, 10, 12\)"):
        Stitcher(plan, 3).add(plan.tiles[:1], part(output, slice(1)))
    with pytest.raises(BackendError, match=r"\(1, 2, 8, 10, 12\); expected \(2, 2, 8, 10, 12\)"):
        Stitcher(plan, 2).add(plan.tiles[:2], part(output, slice(1)))


@pytest.mark.parametrize("batch_size", [1, 7])
@pytest.mark.parametrize("shape", [*SHAPES, pytest.param((40, 10, 12), id="many slices")])
def test_slices_come_once_in_order_and_as_soon_as_no_later_tile_touches_them(
    shape: tuple[int, int, int], batch_size: int
) -> None:
    plan = plan_of(shape, "gaussian")
    canvas, output = Stitcher(plan, 2), random_output(plan, 2)
    stop = 0
    for first, batch in zip(itertools.count(0, batch_size), plan.batches(batch_size)):  # noqa: B905  # count is endless
        for slices in canvas.add(batch, part(output, slice(first, first + len(batch)))):
            assert slices.first == stop
            assert slices.stop > stop
            stop = slices.stop
        later = plan.tiles[first + len(batch) :]
        assert stop == min((max(tile.start[0], 0) for tile in later), default=shape[0])
    assert stop == shape[0]


def test_canvas_is_no_deeper_than_a_tile() -> None:
    canvas = Stitcher(plan_of((200, 24, 17), "gaussian"), 2)
    held = sum(array.nbytes for array in vars(canvas).values() if isinstance(array, np.ndarray))
    slice_bytes = 24 * 17 * 4 * (2 + 1 + 1)  # two channels, the uncertainty and the weights
    assert held <= 8 * slice_bytes + tile_weights(plan_of((8, 8, 8), "gaussian").tiling).nbytes


@pytest.mark.parametrize("channels", [1, 3])
def test_canvas_is_no_deeper_than_a_tile_where_tiles_lie_in_a_part_of_the_slices(channels: int) -> None:
    """A patient in the middle of much air along z: what no tile touches takes no memory."""
    region = (slice(90, 105), slice(0, 24), slice(0, 17))
    plan = plan_tiles((200, 24, 17), Tiling(tile_shape=(8, 10, 12), overlap=0.4), region)
    canvas = Stitcher(plan, channels)
    held = max(array.nbytes for array in vars(canvas).values() if isinstance(array, np.ndarray))
    assert held <= 8 * 24 * 17 * 4 * (channels + 1)
    parts = list(stitched_parts(plan, random_output(plan, channels)))
    owned = [part.probabilities for part in parts if part.probabilities.strides[-1]]
    assert sum(len(probabilities[0]) for probabilities in owned) < 40
    found = joined(parts, slice(0, 200))
    assert (found.uncertainty[90:105] > 0.0).all()
    for outside in (slice(0, 80), slice(115, 200)):
        assert (found.uncertainty[outside] == 0.0).all()
        assert (found.probabilities[0, outside] == (1.0 if channels > 1 else 0.0)).all()
        assert (found.probabilities[1:, outside] == 0.0).all()


@given(
    starts=st.lists(st.integers(-3, 30), min_size=1, max_size=8).map(sorted),
    batch_size=st.integers(1, 4),
)
def test_plans_with_gaps_and_repeated_layers_lose_no_slice(starts: list[int], batch_size: int) -> None:
    tiling = Tiling(tile_shape=(8, 4, 4))
    plan = TilePlan((33, 4, 4), tuple(Tile((start, 0, 0), tiling.tile_shape) for start in starts), tiling)
    with np.errstate(invalid="ignore"):  # nothing covers the gaps
        parts = list(stitched_parts(plan, random_output(plan, 1), batch_size))
    assert [index for slices in parts for index in range(slices.first, slices.stop)] == list(range(33))


@pytest.mark.parametrize("channels", [1, 3])
def test_what_no_tile_covers_is_background_without_uncertainty(channels: int) -> None:
    region = (slice(9, 20), slice(10, 18), slice(0, 4))
    plan = plan_tiles((40, 40, 4), Tiling(tile_shape=(8, 8, 4), overlap=0.25), region)
    canvas = Stitcher(plan, channels)
    parts: list[Stitched] = []
    for tile in plan.tiles:
        foreground = np.full((1, channels, *tile.shape), 1.0 if channels == 1 else 0.0, dtype=np.float32)
        foreground[:, -1] = 1.0
        uncertainty = np.full((1, 1, *tile.shape), 0.5, dtype=np.float32)
        parts += canvas.add((tile,), TileOutput(foreground, uncertainty))
    found = joined(parts, slice(0, 40))
    covered = found.uncertainty > 0.0
    assert covered[region].all()
    assert not covered[:8].any()
    assert not covered[30:].any()
    assert (found.probabilities[-1] == covered).all()
    if channels > 1:
        assert (found.probabilities[0] == ~covered).all()
