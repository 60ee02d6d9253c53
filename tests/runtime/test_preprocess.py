"""Preprocessing: any orientation becomes the model's, no voxel moves in the patient, and tiles are copies."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from tests.volume_phantom import OBLIQUE, STRAIGHT, centred_geometry, orientations
from ucseg_runtime.errors import InputError
from ucseg_runtime.geometry import VolumeGeometry
from ucseg_runtime.intensity import DivideBy255, Identity
from ucseg_runtime.manifest import PiecewiseLinear, Preprocessing
from ucseg_runtime.preprocess import apply_intensity, model_grid, orientation_to_lps, preprocess
from ucseg_runtime.tiling import Tile
from ucseg_runtime.volume import Volume

WINDOW = PiecewiseLinear(knots=((-100.0, 0.0), (0.0, 0.5), (300.0, 1.0)))
SPEC = Preprocessing(spacing_mm=(2.0, 1.0, 1.0), intensity=WINDOW, padding_value=-1000.0)
ALL_WAYS = [
    pytest.param(direction, id=f"{name} {number}")
    for name, rotation in (("straight", STRAIGHT), ("oblique", OBLIQUE))
    for number, direction in enumerate(orientations(rotation))
]


@pytest.mark.parametrize("direction", ALL_WAYS)
def test_oriented_axes_point_to_head_back_and_left(direction: np.ndarray) -> None:
    geometry = centred_geometry((4, 5, 6), (3.0, 1.0, 2.0), direction)
    oriented = orientation_to_lps(direction).apply_to_geometry(geometry)
    head_back_left = oriented.direction[::-1]
    assert (np.diag(head_back_left) > 0).all()
    assert (np.abs(head_back_left).argmax(axis=0) == [0, 1, 2]).all()


@pytest.mark.parametrize("direction", ALL_WAYS)
def test_orientation_moves_voxels_and_geometry_alike(direction: np.ndarray) -> None:
    geometry = centred_geometry((4, 5, 6), (3.0, 1.0, 2.0), direction)
    orientation = orientation_to_lps(direction)
    voxels = np.arange(4 * 5 * 6).reshape(4, 5, 6)
    oriented, turned = orientation.apply(voxels), orientation.apply_to_geometry(geometry)
    assert oriented.shape == turned.shape
    for index in itertools.product((0, 2), (1, 3), (0, 3)):
        source = np.unravel_index(oriented[index], voxels.shape)
        np.testing.assert_allclose(turned.lps_from_index(index), geometry.lps_from_index(source), atol=1e-9)


def test_writing_to_the_oriented_view_writes_to_the_source() -> None:
    orientation = orientation_to_lps(STRAIGHT[:, [1, 2, 0]] * [1, -1, -1])
    voxels = np.zeros((2, 3, 4))
    orientation.apply(voxels)[...] = 1.0
    assert (voxels == 1.0).all()


def test_model_grid_has_the_nearest_whole_number_of_voxels_over_the_same_box() -> None:
    oriented = centred_geometry((133, 512, 512), (2.5, 0.703125, 0.703125), STRAIGHT[:, ::-1])
    grid = model_grid(oriented, (3.0, 3.0, 3.0))
    assert grid.shape == (111, 120, 120)
    for corner in (-0.5, 1.0):
        faces = [side - 0.5 if corner > 0 else corner for side in grid.shape]
        source_faces = [side - 0.5 if corner > 0 else corner for side in oriented.shape]
        np.testing.assert_allclose(grid.lps_from_index(faces), oriented.lps_from_index(source_faces), atol=1e-9)


def test_grid_coarser_than_the_volume_keeps_one_voxel() -> None:
    oriented = centred_geometry((1, 4, 4), (1.0, 1.0, 1.0), STRAIGHT)
    assert model_grid(oriented, (3.0, 100.0, 2.0)).shape == (1, 1, 2)


def test_piecewise_linear_intensity_interpolates_and_holds_the_ends() -> None:
    voxels = np.array([-1000, -100, -50, 0, 150, 300, 3000], dtype=np.float32)
    np.testing.assert_allclose(apply_intensity(voxels, WINDOW), [0, 0, 0.25, 0.5, 0.75, 1, 1], atol=1e-6)


def test_voxels_below_air_count_as_air() -> None:
    spec = SPEC.model_copy(update={"intensity": PiecewiseLinear(knots=((-3000.0, 0.0), (0.0, 1.0)))})
    geometry = centred_geometry((2, 4, 4), (2.0, 1.0, 1.0), STRAIGHT[:, ::-1])
    prepared = preprocess(Volume(np.full((2, 4, 4), -2048, np.int16), geometry, "CT"), spec)
    np.testing.assert_allclose(prepared.voxels[0], prepared.padding[0])
    assert prepared.padding[0] == pytest.approx(2 / 3)


def test_prepared_volume_lies_on_the_model_grid_in_network_units() -> None:
    geometry = centred_geometry((10, 20, 20), (1.0, 1.0, 0.5), STRAIGHT[:, ::-1])
    prepared = preprocess(Volume(np.full((10, 20, 20), 150, np.int16), geometry, "CT"), SPEC)
    assert prepared.voxels[0].dtype == np.float32
    assert prepared.spatial_shape == prepared.voxels[0].shape == (5, 20, 10)
    np.testing.assert_allclose(prepared.geometry.spacing_mm, SPEC.spacing_mm)
    np.testing.assert_allclose(prepared.voxels[0], 0.75, atol=1e-6)


def test_read_pads_what_lies_outside_and_copies_what_lies_inside() -> None:
    geometry = centred_geometry((3, 4, 5), (2.0, 1.0, 1.0), STRAIGHT[:, ::-1])
    prepared = preprocess(Volume(np.full((3, 4, 5), 150, np.int16), geometry, "CT"), SPEC)
    batch = prepared.read((Tile((-1, 0, 2), (4, 4, 4)), Tile((0, 0, 0), (4, 4, 4))))
    assert batch.shape == (2, 1, 4, 4, 4)
    assert batch.dtype == np.float32
    assert batch.flags.c_contiguous
    expected = np.full((4, 4, 4), prepared.padding[0])
    expected[1:4, 0:4, 0:3] = 0.75
    np.testing.assert_allclose(batch[0, 0], expected, atol=1e-6)
    batch[...] = 9.0
    assert prepared.voxels[0].max() < 1.0


def test_channels_of_a_colour_image_go_their_own_way_in_the_order_of_the_network() -> None:
    rgb = np.stack([np.full((2, 4, 4), value, dtype=np.uint8) for value in (255, 102, 51)])
    geometry = VolumeGeometry(np.eye(4), (2, 4, 4))
    spec = Preprocessing(
        plane_shape=(2, 2), orientation="acquired", intensity=DivideBy255(channel_order="bgr"), padding_value=0.0
    )
    prepared = preprocess(Volume(rgb, geometry, "ES"), spec, channels=3)
    assert prepared.voxels.shape == (3, 2, 2, 2)
    np.testing.assert_allclose(prepared.voxels[:, 0, 0, 0], [0.2, 0.4, 1.0], rtol=1e-6)
    np.testing.assert_array_equal(prepared.padding, [0, 0, 0])
    batch = prepared.read((Tile((1, -1, 0), (1, 4, 4)),))
    assert batch.shape == (1, 3, 1, 4, 4)
    np.testing.assert_allclose(batch[0, 2, 0, 1:3, :2], 1.0, rtol=1e-6)
    assert not batch[0, 2, 0, 0].any(), "outside is padding"


def test_grey_image_is_repeated_for_a_network_of_colour() -> None:
    volume = Volume(np.full((1, 4, 4), 51, dtype=np.uint8), VolumeGeometry(np.eye(4), (1, 4, 4)), "US")
    spec = Preprocessing(
        plane_shape=(4, 4), orientation="acquired", intensity=DivideBy255(channel_order="bgr"), padding_value=0.0
    )
    np.testing.assert_allclose(preprocess(volume, spec, channels=3).voxels, np.full((3, 1, 4, 4), 0.2))


def test_colour_image_is_refused_by_a_network_of_one_channel() -> None:
    volume = Volume(np.zeros((3, 1, 4, 4), dtype=np.uint8), VolumeGeometry(np.eye(4), (1, 4, 4)), "US")
    spec = Preprocessing(plane_shape=(4, 4), orientation="acquired", intensity=Identity(), padding_value=0.0)
    with pytest.raises(InputError, match="3 channels; the network takes 1"):
        preprocess(volume, spec)
