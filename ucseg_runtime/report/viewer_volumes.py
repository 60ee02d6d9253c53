"""What the page's viewer draws: image, labels and uncertainty, small enough to be sent by mail."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ucseg_runtime.arrays import Int16Array, UInt8Array
from ucseg_runtime.geometry import VolumeGeometry
from ucseg_runtime.preprocess import resample_nearest
from ucseg_runtime.report.nifti_bytes import nifti_bytes
from ucseg_runtime.resampling import resample
from ucseg_runtime.upright import Upright, fullest_planes

MOST_VOXELS = 10_000_000
"""Of the grid that is shown; larger ones are made coarser."""

CT_STEP_HU = 4
"""To which CT numbers are rounded. Noise takes most of a file's size, and no eye sees 4 HU."""

UNCERTAINTY_LEVELS = 255

_LEAST_ALIGNED = 0.9
"""Cosine, 26 degrees, between an axis of the grid and the patient's."""

_CT_RANGE_HU = (-1024, 3068)
_LEVELS = 255


@dataclass(frozen=True, eq=False)
class ViewerVolumes:
    """Three volumes on one grid, each a whole ``.nii.gz``.

    Attributes:
        image: Modality units: CT numbers rounded to `CT_STEP_HU`, int16; of others 256 levels from the least to the
            largest value of all but 0.2 % of the voxels.
        labels: uint8, that of the voxel in whose place each one lies.
        uncertainty: In [0, 1], in 255 steps, uint8.
        geometry: The grid; x grows to the patient's left, y to the back and z to the head.
        source_geometry: That of the image itself, turned like this.
        window: Modality values shown black and white.
        modality: DICOM modality.
        focus: Indices (z, y, x) at which the viewer opens: where most of the segments is.
    """

    image: bytes
    labels: bytes
    uncertainty: bytes
    geometry: VolumeGeometry
    source_geometry: VolumeGeometry
    window: tuple[float, float]
    modality: str
    focus: tuple[int, int, int]

    @property
    def is_coarser(self) -> bool:
        """Whether the grid is another one than the image's."""
        return self.geometry.shape != self.source_geometry.shape


def viewer_volumes(shown: Upright) -> ViewerVolumes:
    """Encode what is shown, on a grid of at most `MOST_VOXELS`.

    Image and uncertainty are averaged where the grid gets coarser.
    """
    geometry = as_drawn(shown.geometry.regridded(shown_shape(shown.geometry)))
    labels = resample_nearest(shown.labels, geometry.shape)
    return ViewerVolumes(
        image=_image(shown, geometry),
        labels=nifti_bytes(labels, geometry),
        uncertainty=_uncertainty(shown, geometry),
        geometry=geometry,
        source_geometry=shown.geometry,
        window=shown.window,
        modality=shown.modality,
        focus=fullest_planes(labels),
    )


def as_drawn(geometry: VolumeGeometry) -> VolumeGeometry:
    """The grid, without its rotation where that is so large that a viewer could take one axis for another.

    Planes of the grid are drawn either way. NiiVue gives the names left, back and head to axes by rules of its own,
    which for grids that are turned far about two axes are not those by which the volume was turned upright.
    """
    aligned = geometry.direction[::-1].diagonal()
    if aligned.min() > _LEAST_ALIGNED:
        return geometry
    affine = np.eye(4)
    affine[:3, :3] = np.diag(geometry.spacing_mm)[::-1]
    return VolumeGeometry(affine, geometry.shape)


def shown_shape(source: VolumeGeometry, most_voxels: int = MOST_VOXELS) -> tuple[int, int, int]:
    """Sides (z, y, x) of the grid that is shown: those axes get coarser whose voxels are shortest.

    Args:
        source: Grid of the image.
        most_voxels: That the result may have.
    """
    factors = [1, 1, 1]
    while True:
        z, y, x = (max(1, round(side / factor)) for side, factor in zip(source.shape, factors, strict=True))
        if math.prod((z, y, x)) <= most_voxels:
            return z, y, x
        steps_mm = [spacing * factor for spacing, factor in zip(source.spacing_mm, factors, strict=True)]
        # Both axes of a plane together, or its pixels would not be square any more.
        for axis, step_mm in enumerate(steps_mm):
            if step_mm <= 1.001 * min(steps_mm):
                factors[axis] += 1


def _image(shown: Upright, geometry: VolumeGeometry) -> bytes:
    image = _averaged(shown.image, geometry)
    if shown.modality == "CT":
        steps = np.rint(np.clip(image, *_CT_RANGE_HU) / CT_STEP_HU)
        rounded: Int16Array = (steps * CT_STEP_HU).astype(np.int16)
        return nifti_bytes(rounded, geometry)
    low, high = (float(value) for value in np.percentile(image[:, ::2, ::2], (0.1, 99.9)))
    slope = max(high - low, 1e-6) / _LEVELS
    return nifti_bytes(_levels((image - low) / slope), geometry, slope, low)


def _uncertainty(shown: Upright, geometry: VolumeGeometry) -> bytes:
    levels = _levels(_averaged(shown.uncertainty, geometry) * UNCERTAINTY_LEVELS)
    return nifti_bytes(levels, geometry, 1.0 / UNCERTAINTY_LEVELS)


def _averaged(voxels: npt.NDArray[np.generic], geometry: VolumeGeometry) -> npt.NDArray[np.floating]:
    return resample(voxels, geometry.shape) if voxels.shape != geometry.shape else voxels.astype(np.float32)


def _levels(values: npt.NDArray[np.floating]) -> UInt8Array:
    """Rounded to 0 … 255."""
    levels: UInt8Array = np.rint(np.clip(values, 0.0, _LEVELS)).astype(np.uint8)
    return levels
