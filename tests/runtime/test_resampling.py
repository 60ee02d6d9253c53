"""Resampling: linear where the grid gets finer, averaging where it gets coarser, and any box by itself."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from ucseg_runtime.resampling import axis_weights, resample, resampler_between

GRIDS = [
    pytest.param((5, 6, 7), (11, 20, 13), id="finer"),
    pytest.param((11, 20, 13), (5, 6, 7), id="coarser"),
    pytest.param((5, 20, 13), (11, 6, 13), id="finer slices, coarser rows, equal columns"),
    pytest.param((1, 4, 4), (3, 8, 2), id="one slice"),
    pytest.param((9, 8, 7), (1, 1, 1), id="down to one voxel"),
]


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.mark.parametrize(("source", "target"), [(1, 5), (5, 1), (7, 3), (3, 7), (512, 120), (120, 512), (111, 133)])
def test_every_row_of_weights_sums_to_one(source: int, target: int) -> None:
    weights = axis_weights(source, target)
    np.testing.assert_allclose(weights.sum(axis=1, dtype=np.float64), 1.0, atol=1e-6)
    assert weights.min() >= 0.0


def test_equal_counts_give_the_identity() -> None:
    np.testing.assert_array_equal(axis_weights(9, 9), np.eye(9, dtype=np.float32))


def test_halving_the_samples_is_a_triangle_two_voxels_wide() -> None:
    # The new centre lies between samples 2 and 3; distances 0.5 and 1.5 of a half-width of 2 weigh 3 : 1.
    np.testing.assert_allclose(axis_weights(6, 3)[1], [0, 1 / 8, 3 / 8, 3 / 8, 1 / 8, 0], atol=1e-7)


@pytest.mark.parametrize(("source", "target"), GRIDS)
def test_constant_volume_stays_constant(source: tuple[int, int, int], target: tuple[int, int, int]) -> None:
    np.testing.assert_allclose(resample(np.full(source, -1000, np.int16), target), -1000.0, rtol=1e-6)


def test_ramp_stays_the_same_ramp_in_millimetres_when_the_grid_gets_finer() -> None:
    ramp = np.arange(10, dtype=np.float32)[:, None, None] * np.ones((1, 3, 3), np.float32)
    finer = resample(ramp, (40, 3, 3))[:, 1, 1]
    centres = (np.arange(40) + 0.5) / 4 - 0.5
    np.testing.assert_allclose(finer, np.clip(centres, 0, 9), atol=1e-5)


def test_mean_is_kept_when_the_grid_gets_coarser(rng: np.random.Generator) -> None:
    voxels = np.zeros((24, 24, 24), np.float32)
    voxels[6:18, 6:18, 6:18] = rng.random((12, 12, 12))
    coarse = resample(voxels, (8, 8, 8))
    assert coarse.mean() == pytest.approx(voxels.mean(), rel=1e-5)


def test_finer_plane_equals_opencv_bilinear(rng: np.random.Generator) -> None:
    plane = rng.random((1, 30, 31), dtype=np.float32)
    expected = cv2.resize(plane[0], (77, 64), interpolation=cv2.INTER_LINEAR)
    np.testing.assert_allclose(resample(plane, (1, 64, 77))[0], expected, atol=2e-6)


@pytest.mark.parametrize(("source", "target"), GRIDS)
def test_box_equals_the_same_part_of_the_whole(
    source: tuple[int, int, int], target: tuple[int, int, int], rng: np.random.Generator
) -> None:
    voxels = rng.random(source, dtype=np.float32)
    resampler = resampler_between(source, target)
    whole = resample(voxels, target)
    for _ in range(20):
        first = [int(rng.integers(0, side)) for side in target]
        box = tuple(slice(low, int(rng.integers(low + 1, side + 1))) for low, side in zip(first, target, strict=True))
        np.testing.assert_allclose(resampler.box(voxels, (box[0], box[1], box[2])), whole[box], atol=1e-6)


@pytest.mark.parametrize(("source", "target"), GRIDS)
def test_reach_is_the_smallest_box_that_depends_on_marked_voxels(
    source: tuple[int, int, int], target: tuple[int, int, int], rng: np.random.Generator
) -> None:
    resampler = resampler_between(source, target)
    slices = slice(0, target[0])
    for _ in range(20):
        marked = np.zeros(source, dtype=bool)
        marked[tuple(rng.integers(0, side) for side in source)] = True
        influenced = np.argwhere(resample(marked, target) > 0)
        box = resampler.reach(marked, slices)
        assert box is not None
        assert [side.start for side in box[1:]] == influenced.min(axis=0)[1:].tolist()
        assert [side.stop for side in box[1:]] == (influenced.max(axis=0)[1:] + 1).tolist()


def test_reach_is_none_where_slices_do_not_depend_on_marked_voxels() -> None:
    marked = np.zeros((10, 4, 4), dtype=bool)
    marked[9, 2, 2] = True
    assert resampler_between((10, 4, 4), (20, 8, 8)).reach(marked, slice(0, 8)) is None
