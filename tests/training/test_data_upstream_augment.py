"""Variation moves image and label together, stays within its ranges, and repeats with its generator."""

from __future__ import annotations

import itertools
from collections import Counter
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest
from scipy import ndimage

from ucseg_runtime.errors import InputError
from ucseg_training.data.sample import Sample
from ucseg_training.data.upstream_augment import PlaneVariation, draw_volume_tile, vary_plane

NOTHING = PlaneVariation(flip=0.0, affine=0.0, warp=0.0, dropout=0.0)
SIDE = 96


def sample_of(image: npt.NDArray[np.float32], labels: npt.NDArray[np.uint8] | None) -> Sample:
    padding = np.full(len(image), -7.0, np.float32)
    return Sample("a", "A", image, labels, labels, padding)


def volume(shape: tuple[int, int, int]) -> Sample:
    """Every voxel has a value of its own, and the label says which: value modulo 251, plus 1."""
    values = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
    return sample_of(values[None], (values % 251 + 1).astype(np.uint8))


def rng(seed: int) -> np.random.Generator:
    return np.random.default_rng(seed)


# Volumes


@pytest.mark.parametrize("shape", [(40, 44, 48), (20, 44, 60), (16, 32, 24), (33, 33, 33)])
def test_tile_moves_image_label_and_known_alike(shape: tuple[int, int, int]) -> None:
    sample = volume(shape)
    for seed in range(12):
        tile = draw_volume_tile(sample, (32, 32, 32), rng(seed))
        assert tile.image.shape == (1, 32, 32, 32)
        assert tile.label_map is not None
        assert tile.known is not None
        inside = tile.label_map > 0
        np.testing.assert_array_equal(tile.image[0][inside] % 251 + 1, tile.label_map[inside])
        np.testing.assert_array_equal(tile.known, tile.label_map)
        assert (tile.image[0][~inside] == -7.0).all(), "beyond the volume is what the deployed model sees there"


def test_zero_may_continue_the_volume_as_upstream_does() -> None:
    tile = draw_volume_tile(volume((16, 40, 40)), (32, 32, 32), rng(0), zero_padding=True)
    assert tile.label_map is not None
    assert (tile.image[0][tile.label_map == 0] == 0.0).all()
    assert (tile.label_map == 0).any()


def test_volume_is_turned_in_its_plane_and_always_mirrored() -> None:
    """Of the eight ways to lay a square, turning and one mirroring give the four that are mirror images."""
    sample = volume((40, 40, 40))
    found = Counter()
    for seed in range(120):
        corner = draw_volume_tile(sample, (32, 32, 32), rng(seed)).image[0][:2, :2, :2]
        step_z, step_y, step_x = (
            corner[1, 0, 0] - corner[0, 0, 0],
            *(corner[0, 1, 0], corner[0, 0, 1]) - corner[0, 0, 0],
        )
        assert step_z == 1600, "slices keep their order"
        found[int(step_y), int(step_x)] += 1
    assert set(found) == {(-40, 1), (40, -1), (1, 40), (-1, -40)}
    assert min(found.values()) > 7  # of 30 expected; five standard deviations are 24


