"""Lungs of a chest CT by a classical rule: enclosed air, with the vessels closed in."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from ucseg_runtime.arrays import BoolArray, Float32Array

_AIR_HU = -500.0
_LEAST_LUNG_ML = 150.0
_LEAST_SLICE_AREA_MM2 = 1500.0
_CLOSING_MM = 6.0


@dataclass(frozen=True, eq=False)
class LungRegions:
    """Where the rule is sure.

    Attributes:
        lungs: bool, shape (z, y, x): lung with its vessels.
        unsure: bool, same shape: enclosed air that may be trachea, bronchus or gut, about which the rule says nothing.
    """

    lungs: BoolArray
    unsure: BoolArray


def find_lungs(voxels: Float32Array, spacing_mm: tuple[float, float, float]) -> LungRegions:
    """Apply the rule to a CT in HU on an isotropic or nearly isotropic grid.

    Air inside the body is lung where its component is large; narrow cross-sections of it are left undecided, because
    trachea and main bronchi are air but not lung.
    """
    enclosed = _enclosed_air(voxels < _AIR_HU)
    labelled, count = ndimage.label(enclosed)
    sizes_ml = np.bincount(labelled.ravel(), minlength=count + 1) * np.prod(spacing_mm) / 1000.0
    large = np.flatnonzero(sizes_ml >= _LEAST_LUNG_ML)
    air = np.isin(labelled, large[large > 0])
    narrow = _narrow_sections(air, spacing_mm[1] * spacing_mm[2])
    lungs = air & ~narrow
    closed = ndimage.binary_closing(lungs, _ball(_CLOSING_MM / spacing_mm[0])) | lungs
    # A wide margin around what was left out: the rule does not know where a bronchus ends.
    unsure = (narrow | (enclosed & ~air)) | (ndimage.binary_dilation(narrow, iterations=2) & ~lungs)
    return LungRegions(lungs=closed & ~narrow, unsure=unsure & ~(closed & ~narrow))


def _enclosed_air(air: BoolArray) -> BoolArray:
    """Air that does not reach the rim of its slice; the room around the patient does."""
    result = np.zeros_like(air)
    for target, plane in zip(result, air, strict=True):
        labelled, _ = ndimage.label(plane)
        rim = np.unique(np.concatenate([labelled[0], labelled[-1], labelled[:, 0], labelled[:, -1]]))
        target[:] = plane & ~np.isin(labelled, rim)
    return result


def _narrow_sections(air: BoolArray, pixel_area_mm2: float) -> BoolArray:
    result = np.zeros_like(air)
    for target, plane in zip(result, air, strict=True):
        labelled, count = ndimage.label(plane)
        areas = np.bincount(labelled.ravel(), minlength=count + 1) * pixel_area_mm2
        target[:] = (areas < _LEAST_SLICE_AREA_MM2)[labelled] & plane
    return result


def _ball(radius: float) -> BoolArray:
    reach = int(np.ceil(radius))
    z, y, x = np.ogrid[-reach : reach + 1, -reach : reach + 1, -reach : reach + 1]
    inside: BoolArray = z * z + y * y + x * x <= radius * radius
    return inside
