"""A volume and its result as they are looked at: turned the way patients are shown, plane by plane."""

from __future__ import annotations

from dataclasses import dataclass
from types import EllipsisType
from typing import cast

import numpy as np
import numpy.typing as npt

from ucseg_runtime.arrays import BoolArray, Float32Array, UInt8Array
from ucseg_runtime.geometry import VolumeGeometry
from ucseg_runtime.preprocess import orientation_to_lps
from ucseg_runtime.segmentation import Segmentation
from ucseg_runtime.volume import Volume

SOFT_TISSUE_HU = (-160.0, 240.0)

_HEAD_UP = slice(None, None, -1)


@dataclass(frozen=True, eq=False)
class View:
    """One plane through the patient as it is looked at.

    Attributes:
        image: uint8, shape (rows, columns), windowed; or (rows, columns, 3), blue-green-red.
        labels: uint8, same shape.
        uncertainty: float32, same shape, in [0, 1].
        pixel_mm: Height and width of a pixel.
        sides: Letters of the left and of the right border, or other short texts.
    """

    image: UInt8Array
    labels: UInt8Array
    uncertainty: Float32Array
    pixel_mm: tuple[float, float]
    sides: tuple[str, str]


@dataclass(frozen=True, eq=False)
class Upright:
    """A volume and its result, turned so that x grows to the patient's left, y to the back and z to the head.

    Attributes:
        image: Modality units, shape (z, y, x); a view of the volume.
        labels: uint8, same shape.
        uncertainty: float32, same shape, in [0, 1].
        geometry: Grid of the three.
        modality: DICOM modality.
        window: Modality values shown black and white.
    """

    image: npt.NDArray[np.generic]
    labels: UInt8Array
    uncertainty: Float32Array
    geometry: VolumeGeometry
    modality: str
    window: tuple[float, float]

    def axial(self, z: int) -> View:
        """Seen from the feet."""
        _, dy, dx = self.geometry.spacing_mm
        return self._view((z, ...), (dy, dx), ("R", "L"))

    def coronal(self, y: int) -> View:
        """Seen from the front."""
        dz, _, dx = self.geometry.spacing_mm
        return self._view((_HEAD_UP, y, ...), (dz, dx), ("R", "L"))

    def sagittal(self, x: int) -> View:
        """Seen from the patient's left."""
        dz, dy, _ = self.geometry.spacing_mm
        return self._view((_HEAD_UP, ..., x), (dz, dy), ("A", "P"))

    def _view(
        self, key: tuple[int | slice | EllipsisType, ...], pixel_mm: tuple[float, float], sides: tuple[str, str]
    ) -> View:
        return View(
            image=_windowed(np.ascontiguousarray(self.image[key]), self.window),
            labels=np.ascontiguousarray(self.labels[key]),
            uncertainty=np.ascontiguousarray(self.uncertainty[key]),
            pixel_mm=pixel_mm,
            sides=sides,
        )


def upright(volume: Volume, segmentation: Segmentation) -> Upright:
    """Turn a volume and its result, on the same grid and with the uncertainty in float32; nothing is copied."""
    orientation = orientation_to_lps(volume.geometry.direction)
    image: npt.NDArray[np.generic] = volume.voxels
    return Upright(
        image=orientation.apply(image),
        labels=orientation.apply(segmentation.label_map),
        uncertainty=orientation.apply(cast(Float32Array, segmentation.uncertainty)),
        geometry=orientation.apply_to_geometry(volume.geometry),
        modality=volume.modality,
        window=display_window(volume),
    )


def fullest_planes(labels: npt.NDArray[np.generic]) -> tuple[int, int, int]:
    """Indices (z, y, x) of the planes with most voxels of any segment; the middle ones where there is none.

    Every second voxel along each axis is looked at, which is enough to choose.
    """
    mask = some_mask(labels)
    return fullest(mask.sum(axis=(1, 2))), fullest(mask.sum(axis=(0, 2))), fullest(mask.sum(axis=(0, 1)))


def some_mask(labels: npt.NDArray[np.generic]) -> BoolArray:
    """Every second voxel along each axis: where there is a segment; everywhere if there is none."""
    mask: BoolArray = labels[::2, ::2, ::2] != 0
    return mask if mask.any() else np.ones_like(mask)


def fullest(counts: npt.NDArray[np.integer]) -> int:
    """Full-grid index of the largest count; the middle one of equals."""
    largest = np.flatnonzero(counts == counts.max())
    return 2 * int(largest[len(largest) // 2])


def display_window(volume: Volume) -> tuple[float, float]:
    """Modality values shown black and white."""
    if volume.modality == "CT":
        return SOFT_TISSUE_HU
    low, high = np.percentile(volume.voxels[::2, ::4, ::4], (1.0, 99.0))
    return float(low), max(float(high), float(low) + 1.0)


def _windowed(voxels: npt.NDArray[np.generic], window: tuple[float, float]) -> UInt8Array:
    low, high = window
    levels = (voxels.astype(np.float32) - np.float32(low)) * np.float32(255.0 / (high - low))
    return np.asarray(np.clip(levels, 0.0, 255.0), dtype=np.uint8)
