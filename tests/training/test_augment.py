"""Tiles land where geometry says, image and labels together; contrast changes where it is meant to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest
import torch
from scipy import ndimage
from torch import Tensor

from tests.training_phantom import ALL_KNOWN, block_case
from ucseg_training.data.augment import AugmentSpec, TrainingTile, _rotation_zyx, draw_tile
from ucseg_training.data.case import Case

AIR_HU = -1000.0
STILL = AugmentSpec(
    enhancement_hu={},
    rotation_deg=(0.0, 0.0, 0.0),
    scale=(1.0, 1.0),
    anisotropy=0.0,
    shift_hu=0.0,
    gain=0.0,
    noise_hu=0.0,
    blur_voxels=0.3,
    focus=0.0,
)
"""Nothing varies, for a generator that draws the middle of each range and takes no chances."""

AIR_OUTSIDE, ENHANCED, EDGE_OUTSIDE = 0.99, 0.6, 0.45
"""What `SteeredRng` may answer to a question of chance: nothing happens; contrast agent; the outermost slices go on."""

SHAPE, TILE = (33, 41, 37), (15, 17, 19)
MIDDLE = np.array([7, 8, 9])
"""Index of the voxel in the middle of `TILE`."""
MIDDLE_VOXEL = tuple((side // 2) / side for side in SHAPE)
"""Fractions of the range of centres that are the voxel in the middle of `SHAPE`."""


class SteeredRng(np.random.Generator):
    """Draws the middle of every range except for the first draws, whose fractions of the range are given."""

    def __init__(self, *fractions: float | Sequence[float], chance: float = AIR_OUTSIDE) -> None:
        super().__init__(np.random.PCG64(0))
        self._fractions = list(fractions)
        self._chance = chance

    def uniform(self, low=0.0, high=1.0, size=None):  # noqa: ANN001, ANN201  (as numpy's)
        fraction = np.asarray(self._fractions.pop(0) if self._fractions else 0.5)
        return np.broadcast_to(low + fraction * (np.asarray(high) - low), size or np.shape(high)) + 0.0

    def random(self, *_: object) -> float:
        return self._chance


def _marked_case(offset: Sequence[int], shape: tuple[int, int, int] = SHAPE) -> Case:
    """One voxel with label 1 and 1000 HU, this far from the voxel in the middle."""
    case = block_case(shape=(24, 40, 42))
    voxels, label_map = np.zeros(shape, dtype=np.float32), np.zeros(shape, dtype=np.uint8)
    place = tuple(np.array(shape) // 2 + offset)
    voxels[place], label_map[place] = 1000.0, 1
    geometry = replace(case.geometry, shape=shape)
    return Case("marker", voxels, label_map, np.full(shape, ALL_KNOWN), geometry)


def _labelled_offsets(tile: TrainingTile) -> set[tuple[int, ...]]:
    places = np.argwhere(tile.label_map[0].numpy() == 1) - MIDDLE
    return {tuple(int(value) for value in place) for place in places}


def _cube(centre: Sequence[int], reach: Sequence[int]) -> set[tuple[int, ...]]:
    sides = [range(middle - r, middle + r + 1) for middle, r in zip(centre, reach, strict=True)]
    return {(z, y, x) for z in sides[0] for y in sides[1] for x in sides[2]}


def _same(left: TrainingTile, right: TrainingTile) -> bool:
    pairs = ((left.voxels, right.voxels), (left.label_map, right.label_map), (left.known, right.known))
    return all(torch.equal(*pair) for pair in pairs)


def _array(image: Tensor) -> npt.NDArray[np.float32]:
    return image[0, 0].numpy()


def test_tile_without_variation_is_the_crop_itself() -> None:
    generator = np.random.default_rng(1)
    shape = (21, 25, 23)
    case = replace(
        _marked_case((0, 0, 0), shape),
        voxels=generator.uniform(-1000, 2000, shape).astype(np.float32),
        label_map=generator.integers(0, 4, shape, dtype=np.uint8),
        known=generator.integers(0, 128, shape, dtype=np.uint8),
    )
    tile = draw_tile(case, (8, 10, 12), STILL, AIR_HU, SteeredRng())
    # Odd sides minus even ones: the middle of the range of centres puts tile voxels exactly on case voxels.
    crop = np.s_[7:15, 8:18, 6:18]
    np.testing.assert_allclose(_array(tile.voxels), case.voxels[crop], atol=0.05)  # float32 positions, 3000 HU a voxel
    np.testing.assert_array_equal(tile.label_map[0].numpy(), case.label_map[crop])
    np.testing.assert_array_equal(tile.known[0].numpy(), case.known[crop])


def test_tile_has_the_shapes_and_types_that_the_losses_take() -> None:
    tile = draw_tile(block_case(), (8, 10, 12), AugmentSpec(enhancement_hu={}), AIR_HU, np.random.default_rng(0))
    assert (tile.voxels.shape, tile.voxels.dtype) == ((1, 1, 8, 10, 12), torch.float32)
    assert (tile.label_map.shape, tile.label_map.dtype) == ((1, 8, 10, 12), torch.int64)
    assert (tile.known.shape, tile.known.dtype) == ((1, 8, 10, 12), torch.int64)


@pytest.mark.parametrize(
    ("axis", "expected"),
    [
        pytest.param(0, (2, -5, -3), id="about z"),
        pytest.param(1, (-5, 3, -2), id="about y"),
        pytest.param(2, (3, -2, -5), id="about x"),
    ],
)
def test_marker_is_turned_by_a_right_angle_about_one_axis(axis: int, expected: tuple[int, int, int]) -> None:
    fractions = np.full(3, 0.5)
    fractions[axis] = 1.0
    spec = replace(STILL, rotation_deg=(90.0, 90.0, 90.0))
    rng = SteeredRng(fractions, 0.5, 0.5, MIDDLE_VOXEL)
    tile = draw_tile(_marked_case((2, 3, -5)), TILE, spec, AIR_HU, rng)
    assert _labelled_offsets(tile) == {expected}
    assert _array(tile.voxels)[tuple(MIDDLE + expected)] == pytest.approx(1000.0, abs=0.1)


def test_marker_moves_out_and_grows_with_the_magnification() -> None:
    rng = SteeredRng(0.5, 1.0, 0.5, MIDDLE_VOXEL)
    tile = draw_tile(_marked_case((1, -1, 2)), TILE, replace(STILL, scale=(0.5, 3.0)), AIR_HU, rng)
    assert _labelled_offsets(tile) == _cube((3, -3, 6), (1, 1, 1))


def test_anisotropy_magnifies_the_axes_differently() -> None:
    rng = SteeredRng(0.5, 0.5, (0.5, 1.0, 0.5), MIDDLE_VOXEL)
    tile = draw_tile(_marked_case((1, -2, 3)), TILE, replace(STILL, anisotropy=2.0), AIR_HU, rng)
    assert _labelled_offsets(tile) == _cube((1, -6, 3), (0, 1, 0))


@pytest.mark.parametrize("seed", range(5))
def test_rotations_are_proper(seed: int) -> None:
    angles = np.random.default_rng(seed).uniform(-np.pi, np.pi, 3)
    rotation = _rotation_zyx(angles)
    np.testing.assert_allclose(rotation @ rotation.T, np.eye(3), atol=1e-12)
    assert np.linalg.det(rotation) == pytest.approx(1.0, abs=1e-12)


@pytest.mark.parametrize("seed", range(4))
def test_image_and_labels_stay_aligned_under_any_variation(seed: int) -> None:
    shape = (64, 64, 64)
    cells = (np.indices(shape) // 16).sum(axis=0) % 2
    case = replace(
        _marked_case((0, 0, 0), shape),
        voxels=(1000 * cells).astype(np.float32),
        label_map=cells.astype(np.uint8),
    )
    spec = AugmentSpec(enhancement_hu={}, shift_hu=0.0, gain=0.0, noise_hu=0.0, blur_voxels=0.3, round_field=0.0)
    tile = draw_tile(case, (40, 40, 40), spec, 0.0, np.random.default_rng(seed))
    image, labels = _array(tile.voxels), tile.label_map[0].numpy()
    cube, reach = np.ones((3, 3, 3), dtype=bool), 3  # interpolation mixes neighbours, the blur one voxel more
    deep = ndimage.binary_erosion(labels == 1, cube, iterations=reach)
    far = ndimage.binary_erosion((labels == 0) & (tile.known[0].numpy() > 0), cube, iterations=reach)
    assert deep.sum() > 20, "the tile must show the inside of a cell"
    assert far.sum() > 20, "the tile must show the inside of another cell"
    np.testing.assert_allclose(image[deep], 1000.0, atol=0.1)
    np.testing.assert_allclose(image[far], 0.0, atol=0.1)


@pytest.mark.parametrize(
    ("chance", "outside_hu"),
    [pytest.param(AIR_OUTSIDE, AIR_HU, id="air"), pytest.param(EDGE_OUTSIDE, 40.0, id="edge value")],
)
def test_nothing_is_known_outside_the_volume(chance: float, outside_hu: float) -> None:
    case = replace(
        _marked_case((0, 0, 0)),
        voxels=np.full(SHAPE, 40.0, dtype=np.float32),
        label_map=np.ones(SHAPE, dtype=np.uint8),
    )
    corner = SteeredRng(0.5, 0.5, 0.5, 0.0, chance=chance)  # the tile's middle is voxel (0, 0, 0)
    tile = draw_tile(case, TILE, STILL, AIR_HU, corner)
    inside = np.zeros(TILE, dtype=bool)
    inside[MIDDLE[0] :, MIDDLE[1] :, MIDDLE[2] :] = True
    np.testing.assert_array_equal(tile.known[0].numpy(), np.where(inside, ALL_KNOWN, 0))
    np.testing.assert_array_equal(tile.label_map[0].numpy(), np.where(inside, 1, 0))
    np.testing.assert_allclose(_array(tile.voxels), np.where(inside, 40.0, outside_hu), atol=0.1)


def test_focus_centres_tiles_on_labelled_voxels() -> None:
    case = _marked_case((9, -8, 7))
    tile = draw_tile(case, TILE, replace(STILL, focus=1.0), AIR_HU, SteeredRng())
    assert _labelled_offsets(tile) == {(0, 0, 0)}


def test_equal_generators_give_equal_tiles_and_others_do_not() -> None:
    case, spec = block_case(), AugmentSpec(enhancement_hu={1: (-50.0, 50.0)})
    first, again, other = (draw_tile(case, (16, 16, 16), spec, AIR_HU, np.random.default_rng(s)) for s in (3, 3, 4))
    assert _same(first, again)
    assert not _same(first, other)


def test_state_of_torch_neither_matters_nor_changes() -> None:
    case, spec = block_case(), AugmentSpec(enhancement_hu={})
    first = draw_tile(case, (16, 16, 16), spec, AIR_HU, np.random.default_rng(3))
    torch.manual_seed(99)
    before = torch.get_rng_state()
    assert _same(first, draw_tile(case, (16, 16, 16), spec, AIR_HU, np.random.default_rng(3)))
    assert torch.equal(torch.get_rng_state(), before)


def test_case_is_not_changed() -> None:
    case, untouched = block_case(), block_case()
    spec = AugmentSpec(enhancement_hu={1: (50.0, 50.0)})
    for seed in range(3):
        draw_tile(case, (16, 16, 16), spec, AIR_HU, np.random.default_rng(seed))
    for part in ("voxels", "label_map", "known"):
        np.testing.assert_array_equal(getattr(case, part), getattr(untouched, part))


def test_enhancement_changes_its_own_class_with_soft_borders_and_nothing_else() -> None:
    case = block_case(shape=(25, 41, 43))
    still = draw_tile(case, (24, 40, 42), STILL, AIR_HU, SteeredRng(chance=ENHANCED))
    spec = replace(STILL, enhancement_hu={1: (80.0, 120.0)})
    tile = draw_tile(case, (24, 40, 42), spec, AIR_HU, SteeredRng(chance=ENHANCED))
    change = _array(tile.voxels) - _array(still.voxels)
    enhanced = tile.label_map[0].numpy() == 1
    cube = np.ones((3, 3, 3), dtype=bool)
    inside = ndimage.binary_erosion(enhanced, cube)
    near = ndimage.binary_dilation(enhanced, cube)
    assert (tile.label_map[0].numpy()[~near] == 2).sum() > 1000, "the other class must be there to be judged"
    np.testing.assert_allclose(change[inside], 100.0, atol=0.01)
    np.testing.assert_array_equal(change[~near], 0.0)
    border = near & ~inside
    assert ((change[border] > 0.0) & (change[border] < 100.0)).all()


def test_enhancement_happens_only_by_chance() -> None:
    case, spec = block_case(), replace(STILL, enhancement_hu={1: (80.0, 120.0)})
    still = draw_tile(case, TILE, STILL, AIR_HU, SteeredRng(chance=AIR_OUTSIDE))
    assert _same(draw_tile(case, TILE, spec, AIR_HU, SteeredRng(chance=AIR_OUTSIDE)), still)


def test_gain_acts_about_0_hu_and_shift_afterwards() -> None:
    case = replace(_marked_case((0, 0, 0)), voxels=np.full(SHAPE, 200.0, dtype=np.float32))
    spec = replace(STILL, gain=0.1, shift_hu=20.0)
    rng = SteeredRng(0.5, 0.5, 0.5, MIDDLE_VOXEL, 1.0, 1.0)
    np.testing.assert_allclose(_array(draw_tile(case, TILE, spec, AIR_HU, rng).voxels), 240.0, atol=0.01)


def test_noise_has_the_drawn_deviation_and_never_goes_below_air() -> None:
    case = replace(_marked_case((0, 0, 0)), voxels=np.zeros(SHAPE, dtype=np.float32))
    rng = SteeredRng(0.5, 0.5, 0.5, MIDDLE_VOXEL, 0.5, 0.5, 1.0)
    image = _array(draw_tile(case, TILE, replace(STILL, noise_hu=50.0), AIR_HU, rng).voxels)
    assert image.std() == pytest.approx(50.0, rel=0.1)  # 4845 voxels: the deviation is known within 1 %
    rng = SteeredRng(0.5, 0.5, 0.5, MIDDLE_VOXEL, 0.5, 0.5, 1.0)
    image = _array(draw_tile(case, TILE, replace(STILL, noise_hu=5000.0), AIR_HU, rng).voxels)
    assert image.min() == AIR_HU


def test_blur_keeps_a_constant_image_and_flattens_noise() -> None:
    blurred = 0.3  # a chance at which blurring happens, along all axes
    spec = replace(STILL, blur_voxels=1.5)
    noise = np.random.default_rng(0).normal(0.0, 100.0, SHAPE).astype(np.float32)
    fractions = (0.5, 0.5, 0.5, MIDDLE_VOXEL, 0.5, 0.5, 1.0)
    constant = replace(_marked_case((0, 0, 0)), voxels=np.full(SHAPE, 70.0, dtype=np.float32))
    image = _array(draw_tile(constant, TILE, spec, AIR_HU, SteeredRng(*fractions, chance=blurred)).voxels)
    np.testing.assert_allclose(image, 70.0, atol=0.01)
    noisy = replace(constant, voxels=noise)
    image = _array(draw_tile(noisy, TILE, spec, AIR_HU, SteeredRng(*fractions, chance=blurred)).voxels)
    assert image.std() < 30.0


def test_outside_a_round_field_of_view_there_is_air_and_no_class() -> None:
    shape, tile_shape = (24, 64, 64), (8, 40, 42)
    case = replace(
        _marked_case((0, 0, 0), shape),
        voxels=np.full(shape, 100.0, dtype=np.float32),
        label_map=np.ones(shape, dtype=np.uint8),
        known=np.zeros(shape, dtype=np.uint8),
    )
    plain = draw_tile(case, tile_shape, replace(STILL, round_field=0.0), AIR_HU, SteeredRng())
    assert plain.voxels.min() > AIR_HU, "the tile must lie inside the case"
    tile = draw_tile(case, tile_shape, replace(STILL, round_field=1.0), AIR_HU, SteeredRng())
    outside = tile.voxels[0, 0] == AIR_HU
    assert 0.05 < outside.float().mean() < 0.5
    assert outside[:, 0, 0].all()
    assert not outside[:, 20, 21].any()
    assert (outside == outside[:1]).all(), "the field is the same in every slice"
    assert torch.equal(tile.label_map[0] == 0, outside)
    assert torch.equal(tile.known[0] == 255, outside)
    assert torch.equal(tile.voxels[0, 0][~outside], plain.voxels[0, 0][~outside])
