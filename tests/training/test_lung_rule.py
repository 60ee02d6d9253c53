"""The lung rule on a made-up chest: lungs with vessels, airways that run into them, gut with gas, air around."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
from scipy import ndimage

from ucseg_runtime.arrays import BoolArray, Float32Array
from ucseg_training.data.lung_rule import LungRegions, find_lungs
from ucseg_training.metrics import dice

SPACING_MM = (3.0, 3.0, 3.0)
SHAPE = (100, 84, 120)
AIR_HU, LUNG_HU, TISSUE_HU = -1000.0, -820.0, 40.0


@dataclass(frozen=True)
class Chest:
    """Masks of the phantom, bool, (z, y, x), and its CT."""

    voxels: Float32Array
    lungs: BoolArray
    vessels: BoolArray
    trachea: BoolArray
    gut_gas: BoolArray
    outside: BoolArray


def _ellipsoid(centre_mm: tuple[float, float, float], radii_mm: tuple[float, float, float]) -> BoolArray:
    """Around a point (z, y, x) relative to the middle of the volume; z grows to the head."""
    index = np.stack(np.indices(SHAPE), axis=-1) - (np.array(SHAPE) - 1) / 2
    inside: BoolArray = np.linalg.norm((index * SPACING_MM - centre_mm) / radii_mm, axis=-1) < 1.0
    return inside


def _chest() -> Chest:
    body = _ellipsoid((0.0, 0.0, 0.0), (10_000.0, 115.0, 170.0))
    sides = (-66.0, 66.0)
    lungs = np.any([_ellipsoid((20.0, 0.0, x), (105.0, 75.0, 55.0)) for x in sides], axis=0)
    vessels = np.any([_ellipsoid((20.0, 10.0, x), (60.0, 4.0, 4.0)) for x in sides], axis=0)
    height = ((np.arange(SHAPE[0]) - (SHAPE[0] - 1) / 2) * SPACING_MM[0]).reshape(-1, 1, 1)
    trachea = _ellipsoid((0.0, 0.0, 0.0), (10_000.0, 9.0, 9.0)) & (height > 60.0)
    bronchi = _ellipsoid((60.0, 0.0, 0.0), (8.0, 8.0, 90.0))
    gut_gas = _ellipsoid((-120.0, -40.0, 30.0), (20.0, 20.0, 20.0))
    voxels = np.where(body, np.float32(TISSUE_HU), np.float32(AIR_HU))
    voxels[lungs] = LUNG_HU
    voxels[vessels] = TISSUE_HU
    voxels[trachea | bronchi | gut_gas] = AIR_HU
    # Where the bronchi leave the trachea, all of it is one area as wide as the lungs.
    above_bronchi = height > 72.0
    return Chest(voxels, lungs, vessels & lungs, trachea & above_bronchi, gut_gas, ~body)


@pytest.fixture(scope="module")
def chest() -> Chest:
    return _chest()


@pytest.fixture(scope="module")
def regions(chest: Chest) -> LungRegions:
    return find_lungs(chest.voxels, SPACING_MM)


def test_lungs_are_found(chest: Chest, regions: LungRegions) -> None:
    assert dice(regions.lungs, chest.lungs) > 0.95


def test_vessels_inside_belong_to_the_lungs(chest: Chest, regions: LungRegions) -> None:
    assert chest.vessels.sum() > 100
    assert regions.lungs[chest.vessels].mean() > 0.95


def test_trachea_is_no_lung_although_its_air_runs_into_them(chest: Chest, regions: LungRegions) -> None:
    assert chest.trachea.sum() > 500
    assert not regions.lungs[chest.trachea].any()
    assert regions.unsure[chest.trachea].all()


def test_wall_between_trachea_and_lung_is_no_lung(chest: Chest, regions: LungRegions) -> None:
    next_to_trachea = ndimage.binary_dilation(chest.trachea) & (chest.voxels == TISSUE_HU)
    assert next_to_trachea.sum() > 100
    assert not regions.lungs[next_to_trachea].any()


def test_air_around_the_patient_is_neither_lung_nor_unsure(chest: Chest, regions: LungRegions) -> None:
    assert not regions.lungs[chest.outside].any()
    assert not regions.unsure[chest.outside].any()


def test_gas_in_the_gut_is_left_undecided(chest: Chest, regions: LungRegions) -> None:
    assert not regions.lungs[chest.gut_gas].any()
    assert regions.unsure[chest.gut_gas].all()


def test_regions_exclude_each_other(regions: LungRegions) -> None:
    assert not (regions.lungs & regions.unsure).any()


def test_body_without_air_has_no_lungs() -> None:
    regions = find_lungs(np.full((20, 30, 30), TISSUE_HU, dtype=np.float32), SPACING_MM)
    assert not regions.lungs.any()
    assert not regions.unsure.any()


def test_size_of_a_lung_is_measured_in_millimetres() -> None:
    voxels = np.full((30, 50, 50), TISSUE_HU, dtype=np.float32)
    voxels[5:25, 10:40, 10:40] = LUNG_HU  # 18000 voxels: 144 ml at 2 mm, 486 ml at 3 mm
    assert not find_lungs(voxels, (2.0, 2.0, 2.0)).lungs.any()
    assert find_lungs(voxels, (3.0, 3.0, 3.0)).lungs[5:25, 10:40, 10:40].all()
