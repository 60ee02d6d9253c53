"""Geometry: the affine maps voxels to the patient, whatever is done to the grid."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from tests.volume_phantom import OBLIQUE, centred_geometry
from ucseg_runtime.errors import GeometryError
from ucseg_runtime.geometry import VolumeGeometry


@pytest.fixture
def oblique() -> VolumeGeometry:
    return centred_geometry((4, 5, 7), (2.5, 0.7, 0.9), OBLIQUE)


def corners(geometry: VolumeGeometry) -> np.ndarray:
    return np.array(list(itertools.product(*[(-0.5, side - 0.5) for side in geometry.shape])))


def test_index_from_lps_undoes_lps_from_index(oblique: VolumeGeometry) -> None:
    index = np.random.default_rng(0).uniform(-3, 9, size=(20, 3))
    np.testing.assert_allclose(oblique.index_from_lps(oblique.lps_from_index(index)), index, atol=1e-12)


def test_one_step_along_an_axis_is_one_spacing_along_its_direction(oblique: VolumeGeometry) -> None:
    for axis in range(3):
        step = oblique.lps_from_index(np.eye(3)[axis]) - oblique.origin_mm
        np.testing.assert_allclose(step, oblique.direction[:, axis] * oblique.spacing_mm[axis], atol=1e-12)


def test_voxel_volume_is_the_product_of_the_spacings_in_ml(oblique: VolumeGeometry) -> None:
    assert oblique.voxel_volume_ml == pytest.approx(2.5 * 0.7 * 0.9 / 1000)


@pytest.mark.parametrize("axes", list(itertools.permutations(range(3))), ids=str)
def test_permuted_geometry_keeps_every_voxel_in_place(oblique: VolumeGeometry, axes: tuple[int, int, int]) -> None:
    index = np.array([1, 2, 3])
    permuted = oblique.permuted(axes)
    assert permuted.shape == tuple(oblique.shape[axis] for axis in axes)
    np.testing.assert_allclose(permuted.lps_from_index(index[list(axes)]), oblique.lps_from_index(index), atol=1e-12)


@pytest.mark.parametrize("axes", [(), (0,), (1, 2), (0, 1, 2)], ids=str)
def test_flipped_geometry_keeps_every_voxel_in_place(oblique: VolumeGeometry, axes: tuple[int, ...]) -> None:
    index = np.array([1, 2, 3])
    mirrored = [oblique.shape[axis] - 1 - index[axis] if axis in axes else index[axis] for axis in range(3)]
    np.testing.assert_allclose(
        oblique.flipped(axes).lps_from_index(mirrored), oblique.lps_from_index(index), atol=1e-12
    )


def test_regridded_geometry_covers_the_same_box(oblique: VolumeGeometry) -> None:
    coarse = oblique.regridded((2, 9, 3))
    np.testing.assert_allclose(
        coarse.lps_from_index(corners(coarse)), oblique.lps_from_index(corners(oblique)), atol=1e-12
    )


def test_geometries_match_within_the_tolerance_and_not_beyond(oblique: VolumeGeometry) -> None:
    affine = oblique.affine.copy()
    affine[0, 3] += 0.01
    moved = VolumeGeometry(affine, oblique.shape)
    assert oblique.matches(moved, tolerance_mm=0.011)
    assert not oblique.matches(moved, tolerance_mm=0.009)
    assert not oblique.matches(oblique.regridded((4, 5, 8)), tolerance_mm=100)


def test_affine_is_a_read_only_copy() -> None:
    affine = np.eye(4)
    geometry = VolumeGeometry(affine, (1, 1, 1))
    affine[0, 3] = 7.0
    assert geometry.affine[0, 3] == 0.0
    with pytest.raises(ValueError, match="read-only"):
        geometry.affine[0, 3] = 1.0


def sheared() -> np.ndarray:
    affine = np.eye(4)
    affine[0, 1] = 0.01
    return affine


@pytest.mark.parametrize(
    ("affine", "shape", "reason"),
    [
        (np.full((4, 4), np.nan), (1, 1, 1), "finite"),
        (np.eye(3), (1, 1, 1), "4 x 4"),
        (np.diag([0.0, 1.0, 1.0, 1.0]), (1, 1, 1), "spacing"),
        (sheared(), (1, 1, 1), "perpendicular"),
        (np.eye(4), (1, 0, 1), "at least one voxel"),
    ],
    ids=["not finite", "not 4 x 4", "no spacing", "sheared", "no voxels"],
)
def test_geometry_refuses_what_is_no_grid(affine: np.ndarray, shape: tuple[int, int, int], reason: str) -> None:
    with pytest.raises(GeometryError, match=reason):
        VolumeGeometry(affine, shape)
