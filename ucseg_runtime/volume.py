"""A voxel array together with its place in the patient."""

from __future__ import annotations

from dataclasses import dataclass

from ucseg_runtime.arrays import Float32Array, Int16Array, UInt8Array
from ucseg_runtime.errors import GeometryError
from ucseg_runtime.geometry import VolumeGeometry


@dataclass(frozen=True, eq=False)
class Volume:
    """One image on one grid, of one channel or of several.

    Attributes:
        voxels: uint8, int16 or float32, shape (z, y, x), or (channels, z, y, x) for images in colour: red, green, blue.
            Modality units: Hounsfield units for CT.
        geometry: Grid of the voxels, same shape.
        modality: DICOM modality such as ``CT``, (0008,0060).

    Raises:
        GeometryError: The array and the geometry differ in shape.
    """

    voxels: UInt8Array | Int16Array | Float32Array
    geometry: VolumeGeometry
    modality: str

    def __post_init__(self) -> None:
        if self.voxels.ndim not in (3, 4) or self.voxels.shape[-3:] != self.geometry.shape:
            raise GeometryError(f"the voxels have shape {self.voxels.shape}; the geometry says {self.geometry.shape}")

    @property
    def channels(self) -> UInt8Array | Int16Array | Float32Array:
        """The voxels with an axis for the channels, shape (channels, z, y, x); a view."""
        return self.voxels if self.voxels.ndim == 4 else self.voxels[None]