def test_tile_may_lie_anywhere_even_at_the_last_position() -> None:
    sample = volume((34, 40, 40))
    starts = set()
    for seed in range(60):
        tile = draw_volume_tile(sample, (32, 32, 32), rng(seed))
        starts.add(int(tile.image[0].min()) // 1600)
    assert starts == {0, 1, 2}


def test_short_axis_is_continued_by_three_voxels_more_than_needed() -> None:
    sample = volume((20, 64, 64))
    before = set()
    for seed in range(120):
        tile = draw_volume_tile(sample, (32, 32, 32), rng(seed))
        assert tile.label_map is not None
        slices = np.flatnonzero(tile.label_map.any(axis=(1, 2)))
        before.add(int(slices[0]))
    assert before == set(range(3, 10)), "(32 − 20) / 2 + 3 = 9 slices on either side, 32 of which are cut"


def test_tile_repeats_with_its_generator_and_leaves_the_sample_alone() -> None:
    sample = volume((40, 44, 48))
    before = sample.image.copy()
    tiles = [draw_volume_tile(sample, (32, 32, 32), rng(seed)) for seed in (1, 1, 2)]
    np.testing.assert_array_equal(tiles[0].image, tiles[1].image)
    assert not np.array_equal(tiles[0].image, tiles[2].image)
    tiles[0].image[...] = 0.0
    np.testing.assert_array_equal(sample.image, before)


def test_unlabelled_volume_is_moved_like_a_labelled_one() -> None:
    sample = volume((40, 44, 48))
    bare = replace(sample, label_map=None, known=None)
    tile, other = (draw_volume_tile(one, (32, 32, 32), rng(5)) for one in (bare, sample))
    np.testing.assert_array_equal(tile.image, other.image)
    assert tile.label_map is None


# Planes


def blob() -> Sample:
    """A smooth hill whose upper part is labelled, and a second channel of another kind."""
    y, x = np.mgrid[:SIDE, :SIDE].astype(np.float32)
    hill = np.exp(-(((y - 40) / 18) ** 2) - ((x - 54) / 24) ** 2).astype(np.float32)
    return sample_of(np.stack([hill, 1.0 - hill]), (hill > 0.5).astype(np.uint8))


def test_without_variation_a_plane_stays_as_it_is() -> None:
    sample = blob()
    varied = vary_plane(sample, rng(0), NOTHING)
    np.testing.assert_array_equal(varied.image, sample.image)
    np.testing.assert_array_equal(varied.label_map, sample.label_map)
    assert varied.image is not sample.image


def test_mirroring_has_four_outcomes_alike() -> None:
    sample = blob()
    ways = [tuple(axes) for count in range(3) for axes in itertools.combinations((1, 2), count)]
    found = Counter()
    for seed in range(400):
        varied = vary_plane(sample, rng(seed), replace(NOTHING, flip=0.5))
        (way,) = [axes for axes in ways if np.array_equal(varied.image, np.flip(sample.image, axes))]
        assert sample.label_map is not None
        np.testing.assert_array_equal(varied.label_map, np.flip(sample.label_map, [axis - 1 for axis in way]))
        found[way] += 1
    assert set(found) == set(ways)
    assert min(found.values()) > 70  # of 100 expected; five standard deviations are 43


def centre(labels: npt.NDArray[np.generic]) -> npt.NDArray[np.float64]:
    return np.argwhere(labels).mean(axis=0)


WARPS = {
    "affine": replace(NOTHING, affine=1.0),
    "grid distortion and elastic": replace(NOTHING, warp=1.0, grid_limit=0.2, elastic_pixels=400.0, elastic_sigma=12.0),
    "everything": PlaneVariation(dropout=0.0),
}


@pytest.mark.parametrize("variation", WARPS.values(), ids=WARPS.keys())
def test_label_stays_on_its_image(variation: PlaneVariation) -> None:
    moved = 0
    for seed in range(10):
        varied = vary_plane(blob(), rng(seed), variation)
        expected = varied.image[0] > 0.5
        assert varied.label_map is not None
        assert set(np.unique(varied.label_map)) <= {0, 1}
        overlap = 2 * (expected & (varied.label_map > 0)).sum() / (expected.sum() + varied.label_map.sum())
        assert overlap > 0.95  # the border's pixels go to the nearest; of about 110, less than half are others
        assert np.abs(centre(varied.label_map) - centre(expected)).max() < 0.5
        np.testing.assert_array_equal(varied.known, varied.label_map)
        np.testing.assert_allclose(varied.image[0] + varied.image[1], 1.0, atol=1e-5)
        moved += not np.array_equal(varied.label_map, blob().label_map)
    assert moved >= 5


def test_shift_is_a_share_of_the_side() -> None:
    only_shift = replace(NOTHING, affine=1.0, scale=0.0, rotation_deg=0.0)
    start = blob().label_map
    assert start is not None
    shifts = []
    for seed in range(80):
        labels = vary_plane(blob(), rng(seed), only_shift).label_map
        assert labels is not None
        shifts.append(centre(labels) - centre(start))
    assert np.abs(shifts).max() <= 0.0625 * SIDE + 0.5
    assert np.abs(shifts).max(axis=0).min() > 0.05 * SIDE


def test_rotation_and_scaling_keep_within_their_ranges() -> None:
    bar = np.zeros((SIDE, SIDE), np.uint8)
    bar[46:50, 28:68] = 1
    sample = sample_of(bar[None].astype(np.float32), bar)
    angles, lengths = [], []
    for seed in range(60):
        labels = vary_plane(sample, rng(seed), replace(NOTHING, affine=1.0, shift=0.0)).label_map
        assert labels is not None
        points = np.argwhere(labels) - centre(labels)
        direction = np.linalg.svd(points, full_matrices=False)[2][0]
        angles.append(np.degrees(np.arctan2(direction[0], direction[1]) % np.pi))
        lengths.append(np.ptp(points @ direction) + 1)
    turned_by = np.abs((np.array(angles) + 90) % 180 - 90)
    assert 7.0 < turned_by.max() <= 10.5
    assert 0.93 * 40 < min(lengths) < 0.98 * 40
    assert 1.02 * 40 < max(lengths) < 1.09 * 40


def test_one_of_two_warps_is_taken_and_the_elastic_one_of_upstream_is_next_to_nothing() -> None:
    sample = blob()
    varied = [vary_plane(sample, rng(seed), replace(NOTHING, warp=1.0, grid_limit=0.0)) for seed in range(60)]
    differences = np.array([np.abs(one.image - sample.image).max() for one in varied])
    elastic = differences < 1e-3
    assert 15 < elastic.sum() < 45  # 30 expected; four standard deviations are 15
    # A grid without distortion is the same every time; MONAI's repeats a line at the border of each cell.
    assert np.ptp(differences[~elastic]) == 0.0
    assert differences[elastic].max() > 0.0, "not nothing at all"


def test_holes_are_zero_in_image_and_label_and_within_their_size() -> None:
    ones = sample_of(np.ones((3, 200, 200), np.float32), np.ones((200, 200), np.uint8))
    for seed in range(10):
        varied = vary_plane(ones, rng(seed), replace(NOTHING, dropout=1.0))
        hole = varied.image[0] == 0.0
        np.testing.assert_array_equal(varied.image == 0.0, [hole] * 3)
        np.testing.assert_array_equal(varied.label_map, ~hole)
        assert 5 <= hole.sum() <= 8 * 10 * 10
        holes = ndimage.find_objects(ndimage.label(hole)[0])
        assert len(holes) <= 8
    assert (ones.image == 1.0).all()


def test_steps_come_as_often_as_they_should() -> None:
    ones = sample_of(np.ones((1, 40, 40), np.float32), np.ones((40, 40), np.uint8))
    with_holes = sum(
        bool((vary_plane(ones, rng(s), replace(NOTHING, dropout=0.5)).image == 0).any()) for s in range(200)
    )
    assert 65 < with_holes < 135  # 100 expected; five standard deviations are 35


def test_plane_repeats_with_its_generator() -> None:
    one, same, other = (vary_plane(blob(), rng(seed)) for seed in (3, 3, 4))
    np.testing.assert_array_equal(one.image, same.image)
    np.testing.assert_array_equal(one.label_map, same.label_map)
    assert not np.array_equal(one.image, other.image)


def test_unlabelled_plane_is_moved_like_a_labelled_one() -> None:
    for seed in range(6):
        bare = vary_plane(replace(blob(), label_map=None, known=None), rng(seed))
        np.testing.assert_array_equal(bare.image, vary_plane(blob(), rng(seed)).image)
        assert bare.label_map is None


def test_volumes_and_planes_are_not_taken_for_each_other() -> None:
    with pytest.raises(InputError, match="expected a volume"):
        draw_volume_tile(blob(), (16, 16, 16), rng(0))
    with pytest.raises(InputError, match="expected a plane"):
        vary_plane(volume((8, 8, 8)), rng(0))
