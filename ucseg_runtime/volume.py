"""A voxel array together with its place in the patient."""

from __future__ import annotations

from dataclasses import dataclass

from ucseg_runtime.arrays import Float32Array, Int16Array
from ucseg_runtime.errors import GeometryError
from ucseg_runtime.geometry import VolumeGeometry


@dataclass(frozen=True, eq=False)
class Volume:
    """One scalar image on one grid.

    Attributes:
        voxels: int16 or float32, shape (z, y, x). Modality units: Hounsfield units for CT.
        geometry: Grid of the voxels, same shape.
        modality: DICOM modality such as ``CT``, (0008,0060).

    Raises:
        GeometryError: The array and the geometry differ in shape.
    """

    voxels: Int16Array | Float32Array
    geometry: VolumeGeometry
    modality: str

    def __post_init__(self) -> None:
        if self.voxels.shape != self.geometry.shape:
            raise GeometryError(f"the voxels have shape {self.voxels.shape}; the geometry says {self.geometry.shape}")
