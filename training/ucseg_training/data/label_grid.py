"""Labels on grids: placed on the grid of their image if they belong there, and divided anew for the model grid."""

from __future__ import annotations

from itertools import product
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from ucseg_runtime.arrays import UInt8Array
from ucseg_runtime.errors import GeometryError, InputError
from ucseg_runtime.geometry import VolumeGeometry
from ucseg_runtime.resampling import resample

_Voxel = TypeVar("_Voxel", bound=np.generic)

_TOLERANCE_VOXELS = 0.1
"""Two grids are the same where no corner differs by more: rounding in headers is far less, a real shift is more."""


def straight_geometry(shape: tuple[int, int, int], spacing_mm: tuple[float, float, float]) -> VolumeGeometry:
    """A grid along the axes of the patient, x to the left, y to the back, z to the head, for images without geometry.

    Args:
        shape: Along (z, y, x).
        spacing_mm: Along (z, y, x).
    """
    affine = np.zeros((4, 4))
    affine[[2, 1, 0], [0, 1, 2]] = spacing_mm
    affine[3, 3] = 1.0
    return VolumeGeometry(affine, shape)


def onto_image_grid(
    labels: npt.NDArray[_Voxel], have: VolumeGeometry, want: VolumeGeometry, *, part: bool = False
) -> npt.NDArray[_Voxel]:
    """Labels with the axes of their image: the same voxels, perhaps in another order of axes and directions.

    Args:
        labels: Any type, shape (z, y, x) of `have`.
        have: Grid of the labels.
        want: Grid of the image.
        part: Whether the labels may cover a part of the image's grid; the rest is 0 then.

    Returns:
        Same type, shape of `want`; a view where nothing had to be filled up.

    Raises:
        GeometryError: The voxels of the two grids are not the same, within a tenth of a voxel.
    """
    origin = want.index_from_lps(have.lps_from_index((0, 0, 0)))
    steps = np.stack([want.index_from_lps(have.lps_from_index(unit)) - origin for unit in np.eye(3)], axis=1)
    axis_of = np.abs(steps).argmax(axis=0)  # axis of the image along which each axis of the labels runs
    if sorted(axis_of) != [0, 1, 2]:
        raise _another_grid(have, want)
    exact = np.zeros((3, 3))
    exact[axis_of, [0, 1, 2]] = np.sign(steps[axis_of, [0, 1, 2]])
    first = np.rint(origin)
    corners = np.array(list(product(*[(0, side - 1) for side in have.shape]))).T  # (3, 8)
    if np.abs((steps - exact) @ corners + (origin - first)[:, None]).max() > _TOLERANCE_VOXELS:
        raise _another_grid(have, want)
    start = (exact @ corners + first[:, None]).min(axis=1).astype(int)
    turned = labels.transpose([int(axis) for axis in np.argsort(axis_of)])
    turned = np.flip(turned, tuple(axis for axis in range(3) if exact[axis].sum() < 0))
    stop = start + turned.shape
    whole = turned.shape == want.shape and not start.any()
    if whole:
        return turned
    if not part or start.min() < 0 or (stop > want.shape).any():
        raise _another_grid(have, want)
    result = np.zeros(want.shape, dtype=labels.dtype)
    result[tuple(slice(low, high) for low, high in zip(start, stop, strict=True))] = turned
    return result


def majority_labels(labels: UInt8Array, shape: tuple[int, int, int]) -> UInt8Array:
    """The same box of tissue in `shape` voxels, each with the label of its largest share; the lowest wins ties."""
    if labels.shape == shape:
        return labels.copy()
    best = resample((labels == 0).astype(np.float32), shape)
    result = np.zeros(shape, dtype=np.uint8)
    for label in np.unique(labels[labels > 0]):
        share = resample((labels == label).astype(np.float32), shape)
        wins = share > best
        result[wins] = label
        best = np.maximum(best, share)
    return result


def require_same_grid(first: VolumeGeometry, other: VolumeGeometry, what: str) -> None:
    """Check that two images lie on one grid, within a tenth of a voxel.

    Raises:
        InputError: They do not.
    """
    if not first.matches(other, tolerance_mm=_TOLERANCE_VOXELS * min(first.spacing_mm)):
        raise InputError(f"{what} lie on different grids: {_in_words(first)}, and {_in_words(other)}.")


def _another_grid(have: VolumeGeometry, want: VolumeGeometry) -> GeometryError:
    return GeometryError(
        f"the label lies on another grid than the image: {_in_words(have)}, the image {_in_words(want)}.",
        hint="Export image and label with the same grid; labels are not resampled onto images.",
    )


def _in_words(geometry: VolumeGeometry) -> str:
    spacing = " x ".join(f"{side:.4g}" for side in geometry.spacing_mm)
    origin = ", ".join(f"{value:.1f}" for value in geometry.origin_mm)
    return f"{' x '.join(map(str, geometry.shape))} voxels of {spacing} mm from ({origin}) mm"
