"""Where the patient is in a CT: the box outside which there is nothing but air and table.

The network costs the same for a tile of air as for one of tissue, so tiles are laid over this box alone. The rule is
meant to keep too much rather than too little: whatever is not sure to be air or table belongs to the patient.
"""

from __future__ import annotations

import math

import numpy as np
from scipy import ndimage

from ucseg_runtime.arrays import BoolArray, Float32Array, Slices3

_TISSUE_HU = -500.0
"""Between lung or fat and air; padding of scanners is air."""

_LOOKED_AT_MM = 3.0
"""Voxels finer than this are skipped over: the box need not be more exact than its margin."""

_SHEET_MM = 9.0
"""Shells of tables and covers are thinner than this, and go; so does skin that stands alone."""

_LEAST_SHARE = 0.01
"""Of the largest part: smaller ones are pillows and cables. Arms beside the body are larger."""

_MARGIN_MM = 15.0
"""Added on every side: more than what removing sheets takes away, and context for the network."""


def body_box(voxels: Float32Array, spacing_mm: tuple[float, float, float]) -> Slices3:
    """The box that holds the patient.

    Args:
        voxels: float32, shape (z, y, x), HU.
        spacing_mm: Of the voxels along (z, y, x).

    Returns:
        Slices along (z, y, x), not empty; all of the volume where no patient is found in it.
    """
    steps = [max(1, math.floor(_LOOKED_AT_MM / spacing)) for spacing in spacing_mm]
    tissue = voxels[tuple(slice(None, None, step) for step in steps)] > _TISSUE_HU
    seen_mm = [step * spacing for step, spacing in zip(steps, spacing_mm, strict=True)]
    body = _large_parts(_without_sheets(tissue, seen_mm))
    if not body.any():
        return slice(0, voxels.shape[0]), slice(0, voxels.shape[1]), slice(0, voxels.shape[2])
    box = []
    for axis, (step, spacing, side) in enumerate(zip(steps, spacing_mm, voxels.shape, strict=True)):
        used = np.flatnonzero(body.any(axis=tuple(other for other in range(3) if other != axis))) * step
        margin = math.ceil(_MARGIN_MM / spacing) + step - 1
        box.append(slice(max(0, int(used[0]) - margin), min(side, int(used[-1]) + 1 + margin)))
    return box[0], box[1], box[2]


def _without_sheets(tissue: BoolArray, spacing_mm: list[float]) -> BoolArray:
    """What remains when everything thinner than `_SHEET_MM` in a slice is taken away.

    Along z nothing is taken away: a series of two slices is not a sheet.
    """
    across = [1, *(max(1, round(_SHEET_MM / spacing)) for spacing in spacing_mm[1:])]
    # Minimum and maximum of a box go axis by axis, whatever its size. Outside the volume the body goes on.
    thick = ndimage.minimum_filter(tissue.view(np.uint8), size=across, mode="nearest")
    opened: BoolArray = ndimage.maximum_filter(thick, size=across, mode="nearest").astype(bool)
    return opened


def _large_parts(tissue: BoolArray) -> BoolArray:
    parts, count = ndimage.label(tissue)
    voxels = np.bincount(parts.ravel(), minlength=count + 1)
    voxels[0] = 0
    large: BoolArray = (voxels >= max(1.0, _LEAST_SHARE * voxels.max()))[parts]
    return large
