"""The published protocol against medpy, against a slow sliding window in upstream's axis order, and by hand."""

from __future__ import annotations

import itertools
import math

import numpy as np
import numpy.typing as npt
import pytest
from medpy.metric import binary as medpy_binary
from scipy import ndimage

from ucseg_runtime.arrays import BoolArray, Float32Array
from ucseg_runtime.errors import InputError, ModelError
from ucseg_training.paper_protocol import (
    STRIDES,
    EmptyPrediction,
    Predict,
    VoxelScores,
    axis_padding,
    decide,
    resize_nearest,
    score_as_paper,
    segment_acdc,
    segment_planes,
    slide,
    window_starts,
)

NAN = math.nan


def _random_masks(shape: tuple[int, ...], smoothing: float, seed: int) -> tuple[BoolArray, BoolArray]:
    random = np.random.default_rng(seed)
    first, second = (ndimage.gaussian_filter(random.normal(size=shape), smoothing) for _ in range(2))
    # Different sizes: one-way distances then differ by direction.
    masks = first > np.quantile(first, 0.8), second > np.quantile(second, 0.6)
    assert all(mask.any() for mask in masks)
    return masks


@pytest.mark.parametrize("shape", [(12, 14, 13), (1, 20, 20), (25, 30)])
@pytest.mark.parametrize("smoothing", [0.0, 1.5])
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("on_empty", ["worst", "zero", "undefined"])
def test_scores_are_those_of_medpy(
    shape: tuple[int, ...], smoothing: float, seed: int, on_empty: EmptyPrediction
) -> None:
    predicted, truth = _random_masks(shape, smoothing, seed)
    scores = score_as_paper(predicted, truth, on_empty)
    assert scores.dice == medpy_binary.dc(predicted, truth)
    assert scores.jaccard == medpy_binary.jc(predicted, truth)
    # Distances of up to some 30 voxels come in float32.
    assert scores.hd95_voxels == pytest.approx(medpy_binary.hd95(predicted, truth), abs=1e-5)
    assert scores.asd_voxels == pytest.approx(medpy_binary.asd(predicted, truth), abs=1e-5)


def test_row_of_pixels_worked_by_hand() -> None:
    truth, predicted = np.zeros((2, 3, 7), dtype=bool)
    truth[1, 1:6], predicted[1, 1] = True, True
    # The predicted pixel lies on the reference; the reference's pixels are 0, 1, 2, 3 and 4 away from it.
    assert score_as_paper(predicted, truth, "worst") == VoxelScores(
        dice=1 / 3, jaccard=1 / 5, hd95_voxels=pytest.approx(3.75), asd_voxels=0.0
    )
    assert score_as_paper(truth, predicted, "worst").asd_voxels == pytest.approx(2.0)


@pytest.mark.parametrize(
    ("on_empty", "truth_voxels", "expected"),
    [
        pytest.param("worst", 5, (0.0, 0.0, 100.0, 100.0), id="3d missed"),
        pytest.param("worst", 0, (0.0, 0.0, 100.0, 100.0), id="3d both empty"),
        pytest.param("zero", 5, (0.0, 0.0, 0.0, 0.0), id="acdc missed"),
        pytest.param("zero", 0, (0.0, 0.0, 0.0, 0.0), id="acdc both empty"),
        pytest.param("undefined", 5, (0.0, 0.0, NAN, NAN), id="missed"),
        pytest.param("undefined", 0, (NAN, NAN, NAN, NAN), id="both empty"),
    ],
)
def test_empty_prediction_scores_as_its_rule_says(
    on_empty: EmptyPrediction, truth_voxels: int, expected: tuple[float, ...]
) -> None:
    truth = np.zeros((3, 4, 5), dtype=bool)
    truth[1, 1, :truth_voxels] = True
    scores = score_as_paper(np.zeros_like(truth), truth, on_empty)
    found = (scores.dice, scores.jaccard, scores.hd95_voxels, scores.asd_voxels)
    assert found == pytest.approx(expected, nan_ok=True)


@pytest.mark.parametrize("on_empty", ["worst", "zero", "undefined"])
def test_prediction_of_what_is_absent_has_no_distance(on_empty: EmptyPrediction) -> None:
    scores = score_as_paper(np.ones((3, 4), dtype=bool), np.zeros((3, 4), dtype=bool), on_empty)
    assert (scores.dice, scores.jaccard) == (0.0, 0.0)
    assert math.isnan(scores.hd95_voxels)
    assert math.isnan(scores.asd_voxels)


def test_masks_of_different_grids_are_an_input_error() -> None:
    with pytest.raises(InputError, match=r"shapes \(3, 4\) and \(4, 3\)"):
        score_as_paper(np.zeros((3, 4), dtype=bool), np.zeros((4, 3), dtype=bool), "worst")


