"""Source grid to model grid: orient, resample, normalise; and the way back, carried by the result.

Training prepares its volumes with this very module, so that training and deployment cannot differ.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from ucseg_runtime.arrays import Float32Array, Float64Array
from ucseg_runtime.geometry import VolumeGeometry
from ucseg_runtime.manifest import PiecewiseLinear, Preprocessing
from ucseg_runtime.resampling import resample
from ucseg_runtime.tiling import Tile
from ucseg_runtime.volume import Volume

_Voxel = TypeVar("_Voxel", bound=np.generic)


@dataclass(frozen=True)
class Orientation:
    """Flips and permutation that turn an array to the model's axes, without interpolation.

    Attributes:
        axes: Source axis that becomes z, y, x.
        flips: Axes of the permuted array that are reversed.
    """

    axes: tuple[int, int, int]
    flips: tuple[int, ...]

    def apply(self, voxels: npt.NDArray[_Voxel]) -> npt.NDArray[_Voxel]:
        """View of `voxels` with the model's axes; writing to it writes to `voxels`."""
        return np.flip(voxels.transpose(self.axes), self.flips)

    def apply_to_geometry(self, geometry: VolumeGeometry) -> VolumeGeometry:
        """Geometry of the array that `apply` returns."""
        return geometry.permuted(self.axes).flipped(self.flips)

    def undo(self, voxels: npt.NDArray[_Voxel]) -> npt.NDArray[_Voxel]:
        """View of an array with the model's axes, back with the source's axes."""
        first, second, third = (int(axis) for axis in np.argsort(self.axes))
        return np.flip(voxels, self.flips).transpose((first, second, third))


@dataclass(frozen=True, eq=False)
class Prepared:
    """A volume as the network sees it, and how it came to be.

    Attributes:
        voxels: float32, shape (z, y, x), network input units.
        geometry: Model grid.
        oriented: Source grid after orientation, before resampling; same box of tissue as `geometry`.
        orientation: How the source grid was turned.
        padding_value: Network input of the space outside the volume.
    """

    voxels: Float32Array
    geometry: VolumeGeometry
    oriented: VolumeGeometry
    orientation: Orientation
    padding_value: float

    @property
    def spatial_shape(self) -> tuple[int, int, int]:
        """Sides of the model grid along (z, y, x)."""
        return self.geometry.shape

    def read(self, tiles: tuple[Tile, ...]) -> Float32Array:
        """Copy tiles out of the volume; what lies outside is padding.

        Returns:
            float32, C-contiguous, shape (tiles, 1, z, y, x), network input units.
        """
        batch = np.full((len(tiles), 1, *tiles[0].shape), self.padding_value, dtype=np.float32)
        for target, tile in zip(batch[:, 0], tiles, strict=True):
            inside, within = tile.overlap_with(self.spatial_shape)
            target[within] = self.voxels[inside]
        return batch


def orientation_to_lps(direction: Float64Array) -> Orientation:
    """The flips and permutation that bring the axes of a grid nearest to those of the model.

    Args:
        direction: Unit vectors of the index axes z, y, x as columns in LPS, shape (3, 3).

    Returns:
        Orientation after which x grows to the patient's left, y to the back and z to the head, as nearly as can be
        without interpolation. A grid turned by exactly 45° goes to the assignment of larger total alignment that comes
        first; the result is right either way, because the geometry is turned along.
    """
    towards = np.abs(direction[::-1])  # rows now z, y, x of the patient; columns the axes of the array
    candidates = [(0, 1, 2), (0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0)]
    axes = max(candidates, key=lambda order: sum(towards[row, column] for row, column in enumerate(order)))
    flips = tuple(row for row, column in enumerate(axes) if direction[2 - row, column] < 0)
    return Orientation(axes, flips)


def model_grid(oriented: VolumeGeometry, spacing_mm: tuple[float, float, float]) -> VolumeGeometry:
    """The grid that covers the same box with voxels as near to `spacing_mm` as a whole number of them allows."""
    z, y, x = (
        max(1, round(side * have / want))
        for side, have, want in zip(oriented.shape, oriented.spacing_mm, spacing_mm, strict=True)
    )
    return oriented.regridded((z, y, x))


def apply_intensity(voxels: Float32Array, rule: PiecewiseLinear) -> Float32Array:
    """Modality units to network input, float32, same shape."""
    units, values = zip(*rule.knots, strict=True)
    values_at: Float32Array = np.interp(voxels, units, values).astype(np.float32)
    return values_at


def resample_to_model_grid(volume: Volume, spec: Preprocessing) -> tuple[Float32Array, VolumeGeometry, Orientation]:
    """Orient and resample, keeping modality units: float32 voxels, the model grid, and the turn that was made."""
    orientation = orientation_to_lps(volume.geometry.direction)
    grid = model_grid(orientation.apply_to_geometry(volume.geometry), spec.spacing_mm)
    voxels = np.maximum(resample(orientation.apply(volume.voxels), grid.shape), np.float32(spec.padding_value))
    return voxels, grid, orientation


def preprocess(volume: Volume, spec: Preprocessing) -> Prepared:
    """Bring a volume to the model grid and to the network's input range.

    Args:
        volume: Any orientation and spacing; voxels in modality units.
        spec: What the model fixes.

    Returns:
        The volume in the network's units, with what is needed to map results back to the source grid.
    """
    voxels, grid, orientation = resample_to_model_grid(volume, spec)
    padding = apply_intensity(np.full((1,), spec.padding_value, dtype=np.float32), spec.intensity)
    return Prepared(
        voxels=apply_intensity(voxels, spec.intensity),
        geometry=grid,
        oriented=orientation.apply_to_geometry(volume.geometry),
        orientation=orientation,
        padding_value=float(padding[0]),
    )
