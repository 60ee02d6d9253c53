"""Whether values can be Hounsfield units."""

from __future__ import annotations

import numpy as np

from ucseg_runtime.arrays import Float32Array, Int16Array
from ucseg_runtime.errors import PixelDataError

_PADDING_HU = -1024
_HIGHEST_HU = 4000
_TOLERATED_SHARE = 0.01


def require_hounsfield_units(voxels: Int16Array | Float32Array) -> None:
    """Check that the values of a CT can be Hounsfield units.

    Values of −1024 and below count as padding outside the field of view, as scanners write it.

    Args:
        voxels: Shape (slices, rows, columns).

    Raises:
        PixelDataError: All voxels are equal, none is negative, or too many are higher than any tissue or metal.
    """
    lowest, highest = float(voxels.min()), float(voxels.max())
    if lowest == highest:
        raise _implausible("all voxels have the same value")
    if lowest >= 0.0:
        raise _implausible("no voxel is negative, so there is neither air nor fat")
    inside = above = 0
    for plane in voxels:  # plane by plane, because the comparisons then stay in the cache
        inside += int(np.count_nonzero(plane > _PADDING_HU))
        above += int(np.count_nonzero(plane > _HIGHEST_HU))
    if inside == 0:
        raise _implausible(f"no voxel is above the padding value of {_PADDING_HU} HU")
    if above > _TOLERATED_SHARE * inside:
        raise _implausible(
            f"{100.0 * above / inside:.1f} % of the voxels are above {_HIGHEST_HU} HU (expected at most "
            f"{100.0 * _TOLERATED_SHARE:g} %)"
        )


def _implausible(reason: str) -> PixelDataError:
    return PixelDataError(
        f"the intensities cannot be those of a CT: {reason}.",
        hint="Usually Rescale Slope or Intercept was lost on the way; export the series from its source.",
        code="UCSEG-E122",
    )
