"""Parallel slices that form no straight, evenly spaced grid, and the way from them to such a grid and back.

A gantry tilt shifts every slice sideways against the last, and some protocols change the step within a series. Networks
need a straight grid; results belong on the slices as they were acquired.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TypeAlias, TypeVar, cast

import numpy as np
import numpy.typing as npt

from ucseg_runtime.arrays import Float32Array, Float64Array, Int16Array, UInt8Array
from ucseg_runtime.geometry import VolumeGeometry

_EVEN_TOLERANCE_MM = 0.1
_ROUNDING = 1e-6

_Voxels = TypeVar("_Voxels", bound=Int16Array | Float32Array | UInt8Array)
_Plane: TypeAlias = npt.NDArray[np.int16] | npt.NDArray[np.uint8] | npt.NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class SliceStack:
    """Where parallel slices of equal size lie in the patient, in any distance and shifted sideways.

    Attributes:
        origins_mm: float64, shape (slices, 3): LPS centre of the first voxel of every slice; ascending along the
            normal, row × column.
        row: Unit vector along a row, float64, shape (3,).
        column: Unit vector along a column, float64, shape (3,).
        pixel_spacing_mm: Distance of rows, then of columns.
        shape: Number of voxels along (z, y, x).
    """

    origins_mm: Float64Array
    row: Float64Array
    column: Float64Array
    pixel_spacing_mm: tuple[float, float]
    shape: tuple[int, int, int]

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """Mean distance of slices, distance of rows, distance of columns."""
        return float(self._distances[-1]) / (self.shape[0] - 1), *self.pixel_spacing_mm

    @property
    def in_words(self) -> str:
        """What keeps the slices from a straight grid."""
        steps = np.diff(self._distances)
        words = []
        sideways_mm = float(np.linalg.norm(self._shifts[-1] * self.pixel_spacing_mm))
        if sideways_mm > _EVEN_TOLERANCE_MM:
            words.append(f"tilted by {np.degrees(np.arctan2(sideways_mm, self._distances[-1])):.1f} degrees")
        if not self._is_even:
            words.append(f"unevenly spaced, {steps.min():.2f} to {steps.max():.2f} mm")
        return " and ".join(words)

    def lps_from_index(self, index: npt.ArrayLike) -> Float64Array:
        """LPS coordinates in mm, shape (..., 3), of (z, y, x) indices, which may be fractional."""
        z, y, x = np.moveaxis(np.asarray(index, dtype=np.float64), -1, 0)
        row_spacing, column_spacing = self.pixel_spacing_mm
        points: Float64Array = (
            self._origins_at(z)
            + np.multiply.outer(y * row_spacing, self.column)
            + np.multiply.outer(x * column_spacing, self.row)
        )
        return points

    def index_from_lps(self, points_mm: npt.ArrayLike) -> Float64Array:
        """Fractional (z, y, x) indices, shape (..., 3), of LPS points in mm; the end steps go on outside the stack."""
        points = np.asarray(points_mm, dtype=np.float64)
        z = _interpolated(
            self._distances, np.arange(self.shape[0], dtype=np.float64), (points - self._first) @ self._normal
        )
        offset = points - self._origins_at(z)
        row_spacing, column_spacing = self.pixel_spacing_mm
        return np.stack([z, offset @ self.column / row_spacing, offset @ self.row / column_spacing], axis=-1)

    @cached_property
    def straight_grid(self) -> VolumeGeometry:
        """The smallest straight grid along rows, columns and normal that holds every voxel.

        Its step is the smallest one of the stack, so that nothing is lost; where steps are even, its planes are the
        slices.
        """
        low, high = np.floor(self._shifts.min(axis=0) + _ROUNDING), np.ceil(self._shifts.max(axis=0) - _ROUNDING)
        planes = self._number_of_planes
        row_spacing, column_spacing = self.pixel_spacing_mm
        affine = np.eye(4)
        affine[:3, 0] = self._normal * (self._distances[-1] / (planes - 1))
        affine[:3, 1] = self.column * row_spacing
        affine[:3, 2] = self.row * column_spacing
        affine[:3, 3] = self._first + affine[:3, 1] * low[0] + affine[:3, 2] * low[1]
        rows, columns = (int(size + last - first) for size, last, first in zip(self.shape[1:], high, low, strict=True))
        return VolumeGeometry(affine, (planes, rows, columns))

    def straightened(self, voxels: _Voxels) -> _Voxels:
        """Voxels of the slices on the straight grid, linear between voxels and slices.

        Args:
            voxels: Shape of the stack.

        Returns:
            Same type, shape of `straight_grid`; the smallest value of `voxels` where no slice was acquired.
        """
        outside = float(voxels.min())
        straight = np.empty(self.straight_grid.shape, dtype=voxels.dtype)
        at = np.interp(np.linspace(0.0, self._distances[-1], len(straight)), self._distances, np.arange(self.shape[0]))
        for plane, z in zip(straight, at, strict=True):
            below, share = _below(z, self.shape[0])
            mixed = self._moved(voxels[below], below, outside)
            if share:
                mixed += share * (self._moved(voxels[below + 1], below + 1, outside) - mixed)
            plane[...] = mixed if plane.dtype == np.float32 else np.rint(mixed)
        return cast(_Voxels, straight)

    def nearest_on_slices(self, straight: UInt8Array) -> UInt8Array:
        """For every voxel of the stack the value of the nearest one of the straight grid, at most half a voxel away.

        Args:
            straight: Shape of `straight_grid`.

        Returns:
            Shape of the stack.
        """
        slices = np.empty(self.shape, dtype=straight.dtype)
        for plane, z, shift in zip(slices, self._planes, self._offsets, strict=True):
            y, x = (int(value) for value in np.rint(shift))
            plane[...] = straight[int(np.rint(z)), y : y + self.shape[1], x : x + self.shape[2]]
        return slices

    def linear_on_slices(self, straight: _Voxels) -> _Voxels:
        """The same, linear between the voxels of the straight grid."""
        slices = np.empty(self.shape, dtype=straight.dtype)
        for plane, z, shift in zip(slices, self._planes, self._offsets, strict=True):
            below, share = _below(z, len(straight))
            values = straight[below].astype(np.float32)
            if share:
                values += share * (straight[below + 1] - values)
            moved = _shifted(values, shift, (self.shape[1], self.shape[2]))
            plane[...] = moved if plane.dtype == np.float32 else np.rint(moved)
        return cast(_Voxels, slices)

    @cached_property
    def _normal(self) -> Float64Array:
        normal: Float64Array = np.cross(self.row, self.column)
        return normal / np.linalg.norm(normal)

    @property
    def _first(self) -> Float64Array:
        first: Float64Array = self.origins_mm[0]
        return first

    @cached_property
    def _distances(self) -> Float64Array:
        """Of every slice to the first, along the normal, in mm."""
        distances: Float64Array = (self.origins_mm - self._first) @ self._normal
        return distances

    @cached_property
    def _shifts(self) -> Float64Array:
        """Of every slice against the first within its plane, in voxels along (y, x), shape (slices, 2)."""
        offset = self.origins_mm - self._first
        row_spacing, column_spacing = self.pixel_spacing_mm
        return np.stack([offset @ self.column / row_spacing, offset @ self.row / column_spacing], axis=1)

    @cached_property
    def _offsets(self) -> Float64Array:
        """First voxel of every slice within the planes of the straight grid, (y, x), shape (slices, 2), not below 0."""
        offsets: Float64Array = np.maximum(self._shifts - np.floor(self._shifts.min(axis=0) + _ROUNDING), 0.0)
        return offsets

    @cached_property
    def _planes(self) -> Float64Array:
        """Place of every slice along the z axis of the straight grid."""
        planes: Float64Array = self._distances * ((self._number_of_planes - 1) / self._distances[-1])
        return planes

    @cached_property
    def _number_of_planes(self) -> int:
        steps = np.diff(self._distances)
        if self._is_even:
            return self.shape[0]
        return int(np.ceil(self._distances[-1] / steps.min() - _EVEN_TOLERANCE_MM)) + 1

    @property
    def _is_even(self) -> bool:
        even = np.linspace(0.0, self._distances[-1], self.shape[0])
        return bool(np.abs(self._distances - even).max() <= _EVEN_TOLERANCE_MM)

    def _origins_at(self, z: Float64Array) -> Float64Array:
        numbers = np.arange(self.shape[0], dtype=np.float64)
        return np.stack([_interpolated(numbers, self.origins_mm[:, axis], z) for axis in range(3)], axis=-1)

    def _moved(self, plane: _Plane, z: int, outside: float) -> Float32Array:
        """A slice on a plane of the straight grid, float32."""
        _, rows, columns = self.straight_grid.shape
        y, x = self._offsets[z]
        padded = np.full((rows + 2, columns + 2), outside, dtype=np.float32)
        top, left = int(np.floor(y)), int(np.floor(x))
        # The rim is repeated, so that edges of the field of view are not mixed with what is outside.
        padded[top : top + plane.shape[0] + 2, left : left + plane.shape[1] + 2] = np.pad(plane, 1, mode="edge")
        return _shifted(padded, np.array([1.0 - (y - top), 1.0 - (x - left)]), (rows, columns))


AcquiredGrid: TypeAlias = VolumeGeometry | SliceStack
"""How slices lie: as a straight, evenly spaced grid, or not."""


def straight_grid(grid: AcquiredGrid) -> VolumeGeometry:
    """The grid that networks see: the acquired one where that is straight."""
    return grid.straight_grid if isinstance(grid, SliceStack) else grid


def _below(z: float, count: int) -> tuple[int, np.float32]:
    """The lower neighbour of a place between slices, and the share of the upper one."""
    below = min(int(z + _ROUNDING), count - 1)
    share = z - below
    return below, np.float32(share if share > _ROUNDING else 0.0)


def _shifted(plane: Float32Array, offset: Float64Array, shape: tuple[int, int]) -> Float32Array:
    """The part of a plane that begins at a fractional `offset` of at least 0, linear between its voxels."""
    top, left = (int(value) for value in np.floor(offset + _ROUNDING))
    share_y, share_x = (np.float32(value) for value in offset - (top, left))
    rows, columns = shape
    lines = plane[top : top + rows]
    if share_y > _ROUNDING:
        lines = lines + share_y * (plane[top + 1 : top + 1 + rows] - lines)
    moved = lines[:, left : left + columns]
    if share_x > _ROUNDING:
        moved = moved + share_x * (lines[:, left + 1 : left + 1 + columns] - moved)
    return moved


def _interpolated(known: Float64Array, values: Float64Array, at: Float64Array) -> Float64Array:
    """Linear between known places, ascending; beyond the ends the last step goes on."""
    below = np.clip(np.searchsorted(known, at, side="right") - 1, 0, len(known) - 2)
    share = (at - known[below]) / (known[below + 1] - known[below])
    between: Float64Array = values[below] + share * (values[below + 1] - values[below])
    return between
