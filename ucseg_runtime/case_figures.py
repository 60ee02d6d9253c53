"""What can be measured of a case without knowing what is right: its image, its segments and their uncertainty.

The same figures are taken of training cases, for the ranges in the manifest, and of every case that is decided upon.
Medians, percentiles and shares are used, so that a few wrong voxels change nothing.

Keys, units and what they are taken of:

- ``slice_spacing_mm``, ``pixel_spacing_mm`` (the greater of rows and columns), ``slices``; ``extent_left_mm``,
  ``extent_back_mm``, ``extent_up_mm``: of the grid, along the axes of the patient.
- ``air``: share of the voxels below −500 HU. ``hu_p05`` … ``hu_p95``: percentiles in HU of all others. ``noise_hu``: of
  those, the median difference of neighbours in a row as the standard deviation of Gaussian noise. Of CT alone, since
  other modalities have no absolute scale.
- ``found``: number of classes that were found. ``present/L``: 1 where class L was found, else 0.
- ``volume_ml/L``; ``uncertainty/L``: mean in [0, 1] of its inner voxels; ``border_uncertainty/L``: of those next to
  another label; ``subnet_dice/L`` where it was counted. L is the label.
- ``left_mm/L-M``, ``back_mm/L-M``, ``up_mm/L-M``: how far the median position of L lies from that of M, along LPS; of
  segments of 5 ml and more.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import cast

import numpy as np

from ucseg_runtime.arrays import BoolArray, Float32Array, Float64Array, Int16Array, Int64Array, UInt8Array, UInt16Array
from ucseg_runtime.segmentation import UNCERTAINTY_SCALE, Segmentation, SegmentMeasurement
from ucseg_runtime.slice_stack import straight_grid
from ucseg_runtime.volume import Volume

_TISSUE_HU = -500.0
"""Between lung or fat and air, as in `body`."""

_AIR_HU = -1000.0
"""Scanners write less outside their field of view."""

_PERCENTILES = (5, 25, 50, 75, 95)
_LOOKED_AT = 2_000_000
"""Voxels of which intensities are taken; more would not move a percentile."""

_NORMAL = 1.4826 / math.sqrt(2.0)
"""Median absolute difference of two equal Gaussian variables to the standard deviation of one."""

_PLACED_FROM_ML = 5.0
"""Smaller segments say little about where an organ lies: often they are false."""

_DIRECTIONS = ("left", "back", "up")
"""Of the axes L, P and S."""


def case_figures(
    volume: Volume, segmentation: Segmentation, measurements: Sequence[SegmentMeasurement]
) -> dict[str, float]:
    """All figures of a case, by key.

    Args:
        volume: What was segmented, of one channel.
        segmentation: On the grid of the volume, with the uncertainty as it is stored (uint16): so the figures are the
            same whether it came from an engine or from a server that rounds it.
        measurements: One per class.
    """
    return {**image_figures(volume), **_segment_figures(segmentation, measurements)}


def image_figures(volume: Volume) -> dict[str, float]:
    """Figures of the grid and, of CT, of the intensities."""
    geometry = volume.geometry
    slice_mm, *pixel_mm = geometry.spacing_mm
    extent_mm = np.abs(geometry.affine[:3, :3]) @ np.asarray(geometry.shape)
    figures = {"slice_spacing_mm": slice_mm, "pixel_spacing_mm": max(pixel_mm), "slices": float(geometry.shape[0])}
    for direction, side in zip(_DIRECTIONS, extent_mm, strict=True):
        figures[f"extent_{direction}_mm"] = float(side)
    return figures | (_intensities(volume.voxels) if volume.modality == "CT" else {})


def _intensities(voxels: UInt8Array | Int16Array | Float32Array) -> dict[str, float]:
    """Of every n-th row of every slice, so that neighbours in a row are still there."""
    step = max(1, voxels.size // _LOOKED_AT)
    rows = voxels.reshape(-1, voxels.shape[-1])[::step].astype(np.float32)
    np.maximum(rows, _AIR_HU, out=rows)
    tissue = rows > _TISSUE_HU
    figures = {"air": 1.0 - float(tissue.mean())}
    if not tissue.any():
        return figures
    for percent, value in zip(_PERCENTILES, np.percentile(rows[tissue], _PERCENTILES), strict=True):
        figures[f"hu_p{percent:02}"] = float(value)
    both = tissue[:, 1:] & tissue[:, :-1]
    if both.any():
        figures["noise_hu"] = _NORMAL * float(np.median(np.abs(np.diff(rows, axis=1)[both])))
    return figures


def _segment_figures(segmentation: Segmentation, measurements: Sequence[SegmentMeasurement]) -> dict[str, float]:
    assert segmentation.uncertainty.dtype == np.uint16  # noqa: S101  (see `case_figures`)
    stored = cast(UInt16Array, segmentation.uncertainty)
    counts = _Counts(segmentation.label_map, stored, len(segmentation.classes) + 1)
    grid = straight_grid(segmentation.geometry)
    figures = {"found": float(sum(item.voxels > 0 for item in measurements))}
    places: dict[int, Float64Array] = {}
    for item in measurements:
        figures[f"present/{item.label}"] = float(item.voxels > 0)
        if not math.isnan(item.between_subnet_dice):
            figures[f"subnet_dice/{item.label}"] = item.between_subnet_dice
        if item.voxels:
            figures[f"volume_ml/{item.label}"] = item.volume_ml
            figures.update(counts.uncertainty(item.label))
            if item.volume_ml >= _PLACED_FROM_ML:
                places[item.label] = grid.lps_from_index(counts.median_index(item.label))
    return figures | _offsets(places)


def _offsets(places: Mapping[int, Float64Array]) -> dict[str, float]:
    """How far classes lie apart, every pair once."""
    return {
        f"{direction}_mm/{one}-{other}": float(distance)
        for one, other in itertools.combinations(sorted(places), 2)
        for direction, distance in zip(_DIRECTIONS, places[one] - places[other], strict=True)
    }


class _Counts:
    """What is summed over the voxels of every label, slice by slice, since counting widens labels to 8 bytes each.

    Args:
        label_map: uint8, shape (z, y, x).
        uncertainty: uint16, shape (z, y, x).
        labels: Background included.
    """

    def __init__(self, label_map: UInt8Array, uncertainty: UInt16Array, labels: int) -> None:
        self._voxels = np.zeros((2, labels))  # inner, border
        self._sums = np.zeros((2, labels))
        self._along: list[Int64Array] = [np.zeros((labels, side), dtype=np.int64) for side in label_map.shape]
        for z, plane in enumerate(label_map):
            found = np.flatnonzero(plane)
            if len(found):
                border = _border(label_map, z).ravel()[found]
                labels_found = plane.ravel()[found].astype(np.intp)
                self._add(z, labels_found, found, border, uncertainty[z].ravel()[found])

    def uncertainty(self, label: int) -> dict[str, float]:
        """Mean of the inner voxels and of those at the border; a thin segment has no inner ones."""
        names = (f"uncertainty/{label}", f"border_uncertainty/{label}")
        return {
            name: float(total / voxels / UNCERTAINTY_SCALE)
            for name, total, voxels in zip(names, self._sums[:, label], self._voxels[:, label], strict=True)
            if voxels
        }

    def median_index(self, label: int) -> tuple[float, float, float]:
        """Median of the indices of its voxels along (z, y, x)."""
        z, y, x = (
            float(np.searchsorted(np.cumsum(counts[label]), counts[label].sum() / 2.0)) for counts in self._along
        )
        return z, y, x

    def _add(
        self, z: int, labels: Int64Array, flat_index: Int64Array, border: BoolArray, uncertainty: UInt16Array
    ) -> None:
        count = self._sums.shape[1]
        cell = labels + count * border
        self._voxels += np.bincount(cell, minlength=2 * count).reshape(2, count)
        self._sums += np.bincount(cell, weights=uncertainty, minlength=2 * count).reshape(2, count)
        self._along[0][:, z] += np.bincount(labels, minlength=count)
        y, x = np.divmod(flat_index, self._along[2].shape[1])
        for axis, index in ((1, y), (2, x)):
            shape = self._along[axis].shape
            flat = np.bincount(labels * shape[1] + index, minlength=shape[0] * shape[1])
            self._along[axis] += flat.reshape(shape)


def _border(label_map: UInt8Array, z: int) -> BoolArray:
    """Voxels of a slice next to another label, bool, shape (y, x); the end of the image is no border."""
    plane = label_map[z]
    border = np.zeros(plane.shape, dtype=np.bool_)
    for neighbour in (*label_map[max(z - 1, 0) : z], *label_map[z + 1 : z + 2]):
        border |= plane != neighbour
    for axis in (0, 1):
        differ = np.diff(plane, axis=axis) != 0
        first, last = (np.moveaxis(border, axis, 0)[cut] for cut in (slice(None, -1), slice(1, None)))
        first |= np.moveaxis(differ, axis, 0)
        last |= np.moveaxis(differ, axis, 0)
    return border