@pytest.mark.parametrize(
    ("size", "tile", "stride", "expected"),
    [
        pytest.param(100, 96, 18, (0, 4), id="100 by 18"),
        pytest.param(100, 96, 4, (0, 4), id="100 by 4"),
        pytest.param(96, 96, 18, (0,), id="one tile"),
        pytest.param(150, 96, 18, (0, 18, 36, 54), id="stride fits"),
        pytest.param(151, 96, 18, (0, 18, 36, 54, 55), id="one voxel more"),
        pytest.param(88, 80, 4, (0, 4, 8), id="slices"),
    ],
)
def test_window_starts_of_known_axes(size: int, tile: int, stride: int, expected: tuple[int, ...]) -> None:
    assert window_starts(size, tile, stride) == expected


def test_number_of_windows_of_the_published_examples() -> None:
    def windows(size_xyz: tuple[int, ...], tile_xyz: tuple[int, ...]) -> list[int]:
        return [len(window_starts(*axis)) for axis in zip(size_xyz, tile_xyz, STRIDES[::-1], strict=True)]

    assert windows((200, 150, 150), (96, 96, 96)) == [7, 4, 15]
    assert windows((160, 160, 88), (112, 112, 80)) == [4, 4, 3]


def test_windows_cover_every_voxel_of_every_axis() -> None:
    for size, tile, stride in itertools.product(range(5, 30), (5, 7, 8), (1, 3, 5)):
        if tile > size:
            continue
        starts = window_starts(size, tile, stride)
        covered = {voxel for first in starts for voxel in range(first, first + tile)}
        assert covered == set(range(size))
        assert all(0 < b - a <= stride for a, b in itertools.pairwise(starts))


@pytest.mark.parametrize(("size", "tile", "stride"), [(90, 96, 18), (96, 16, 18), (96, 96, 0)])
def test_windows_that_leave_gaps_or_do_not_fit_are_an_input_error(size: int, tile: int, stride: int) -> None:
    with pytest.raises(InputError, match=f"windows of {tile} voxels every {stride} voxels"):
        window_starts(size, tile, stride)


@pytest.mark.parametrize(("size", "expected"), [(90, (3, 3)), (91, (2, 3)), (95, (0, 1)), (96, (0, 0)), (200, (0, 0))])
def test_padding_is_split_with_the_odd_voxel_at_the_end(size: int, expected: tuple[int, int]) -> None:
    assert axis_padding(size, 96) == expected


def _constant(*values: float) -> Predict:
    def predict(tiles: Float32Array) -> Float32Array:
        channels = np.array(values, dtype=np.float32).reshape(1, -1, 1, 1, 1)
        return np.broadcast_to(channels, (len(tiles), len(values), *tiles.shape[2:]))

    return predict


def _by_place(tiles: Float32Array) -> Float32Array:
    """Depends on the intensity and, differently along each axis, on the place within the tile."""
    z, y, x = (np.linspace(-1.0, 1.0, side) for side in tiles.shape[2:])
    place = 0.5 * z[:, None, None] - 1.5 * y[:, None] + 2.5 * x**2
    logits = tiles.sum(axis=1, keepdims=True) * 2.0 - place
    return (1.0 / (1.0 + np.exp(-logits))).astype(np.float32)


