"""Source grid to model grid: orient, resample, normalise; and the way back, carried by the result.

Training prepares its volumes with this very module, so that training and deployment cannot differ.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from ucseg_runtime.arrays import Float32Array, Float64Array, Slices3
from ucseg_runtime.body import body_box
from ucseg_runtime.geometry import VolumeGeometry
from ucseg_runtime.intensity import apply_intensity as apply_intensity
from ucseg_runtime.intensity import as_network_takes, intensity_map
from ucseg_runtime.manifest import Preprocessing
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


@dataclass(frozen=True, eq=False)
class Prepared:
    """A volume as the network sees it, and how it came to be.

    Attributes:
        voxels: float32, shape (channels, z, y, x), network input units, channels as the network takes them.
        geometry: Model grid.
        oriented: Source grid after orientation, before resampling; same box of tissue as `geometry`.
        orientation: How the source grid was turned.
        padding: Network input of the space outside the volume, float32, shape (channels,).
        region: Box of the model grid that the network has to look at: all of it, or the patient alone.
    """

    voxels: Float32Array
    geometry: VolumeGeometry
    oriented: VolumeGeometry
    orientation: Orientation
    padding: Float32Array
    region: Slices3

    @property
    def spatial_shape(self) -> tuple[int, int, int]:
        """Sides of the model grid along (z, y, x)."""
        return self.geometry.shape

    def read(self, tiles: tuple[Tile, ...]) -> Float32Array:
        """Copy tiles out of the volume; what lies outside is padding.

        Returns:
            float32, C-contiguous, shape (tiles, channels, z, y, x), network input units.
        """
        batch = np.empty((len(tiles), len(self.voxels), *tiles[0].shape), dtype=np.float32)
        batch[...] = self.padding[:, None, None, None]
        for target, tile in zip(batch, tiles, strict=True):
            inside, within = tile.overlap_with(self.spatial_shape)
            target[(slice(None), *within)] = self.voxels[(slice(None), *inside)]
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


def resample_nearest(voxels: npt.NDArray[_Voxel], shape: tuple[int, int, int]) -> npt.NDArray[_Voxel]:
    """The same box of tissue in `shape` voxels, each with the value of the source voxel that holds its centre.

    A centre on the face between two source voxels belongs to the one with the greater index. Same type, new array.
    """
    z, y, x = ((2 * np.arange(want) + 1) * have // (2 * want) for have, want in zip(voxels.shape, shape, strict=True))
    return voxels[np.ix_(z, y, x)]


def resample_to_model_grid(volume: Volume, spec: Preprocessing) -> tuple[Float32Array, VolumeGeometry, Orientation]:
    """Orient and resample one channel, keeping modality units.

    Returns:
        float32 voxels, shape (z, y, x); the model grid; and the turn that was made.
    """
    orientation = _orientation_of(volume.geometry, spec)
    grid = _regridded(orientation.apply_to_geometry(volume.geometry), spec)
    return _on_grid(orientation.apply(volume.voxels), grid.shape, spec), grid, orientation


def preprocess(volume: Volume, spec: Preprocessing, *, channels: int = 1, skip_air: bool = False) -> Prepared:
    """Bring a volume to the model grid and to the network's input range.

    Every channel goes its own way; rules that look at the voxels look at one channel.

    Args:
        volume: Any orientation and spacing; voxels in modality units.
        spec: What the model fixes.
        channels: Of the network; grey images are repeated.
        skip_air: Whether the air and table around the patient need not be looked at; for CT alone, since other
            modalities have no value that means air.

    Returns:
        The volume in the network's units, with what is needed to map results back to the source grid.

    Raises:
        InputError: The image has neither one channel nor those of the network.
    """
    orientation = _orientation_of(volume.geometry, spec)
    oriented = orientation.apply_to_geometry(volume.geometry)
    grid = _regridded(oriented, spec)
    resampled = [_on_grid(orientation.apply(channel), grid.shape, spec) for channel in volume.channels]
    look_for_body = skip_air and volume.modality == "CT"
    region = body_box(resampled[0], grid.spacing_mm) if look_for_body else _all_of(grid.shape)
    padding = np.array([_to_input_range(channel, spec) for channel in resampled], dtype=np.float32)
    # A view of the one channel that most images have: a copy would be a second volume.
    voxels = resampled[0][None] if len(resampled) == 1 else np.stack(resampled)
    return Prepared(
        voxels=as_network_takes(voxels, spec.intensity, channels),
        geometry=grid,
        oriented=oriented,
        orientation=orientation,
        padding=as_network_takes(padding, spec.intensity, channels),
        region=region,
    )


def model_grid_of(geometry: VolumeGeometry, spec: Preprocessing) -> VolumeGeometry:
    """The grid that `preprocess` brings a volume of this geometry to."""
    return _regridded(_orientation_of(geometry, spec).apply_to_geometry(geometry), spec)


def _on_grid(source: npt.NDArray[_Voxel], shape: tuple[int, int, int], spec: Preprocessing) -> Float32Array:
    """One channel, oriented, in `shape` voxels: float32, modality units, not below the padding."""
    if spec.interpolation == "nearest":
        resampled = resample_nearest(source, shape).astype(np.float32)
    else:
        resampled = resample(source, shape)
    return np.maximum(resampled, np.float32(spec.padding_value), out=resampled)


def _to_input_range(voxels: Float32Array, spec: Preprocessing) -> float:
    """Map one channel to the network's input range in place; the network input of the space outside of it."""
    to_input = intensity_map(voxels, spec.intensity)
    padding = to_input(np.full((1,), spec.padding_value, dtype=np.float32))
    for plane in voxels:  # slice by slice: interpolation between knots takes eight bytes a voxel
        plane[...] = to_input(plane)
    return float(padding[0])


def _all_of(shape: tuple[int, int, int]) -> Slices3:
    z, y, x = (slice(0, side) for side in shape)
    return z, y, x


def _orientation_of(geometry: VolumeGeometry, spec: Preprocessing) -> Orientation:
    if spec.orientation == "acquired":
        return Orientation((0, 1, 2), ())
    return orientation_to_lps(geometry.direction)


def _regridded(oriented: VolumeGeometry, spec: Preprocessing) -> VolumeGeometry:
    if spec.plane_shape is not None:
        return oriented.regridded((oriented.shape[0], *spec.plane_shape))
    assert spec.spacing_mm is not None  # noqa: S101  (the manifest has one of the two)
    return model_grid(oriented, spec.spacing_mm)
