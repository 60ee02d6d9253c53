"""Where a voxel grid lies in the patient: an affine and a shape, no pixels and no DICOM."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ucseg_runtime.arrays import Float64Array
from ucseg_runtime.errors import GeometryError

_ORTHONORMAL_TOLERANCE = 1e-3


@dataclass(frozen=True, eq=False)
class VolumeGeometry:
    """Grid of a volume in the patient's coordinate system.

    Attributes:
        affine: float64, shape (4, 4), read-only. Maps the homogeneous index (z, y, x, 1) of a voxel to the LPS
            coordinates in mm of that voxel's centre.
        shape: Number of voxels along (z, y, x), each at least 1.

    Raises:
        GeometryError: The affine is not finite or not invertible, its axes are not orthogonal within 1e-3, or a side
            is smaller than 1.

    Source: DICOM PS3.3 C.7.6.2.1.1 for the mapping; the index order is (slice, row, column).
    """

    affine: Float64Array
    shape: tuple[int, int, int]

    def __post_init__(self) -> None:
        affine = np.array(self.affine, dtype=np.float64)
        if affine.shape != (4, 4) or not np.isfinite(affine).all():
            raise GeometryError(f"the affine has shape {affine.shape} or is not finite; expected a finite 4 x 4 matrix")
        if len(self.shape) != 3 or min(self.shape) < 1:
            raise GeometryError(f"the grid has shape {self.shape}; expected three sides of at least one voxel")
        affine.setflags(write=False)
        object.__setattr__(self, "affine", affine)
        object.__setattr__(self, "shape", tuple(int(side) for side in self.shape))
        if min(self.spacing_mm) <= 0.0:
            raise GeometryError(f"voxel spacing is {self.spacing_mm} mm; expected positive numbers")
        cosines = self.direction
        if np.abs(cosines.T @ cosines - np.eye(3)).max() > _ORTHONORMAL_TOLERANCE:
            raise GeometryError("the axes of the grid are not perpendicular to each other within 1e-3")

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """Distance in mm of neighbouring voxel centres along (z, y, x)."""
        z, y, x = (float(length) for length in np.linalg.norm(self.affine[:3, :3], axis=0))
        return z, y, x

    @property
    def direction(self) -> Float64Array:
        """Unit vectors of the index axes z, y, x as columns in LPS, float64, shape (3, 3)."""
        cosines: Float64Array = self.affine[:3, :3] / np.asarray(self.spacing_mm)
        return cosines

    @property
    def origin_mm(self) -> Float64Array:
        """LPS coordinates in mm of the centre of voxel (0, 0, 0), float64, shape (3,)."""
        origin: Float64Array = self.affine[:3, 3]
        return origin

    @property
    def voxel_volume_ml(self) -> float:
        """Volume of one voxel in ml."""
        return float(np.prod(self.spacing_mm)) / 1000.0

    def lps_from_index(self, index: npt.ArrayLike) -> Float64Array:
        """LPS coordinates in mm, shape (..., 3), of the (z, y, x) indices given with shape (..., 3)."""
        points: Float64Array = np.asarray(index, dtype=np.float64) @ self.affine[:3, :3].T + self.affine[:3, 3]
        return points

    def index_from_lps(self, points_mm: npt.ArrayLike) -> Float64Array:
        """Fractional (z, y, x) indices, shape (..., 3), of the LPS points in mm given with shape (..., 3)."""
        offset = np.asarray(points_mm, dtype=np.float64) - self.affine[:3, 3]
        index: Float64Array = np.linalg.solve(self.affine[:3, :3], offset[..., None])[..., 0].astype(np.float64)
        return index

    def matches(self, other: VolumeGeometry, tolerance_mm: float = 1e-3) -> bool:
        """Whether both grids have the same shape and no corner lies further apart than `tolerance_mm`."""
        if self.shape != other.shape:
            return False
        corners = np.array(np.meshgrid(*[(0, side - 1) for side in self.shape], indexing="ij")).reshape(3, -1).T
        distance = np.linalg.norm(self.lps_from_index(corners) - other.lps_from_index(corners), axis=-1)
        return bool(distance.max() <= tolerance_mm)

    def permuted(self, axes: tuple[int, int, int]) -> VolumeGeometry:
        """Geometry of the array after ``array.transpose(axes)``."""
        affine = self.affine.copy()
        affine[:, :3] = affine[:, list(axes)]
        z, y, x = (self.shape[axis] for axis in axes)
        return VolumeGeometry(affine, (z, y, x))

    def flipped(self, axes: tuple[int, ...]) -> VolumeGeometry:
        """Geometry of the array after ``numpy.flip(array, axes)``."""
        affine = self.affine.copy()
        for axis in axes:
            affine[:3, 3] += affine[:3, axis] * (self.shape[axis] - 1)
            affine[:3, axis] *= -1.0
        return VolumeGeometry(affine, self.shape)

    def regridded(self, shape: tuple[int, int, int]) -> VolumeGeometry:
        """The same box of tissue divided into `shape` voxels: outer faces stay where they are."""
        factor = np.asarray(self.shape, dtype=np.float64) / np.asarray(shape, dtype=np.float64)
        affine = self.affine.copy()
        affine[:3, :3] *= factor
        affine[:3, 3] = self.lps_from_index(0.5 * factor - 0.5)
        return VolumeGeometry(affine, shape)


def frame_grid(frames: int, rows: int, columns: int) -> VolumeGeometry:
    """A made-up grid for frames that have no place in the patient: z counts frames, and every step is 1 mm."""
    affine = np.eye(4)
    affine[:3, :3] = np.eye(3)[::-1]
    return VolumeGeometry(affine, (frames, rows, columns))