def _upstream_slide(
    volume_xyz: Float32Array, predict: Predict, tile_xyz: tuple[int, ...], strides_xyz: tuple[int, ...]
) -> npt.NDArray[np.float64]:
    """Section 7.1 of the method word by word, in upstream's order of axes, one window at a time."""
    missing = [max(tile - size, 0) for size, tile in zip(volume_xyz.shape, tile_xyz, strict=True)]
    pads = [(total // 2, total - total // 2) for total in missing]
    volume = np.pad(volume_xyz, pads)
    score, count = np.zeros(volume.shape), np.zeros(volume.shape)
    positions = [
        math.ceil((size - tile) / stride) + 1
        for size, tile, stride in zip(volume.shape, tile_xyz, strides_xyz, strict=True)
    ]
    for index in itertools.product(*map(range, positions)):
        first = [
            min(i * stride, size - tile)
            for i, stride, size, tile in zip(index, strides_xyz, volume.shape, tile_xyz, strict=True)
        ]
        box = tuple(slice(start, start + tile) for start, tile in zip(first, tile_xyz, strict=True))
        window_zyx = np.ascontiguousarray(volume[box].T)
        score[box] += predict(window_zyx[None, None])[0, 0].T
        count[box] += 1
    mean = score / count
    return mean[tuple(slice(a, side - b) for (a, b), side in zip(pads, mean.shape, strict=True))]


@pytest.mark.parametrize(
    "shape",
    [
        pytest.param((13, 15, 18), id="larger"),
        pytest.param((5, 9, 14), id="padded"),
        pytest.param((2, 3, 4), id="small"),
    ],
)
@pytest.mark.parametrize("batch_size", [1, 4, 1000])
def test_sliding_window_is_upstreams(shape: tuple[int, int, int], batch_size: int) -> None:
    volume = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    tile, strides = (6, 8, 10), (2, 5, 7)
    expected = _upstream_slide(volume.T, _by_place, tile[::-1], strides[::-1]).T
    found = slide(volume[None], _by_place, tile, strides, batch_size)
    assert found.shape == (1, *shape)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found[0], expected, atol=1e-6)
    assert found.std() > 0.05  # else any order of axes would do


@pytest.mark.parametrize("shape", [(32, 32, 32), (36, 32, 51), (20, 33, 30)])
def test_constant_network_stays_constant_everywhere(shape: tuple[int, int, int]) -> None:
    found = slide(np.zeros((1, *shape), dtype=np.float32), _constant(0.3, 0.6, 0.1), (32, 32, 32), batch_size=2)
    assert found.shape == (3, *shape)
    for channel, value in zip(found, (0.3, 0.6, 0.1), strict=True):
        assert (channel == np.float32(value)).all()


def _spying(predict: Predict) -> tuple[Predict, list[Float32Array]]:
    seen: list[Float32Array] = []

    def spy(tiles: Float32Array) -> Float32Array:
        seen.append(tiles)
        return predict(tiles)

    return spy, seen


def test_strides_are_upstreams_unless_others_are_given() -> None:
    predict, seen = _spying(_constant(0.5))
    ramp = np.zeros((1, 28, 38, 20), dtype=np.float32)
    ramp[0] = np.arange(28)[:, None, None] * 100.0 + np.arange(38)[:, None]
    slide(ramp, predict, (20, 20, 20))
    corners = [divmod(int(tiles[0, 0, 0, 0, 0]), 100) for tiles in seen]
    assert corners == list(itertools.product((0, 4, 8), (0, 18)))


def test_network_sees_contiguous_batches_of_the_asked_size_and_zeros_where_the_volume_ends() -> None:
    predict, seen = _spying(_constant(0.5))
    slide(np.ones((2, 3, 9, 8)), predict, (6, 8, 8), (1, 1, 1), batch_size=3)
    assert [tiles.shape for tiles in seen] == [(2, 2, 6, 8, 8)]
    (tiles,) = seen
    assert tiles.dtype == np.float32
    assert tiles.flags.c_contiguous
    assert not tiles[:, :, :1].any()
    assert tiles[:, :, 1:4].all()
    assert not tiles[:, :, 4:].any()
    slide(np.ones((1, 6, 8, 15)), predict, (6, 8, 8), (1, 1, 1), batch_size=3)
    assert [len(tiles) for tiles in seen[1:]] == [3, 3, 2]


def test_foreground_needs_more_than_one_half() -> None:
    just_above = np.nextafter(np.float32(0.5), np.float32(1.0))
    probabilities = np.array([0.5, just_above, 0.49, 1.0], dtype=np.float32).reshape(1, 1, 1, 4)
    label_map = decide(probabilities, largest_component=False)
    assert label_map.dtype == np.uint8
    assert label_map.ravel().tolist() == [0, 1, 0, 1]


def test_classes_compete_and_the_lowest_of_equal_ones_wins() -> None:
    probabilities = np.array(
        [[0.4, 0.2, 0.1, 0.3], [0.3, 0.5, 0.2, 0.3], [0.3, 0.3, 0.7, 0.4]], dtype=np.float32
    ).reshape(3, 1, 1, 4)
    assert decide(probabilities, largest_component=False).ravel().tolist() == [0, 1, 2, 2]
    tied = np.full((4, 1, 1, 1), 0.25, dtype=np.float32)
    assert decide(tied, largest_component=False).item() == 0


def _as_probability(*planes: list[list[int]]) -> Float32Array:
    return np.array(planes, dtype=np.float32)[:, None]


def test_only_the_largest_component_is_kept_when_asked() -> None:
    probabilities = _as_probability([[1, 1, 0, 0, 0], [0, 0, 1, 0, 0], [0, 0, 0, 0, 1]])
    every = decide(probabilities, largest_component=False)
    largest = decide(probabilities, largest_component=True)
    assert every.sum() == 4
    # Corners connect.
    assert largest[0].tolist() == [[1, 1, 0, 0, 0], [0, 0, 1, 0, 0], [0, 0, 0, 0, 0]]


def test_first_of_equally_large_components_is_kept_and_nothing_stays_nothing() -> None:
    assert decide(_as_probability([[0, 1, 0, 1]]), largest_component=True).ravel().tolist() == [0, 1, 0, 0]
    assert not decide(_as_probability([[0, 0, 0, 0]]), largest_component=True).any()


def test_every_class_keeps_its_own_largest_component() -> None:
    labels = np.array([[1, 0, 2, 2, 0, 1, 1, 0, 2]])
    probabilities = _as_probability(*[(labels == label).astype(int).tolist() for label in range(3)])
    assert decide(probabilities, largest_component=True).ravel().tolist() == [0, 0, 2, 2, 0, 1, 1, 0, 0]


@pytest.mark.parametrize(
    ("predict", "message"),
    [
        pytest.param(_constant(2.5), "not finite or lie outside", id="logits"),
        pytest.param(_constant(NAN), "not finite or lie outside", id="nan"),
        pytest.param(_constant(), r"returned an array of shape \(1, 0, 4, 4, 4\)", id="no channel"),
        pytest.param(lambda tiles: tiles[:, :, 1:], r"shape \(1, 1, 3, 4, 4\) for tiles of shape", id="sides"),
        pytest.param(lambda tiles: tiles[:, 0], r"shape \(1, 4, 4, 4\) for tiles", id="axes"),
        pytest.param(lambda tiles: np.concatenate([tiles, tiles]), r"shape \(2, 1, 4, 4, 4\) for tiles", id="tiles"),
    ],
)
def test_results_that_are_no_probabilities_of_the_tiles_are_a_model_error(predict: Predict, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        slide(np.zeros((1, 4, 4, 4), dtype=np.float32), predict, (4, 4, 4), (1, 1, 1))


@pytest.mark.parametrize(
    ("shape", "batch_size"), [((4, 4, 4), 1), ((1, 0, 4, 4), 1), ((1, 4, 4, 4), 0)], ids=["axes", "empty", "batch"]
)
def test_volume_that_cannot_be_tiled_is_an_input_error(shape: tuple[int, ...], batch_size: int) -> None:
    with pytest.raises(InputError, match=rf"shape \({shape[0]}, .* batches of {batch_size}"):
        slide(np.zeros(shape, dtype=np.float32), _constant(0.5), (4, 4, 4), (1, 1, 1), batch_size)


@pytest.mark.parametrize("height", [112, 150, 224, 448, 500])
def test_nearest_neighbour_is_the_pixel_that_the_index_falls_into(height: int) -> None:
    planes = np.zeros((2, height, 224), dtype=np.uint8)
    planes[1] = (np.arange(height) % 251)[:, None]
    found = resize_nearest(planes, 224)
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found[1, :, 0], np.arange(224) * height // 224 % 251)
    assert not found[0].any()


def test_picture_is_segmented_by_its_foreground_channel_without_clean_up_unless_asked() -> None:
    image = np.zeros((3, 1, 224, 224), dtype=np.float32)
    image[2, 0, 10:20, 30:50], image[2, 0, 100:102, 3:5], image[2, 0, 60:80, 60:80] = 0.8, 0.8, 0.5
    predict, seen = _spying(lambda tiles: tiles[:, 2:])
    np.testing.assert_array_equal(segment_planes(image, predict, 224), image[2] > 0.5)
    assert [tiles.shape for tiles in seen] == [(1, 3, 1, 224, 224)]
    largest = segment_planes(image, predict, 224, largest_component=True)
    assert largest.sum() == 10 * 20


def _grey_levels(tiles: Float32Array) -> Float32Array:
    """Class k where the grey value is k / 3."""
    labels = np.rint(tiles[:, :1] * 3.0)
    return np.concatenate([labels == label for label in range(4)], axis=1).astype(np.float32)


def test_cardiac_slices_go_to_the_networks_grid_and_back_by_nearest_neighbours() -> None:
    labels = np.random.default_rng(0).integers(0, 4, size=(3, 180, 310)).astype(np.uint8)
    predict, seen = _spying(_grey_levels)
    found = segment_acdc((labels / 3.0).astype(np.float32), predict)

    def nearest(side: int, target: int) -> npt.NDArray[np.intp]:
        # Corner pixels lie on corner pixels.
        return np.floor(np.arange(target) * (side - 1) / (target - 1) + 0.5).astype(np.intp)

    on_grid = labels[:, nearest(180, 256)][:, :, nearest(310, 256)]
    expected = on_grid[:, nearest(256, 180)][:, :, nearest(256, 310)]
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found, expected)
    assert (found != labels).any()  # 310 columns do not survive 256
    assert [tiles.shape for tiles in seen] == [(1, 3, 1, 256, 256)] * 3
    for tiles, plane in zip(seen, on_grid, strict=True):
        for channel in tiles[0, :, 0]:
            np.testing.assert_allclose(channel * 3.0, plane, atol=1e-6)


def test_cardiac_volume_needs_three_axes() -> None:
    with pytest.raises(InputError, match=r"shape \(4, 4\); expected \(z, y, x\)"):
        segment_acdc(np.zeros((4, 4), dtype=np.float32), _grey_levels)
