"""Slices that form no straight grid: the way to one, and back."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.phantoms import AXIAL, OBLIQUE
from ucseg_runtime.slice_stack import SliceStack

SHAPE = (12, 9, 11)


def stack_of(
    distances: npt.NDArray[np.float64], tilt: tuple[float, float] = (0.0, 0.0), orientation: tuple[float, ...] = OBLIQUE
) -> SliceStack:
    """Slices at distances along the normal, shifted by `tilt` mm along (column, row) for each of these."""
    row, column = np.reshape(orientation, (2, 3))
    steps = np.cross(row, column) + tilt[0] * column + tilt[1] * row
    origins = np.array([-20.0, -110.0, 35.0]) + np.outer(distances, steps)
    return SliceStack(origins, row, column, (1.25, 0.8), (len(distances), *SHAPE[1:]))


EVEN = np.arange(12) * 2.5
BLOCKS = np.concatenate([np.arange(6) * 1.25, 6.25 + np.arange(1, 7) * 5.0])
JITTERED = EVEN + np.array([0, 0.3, -0.4, 0.2, 0, 0.5, -0.3, 0.1, 0.4, -0.2, 0.3, 0])

STACKS = {
    "tilted": stack_of(EVEN, (np.tan(np.radians(17.0)), 0.0)),
    "tilted backwards": stack_of(EVEN, (-np.tan(np.radians(22.0)), 0.0), AXIAL),
    "tilted along rows": stack_of(EVEN, (0.0, 0.4)),
    "in blocks": stack_of(BLOCKS),
    "jittered": stack_of(JITTERED, orientation=AXIAL),
    "jittered and tilted both ways": stack_of(JITTERED, (-0.21, 0.33)),
}

each_stack = pytest.mark.parametrize("stack", STACKS.values(), ids=STACKS)


def places(grid: object, shape: tuple[int, int, int]) -> npt.NDArray[np.float64]:
    """LPS of every voxel, shape (z, y, x, 3)."""
    index = np.stack(np.indices(shape), axis=-1)
    return np.asarray(grid.lps_from_index(index))  # type: ignore[attr-defined]


def field(points: npt.NDArray[np.float64]) -> npt.NDArray[np.float32]:
    """A linear function of the place, which linear interpolation must keep."""
    return np.asarray(points @ (3.0, -2.0, 5.0) + 40.0, dtype=np.float32)


@each_stack
def test_first_voxels_and_indices_go_both_ways(stack: SliceStack) -> None:
    assert np.abs(stack.lps_from_index([(z, 0, 0) for z in range(12)]) - stack.origins_mm).max() < 1e-9
    index = np.random.default_rng(5).uniform(-0.5, np.array(stack.shape) - 0.5, (200, 3))
    assert np.abs(stack.index_from_lps(stack.lps_from_index(index)) - index).max() < 1e-9


@each_stack
def test_places_outside_the_stack_have_indices_outside(stack: SliceStack) -> None:
    below, above = stack.lps_from_index([(-1.0, 3, 4), (12.0, 3, 4)])
    assert np.abs(stack.index_from_lps([below, above]) - [(-1, 3, 4), (12, 3, 4)]).max() < 1e-9


@each_stack
def test_every_voxel_lies_inside_the_straight_grid(stack: SliceStack) -> None:
    index = stack.straight_grid.index_from_lps(places(stack, stack.shape))
    assert index.min() > -1e-6
    assert (index.max(axis=(0, 1, 2)) < np.array(stack.straight_grid.shape) - 1 + 1e-6).all()


@each_stack
def test_linear_field_is_kept_wherever_slices_were_acquired(stack: SliceStack) -> None:
    straight = stack.straightened(field(places(stack, stack.shape)))
    points = places(stack.straight_grid, stack.straight_grid.shape)
    inside = stack.index_from_lps(points)
    acquired = ((inside >= 0.999 * (inside > 0)) & (inside <= np.array(stack.shape) - 2)).all(axis=-1)
    assert acquired.sum() > 300
    assert np.abs(straight - field(points))[acquired].max() < 2e-3


@each_stack
def test_outside_is_the_smallest_value(stack: SliceStack) -> None:
    voxels = np.full(stack.shape, 50, dtype=np.int16)
    voxels[0, 0, 0] = -1024
    straight = stack.straightened(voxels)
    inside = stack.index_from_lps(places(stack.straight_grid, stack.straight_grid.shape))
    outside = ((inside < -3) | (inside > np.array(stack.shape) + 2)).any(axis=-1)
    assert straight.dtype == np.int16
    assert (straight[outside] == -1024).all()


@each_stack
def test_linear_way_back_keeps_a_linear_field(stack: SliceStack) -> None:
    grid = stack.straight_grid
    back = stack.linear_on_slices(field(places(grid, grid.shape)))
    assert np.abs(back - field(places(stack, stack.shape))).max() < 2e-3


@each_stack
def test_nearest_way_back_takes_a_voxel_at_most_half_a_voxel_away(stack: SliceStack) -> None:
    grid = stack.straight_grid
    for axis in range(3):
        along = np.indices(grid.shape)[axis].astype(np.uint8)
        taken = stack.nearest_on_slices(along)
        wanted = grid.index_from_lps(places(stack, stack.shape))[..., axis]
        assert np.abs(taken - wanted).max() <= 0.5 + 1e-6


@pytest.mark.parametrize(("name", "planes"), [("tilted", 12), ("in blocks", 30), ("tilted along rows", 12)])
def test_step_of_the_grid_is_the_smallest_one(name: str, planes: int) -> None:
    assert STACKS[name].straight_grid.shape[0] == planes


def test_words_name_tilt_and_steps() -> None:
    assert STACKS["tilted"].in_words == "tilted by 17.0 degrees"
    assert STACKS["in blocks"].in_words == "unevenly spaced, 1.25 to 5.00 mm"
    assert STACKS["jittered and tilted both ways"].in_words.startswith("tilted by 21.4 degrees and unevenly")


@given(
    st.lists(st.floats(0.5, 5.0), min_size=3, max_size=12),
    st.floats(-0.9, 0.9),
    st.floats(-0.9, 0.9),
)
@settings(max_examples=60, deadline=None)
def test_any_stack_goes_to_its_grid_and_back(steps: list[float], tilt_y: float, tilt_x: float) -> None:
    stack = stack_of(np.concatenate([[0.0], np.cumsum(steps)]), (tilt_y, tilt_x))
    grid = stack.straight_grid
    assert (
        np.abs(stack.linear_on_slices(field(places(grid, grid.shape))) - field(places(stack, stack.shape))).max() < 5e-3
    )
    labels = stack.nearest_on_slices(np.ones(grid.shape, dtype=np.uint8))
    assert labels.shape == stack.shape
    assert labels.all()
