"""Scores of masks against brute force, against medpy and MONAI, and by hand; what is undefined is NaN."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from medpy.metric import binary as medpy_binary
from monai.metrics import (
    compute_average_surface_distance,
    compute_dice,
    compute_hausdorff_distance,
    compute_iou,
)
from scipy import ndimage

from ucseg_runtime.arrays import BoolArray, Float64Array
from ucseg_runtime.errors import InputError
from ucseg_training.metrics import MaskScores, bounding_box, dice, jaccard, score_masks, surface_distances

ABS_FLOAT32 = 1e-5
"""MONAI returns distances of up to some 30 mm in float32."""

GRIDS = pytest.mark.parametrize(
    ("shape", "spacing_mm"),
    [
        pytest.param((9, 11, 10), (1.0, 1.0, 1.0), id="3d isotropic"),
        pytest.param((7, 12, 11), (5.0, 0.7, 0.9), id="3d thick slices"),
        pytest.param((13, 17), (1.5, 0.5), id="2d"),
    ],
)
MONAI_WARNS = pytest.mark.filterwarnings(
    # MONAI 1.6 calls its own function with an argument that it has deprecated; remove with MONAI 1.7.
    "ignore:.*always_return_as_numpy.*:FutureWarning"
)


def _pair(shape: tuple[int, ...], seed: int = 0) -> tuple[BoolArray, BoolArray]:
    """Two ragged masks that overlap in part and touch the border of the array."""
    random = np.random.default_rng(seed)
    common = random.normal(size=shape)
    first, second = (ndimage.gaussian_filter(common + random.normal(size=shape), 1.0) > 0.2 for _ in range(2))
    assert (first & second).any()
    assert (first ^ second).any()
    assert any(first.take(0, axis).any() for axis in range(len(shape)))
    return first, second


def _slow_surface(mask: BoolArray) -> list[tuple[int, ...]]:
    """Voxels of a mask that have a face neighbour outside it or outside the array."""
    voxels = {tuple(int(index) for index in voxel) for voxel in np.argwhere(mask)}
    steps = [
        tuple(sign * (axis == moved) for axis in range(mask.ndim)) for moved in range(mask.ndim) for sign in (1, -1)
    ]
    return [
        voxel
        for voxel in sorted(voxels)
        if any(tuple(i + d for i, d in zip(voxel, step, strict=True)) not in voxels for step in steps)
    ]


def _slow_distances(mask: BoolArray, other: BoolArray, spacing_mm: tuple[float, ...]) -> Float64Array:
    here = np.array(_slow_surface(mask)) * np.array(spacing_mm)
    there = np.array(_slow_surface(other)) * np.array(spacing_mm)
    distances: Float64Array = np.sqrt(((here[:, None] - there[None]) ** 2).sum(axis=-1)).min(axis=1)
    return distances


def _box(shape: tuple[int, ...], *sides: tuple[int, int]) -> BoolArray:
    mask = np.zeros(shape, dtype=bool)
    mask[tuple(slice(*side) for side in sides)] = True
    return mask


@GRIDS
@pytest.mark.parametrize("seed", range(3))
def test_surface_scores_are_those_of_brute_force(
    shape: tuple[int, ...], spacing_mm: tuple[float, ...], seed: int
) -> None:
    predicted, truth = _pair(shape, seed)
    forth, back = _slow_distances(predicted, truth, spacing_mm), _slow_distances(truth, predicted, spacing_mm)
    scores = score_masks(predicted, truth, spacing_mm)
    assert scores.hd95_mm == pytest.approx(max(np.percentile(forth, 95), np.percentile(back, 95)), abs=ABS_FLOAT32)
    assert scores.assd_mm == pytest.approx((forth.sum() + back.sum()) / (len(forth) + len(back)), abs=ABS_FLOAT32)


@MONAI_WARNS
@GRIDS
def test_scores_are_those_of_monai(shape: tuple[int, ...], spacing_mm: tuple[float, ...]) -> None:
    predicted, truth = _pair(shape)
    a, b = (torch.from_numpy(mask)[None, None].float() for mask in (predicted, truth))
    scores = score_masks(predicted, truth, spacing_mm)
    spacing = list(spacing_mm)
    hd95 = compute_hausdorff_distance(a, b, include_background=True, percentile=95, spacing=spacing)
    assd = compute_average_surface_distance(a, b, include_background=True, symmetric=True, spacing=spacing)
    assert scores.hd95_mm == pytest.approx(hd95.item(), abs=ABS_FLOAT32)
    assert scores.assd_mm == pytest.approx(assd.item(), abs=ABS_FLOAT32)
    assert scores.dice == pytest.approx(compute_dice(a, b).item(), abs=1e-6)
    assert scores.jaccard == pytest.approx(compute_iou(a, b).item(), abs=1e-6)


@GRIDS
def test_symmetric_distance_is_that_of_medpy(shape: tuple[int, ...], spacing_mm: tuple[float, ...]) -> None:
    predicted, truth = _pair(shape, seed=5)
    expected = medpy_binary.assd(predicted, truth, voxelspacing=spacing_mm)
    assert score_masks(predicted, truth, spacing_mm).assd_mm == pytest.approx(expected, abs=ABS_FLOAT32)


@GRIDS
def test_scores_do_not_depend_on_which_mask_is_the_reference(
    shape: tuple[int, ...], spacing_mm: tuple[float, ...]
) -> None:
    predicted, truth = _pair(shape)
    forth, back = score_masks(predicted, truth, spacing_mm), score_masks(truth, predicted, spacing_mm)
    assert (forth.dice, forth.jaccard, forth.hd95_mm) == (back.dice, back.jaccard, back.hd95_mm)
    assert forth.assd_mm == pytest.approx(back.assd_mm, rel=1e-12)
    assert (forth.predicted_ml, forth.truth_ml) == pytest.approx((back.truth_ml, back.predicted_ml), nan_ok=True)


def test_two_boxes_worked_by_hand() -> None:
    # 3 x 4 x 5 voxels of 2 x 1 x 0.5 mm, moved by two slices: one of three overlaps.
    predicted = _box((9, 8, 9), (1, 4), (2, 6), (2, 7))
    truth = _box((9, 8, 9), (3, 6), (2, 6), (2, 7))
    scores = score_masks(predicted, truth, (2.0, 1.0, 0.5))
    assert scores.dice == pytest.approx(1 / 3)
    assert scores.jaccard == pytest.approx(1 / 5)
    assert scores.predicted_ml == pytest.approx(0.060)
    assert scores.truth_ml == pytest.approx(0.060)
    # Of 54 surface voxels each, the 20 of the far slice are 4 mm away; the others are nearer.
    assert scores.hd95_mm == pytest.approx(4.0)


def test_spacing_belongs_to_its_axis() -> None:
    predicted, truth = np.zeros((2, 5, 6, 7), dtype=bool)
    predicted[1, 1, 1], truth[3, 1, 1] = True, True
    for spacing_mm, expected in (((5.0, 1.0, 1.0), 10.0), ((1.0, 5.0, 1.0), 2.0), ((1.0, 1.0, 5.0), 2.0)):
        scores = score_masks(predicted, truth, spacing_mm)
        assert (scores.hd95_mm, scores.assd_mm) == pytest.approx((expected, expected))


def test_identical_masks_score_perfectly() -> None:
    mask, _ = _pair((8, 9, 10))
    scores = score_masks(mask, mask.copy(), (2.0, 1.0, 1.0))
    volume = int(mask.sum()) * 0.002
    assert scores == MaskScores(1.0, 1.0, 0.0, 0.0, pytest.approx(volume), pytest.approx(volume))


NAN = math.nan


@pytest.mark.parametrize(
    ("predicted_voxels", "truth_voxels", "expected"),
    [
        pytest.param(0, 0, (NAN, NAN, NAN, NAN, 0.0, 0.0), id="nothing and nothing"),
        pytest.param(0, 4, (0.0, 0.0, NAN, NAN, 0.0, 0.004), id="missed"),
        pytest.param(4, 0, (0.0, 0.0, NAN, NAN, 0.004, 0.0), id="made up"),
        pytest.param(4, 4, (1.0, 1.0, 0.0, 0.0, 0.004, 0.004), id="found"),
    ],
)
def test_empty_masks_have_no_surface_and_two_have_no_overlap_either(
    predicted_voxels: int, truth_voxels: int, expected: tuple[float, ...]
) -> None:
    predicted, truth = (
        _box((3, 4, 5), (0, 1), (0, 1), (0, predicted_voxels)),
        _box((3, 4, 5), (0, 1), (0, 1), (0, truth_voxels)),
    )
    scores = score_masks(predicted, truth, (1.0, 1.0, 1.0))
    found = (scores.dice, scores.jaccard, scores.hd95_mm, scores.assd_mm, scores.predicted_ml, scores.truth_ml)
    assert found == pytest.approx(expected, nan_ok=True)


def test_image_has_no_volume() -> None:
    scores = score_masks(*_pair((12, 13)), (1.0, 1.0))
    assert math.isnan(scores.predicted_ml)
    assert math.isnan(scores.truth_ml)
    assert scores.hd95_mm > 0.0


def test_prediction_counts_only_where_the_class_is_decided() -> None:
    # Four voxels of truth, all found; four more predicted, two of them where nothing is known.
    truth, predicted = _box((1, 2, 8), (0, 1), (0, 1), (0, 4)), _box((1, 2, 8), (0, 1), (0, 1), (0, 8))
    decided = _box((1, 2, 8), (0, 1), (0, 2), (0, 6))
    scores = score_masks(predicted, truth, (1.0, 1.0, 1.0), decided)
    assert scores.dice == pytest.approx(2 * 4 / (6 + 4))
    assert scores.jaccard == pytest.approx(4 / 6)
    assert (scores.predicted_ml, scores.truth_ml) == pytest.approx((0.006, 0.004))


def test_surfaces_are_compared_only_where_the_class_is_decided_everywhere() -> None:
    predicted, truth = _pair((6, 7, 8))
    everywhere = np.ones_like(truth)
    complete = score_masks(predicted, truth, (1.0, 1.0, 1.0))
    assert score_masks(predicted, truth, (1.0, 1.0, 1.0), everywhere) == complete
    everywhere[tuple(np.argwhere(~predicted & ~truth)[0])] = False
    partial = score_masks(predicted, truth, (1.0, 1.0, 1.0), everywhere)
    assert (partial.dice, partial.jaccard) == (complete.dice, complete.jaccard)
    assert math.isnan(partial.hd95_mm)
    assert math.isnan(partial.assd_mm)


def test_labelled_voxels_are_decided_in_any_case() -> None:
    predicted, truth = _pair((6, 7, 8))
    complete = score_masks(predicted, truth, (1.0, 1.0, 1.0))
    assert score_masks(predicted, truth, (1.0, 1.0, 1.0), ~truth) == complete


@pytest.mark.parametrize("shape", [(6, 7, 8), (9, 10)])
def test_space_around_the_masks_changes_nothing_but_the_box_that_is_looked_at(shape: tuple[int, ...]) -> None:
    predicted, truth = _pair(shape)
    tight = surface_distances(predicted, truth)
    wide = surface_distances(*(np.pad(mask, [(5, 11), *[(3, 0)] * (len(shape) - 1)]) for mask in (predicted, truth)))
    assert tight is not None
    assert wide is not None
    np.testing.assert_array_equal(tight.to_truth, wide.to_truth)
    np.testing.assert_array_equal(tight.to_prediction, wide.to_prediction)


def test_space_around_the_masks_is_not_searched(monkeypatch: pytest.MonkeyPatch) -> None:
    looked_at: list[tuple[int, ...]] = []
    erosion = ndimage.binary_erosion

    def spy(mask: BoolArray, *args: object, **kwargs: object) -> BoolArray:
        looked_at.append(mask.shape)
        eroded: BoolArray = erosion(mask, *args, **kwargs)
        return eroded

    monkeypatch.setattr("monai.metrics.utils.binary_erosion", spy)
    predicted, truth = _box((40, 50, 60), (3, 6), (7, 9), (9, 14)), _box((40, 50, 60), (4, 8), (6, 9), (9, 12))
    assert surface_distances(predicted, truth) is not None
    assert set(looked_at) == {(5, 3, 5)}


@pytest.mark.parametrize("shape", [(17,), (5, 6), (4, 5, 6)])
def test_bounding_box_is_spanned_by_the_extreme_voxels(shape: tuple[int, ...]) -> None:
    random = np.random.default_rng(0)
    for voxels in (1, 2, 3):
        mask = np.zeros(shape, dtype=bool)
        mask.flat[random.choice(mask.size, voxels, replace=False)] = True
        found = np.argwhere(mask)
        expected = tuple(
            slice(int(low), int(high) + 1) for low, high in zip(found.min(axis=0), found.max(axis=0), strict=True)
        )
        assert bounding_box(mask) == expected


def test_overlap_of_all_masks_of_four_voxels_is_the_definition_over_sets() -> None:
    masks = [np.array(bits, dtype=bool) for bits in itertools.product((0, 1), repeat=4)]
    for predicted, truth in itertools.product(masks, repeat=2):
        p, t = set(np.flatnonzero(predicted)), set(np.flatnonzero(truth))
        if not p | t:
            assert math.isnan(dice(predicted, truth))
            assert math.isnan(jaccard(predicted, truth))
            continue
        assert dice(predicted, truth) == 2 * len(p & t) / (len(p) + len(t))
        assert jaccard(predicted, truth) == len(p & t) / len(p | t)


@pytest.mark.parametrize(
    ("predicted", "truth", "spacing_mm", "message"),
    [
        pytest.param(
            np.zeros((2, 2), np.uint8), np.zeros((2, 2), bool), (1.0, 1.0), "types uint8 and bool", id="label map"
        ),
        pytest.param(
            np.zeros((2, 2), bool), np.zeros((2, 3), bool), (1.0, 1.0), r"shapes \(2, 2\) and \(2, 3\)", id="shapes"
        ),
        pytest.param(
            np.zeros((1, 2, 2, 2), bool), np.zeros((1, 2, 2, 2), bool), (1.0,) * 4, "expected two of one", id="batch"
        ),
        pytest.param(np.zeros((2, 2), bool), np.zeros((2, 2), bool), (1.0,) * 3, "expected 2 positive", id="axes"),
        pytest.param(np.zeros((2, 2), bool), np.zeros((2, 2), bool), (1.0, 0.0), "expected 2 positive", id="no size"),
        pytest.param(np.zeros((2, 2), bool), np.zeros((2, 2), bool), (1.0, NAN), "expected 2 positive", id="nan"),
    ],
)
def test_masks_that_cannot_be_compared_are_an_input_error(
    predicted: BoolArray, truth: BoolArray, spacing_mm: tuple[float, ...], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        score_masks(predicted, truth, spacing_mm)


def test_decided_voxels_on_another_grid_are_an_input_error() -> None:
    predicted, truth = _pair((6, 7, 8))
    with pytest.raises(InputError, match=r"shapes \(6, 7\) and \(6, 7, 8\)"):
        score_masks(predicted, truth, (1.0, 1.0, 1.0), np.ones((6, 7), dtype=bool))
