"""Separable resampling between two grids that cover the same box of tissue.

Each axis is one small matrix: linear interpolation where the grid gets finer, a triangle filter as wide as the coarser
voxel where it gets coarser, so that shrinking averages instead of skipping. A whole volume is then three matrix
products, and any box of the result can be computed by itself.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ucseg_runtime.arrays import BoolArray, Float32Array, Slices3

_BAND_ROWS = 16
"""Rows that share one product. Fewer make more calls, more read more samples that most of them do not need."""


def axis_weights(source: int, target: int) -> Float32Array:
    """Weights that turn `source` samples into `target` samples over the same interval.

    Args:
        source: Number of samples given.
        target: Number of samples wanted.

    Returns:
        float32, shape (target, source), in [0, 1]; every row sums to 1, at the ends too. The identity for equal counts.
    """
    factor = source / target
    centres = (np.arange(target) + 0.5) * factor - 0.5
    distance = np.abs(centres[:, None] - np.arange(source)[None, :])
    if factor <= 1.0:
        # Beyond the outermost centres there is nothing to interpolate with: the edge value is held.
        distance = np.abs(np.clip(centres, 0, source - 1)[:, None] - np.arange(source)[None, :])
    weights = np.maximum(0.0, 1.0 - distance / max(factor, 1.0))
    normalised: Float32Array = (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)
    return normalised


@dataclass(frozen=True, eq=False)
class Resampler:
    """The way from one grid to another, ready for any number of volumes and boxes.

    Attributes:
        weights: One matrix per axis z, y, x: float32, shape (target, source), as from `axis_weights`.
    """

    weights: tuple[Float32Array, Float32Array, Float32Array]

    @property
    def shape(self) -> tuple[int, int, int]:
        """Sides of the whole result along (z, y, x)."""
        z, y, x = (len(weights) for weights in self.weights)
        return z, y, x

    def of_slices(self, slices: slice) -> tuple[Resampler, slice]:
        """The way to some slices of the result, and the z indices of the source that it reads.

        Returns:
            A resampler from those slices of the source to `slices` of the result, which computes the very same numbers.
        """
        rows = self.weights[0][slices]
        used = _support(rows)
        return Resampler((rows[:, used], self.weights[1], self.weights[2])), used

    def box(self, voxels: npt.NDArray[np.generic], box: Slices3) -> Float32Array:
        """Resample the part of the result that lies in a box.

        Args:
            voxels: Any real type, the whole source volume, shape (z, y, x).
            box: Which indices of the result to compute.

        Returns:
            float32, shape of the box, in the units given.
        """
        rows_z, rows_y, rows_x = (weights[part] for weights, part in zip(self.weights, box, strict=True))
        used_z, used_y, used_x = _support(rows_z), _support(rows_y), _support(rows_x)
        voxels = voxels[used_z, used_y, used_x]
        rows_z, rows_y, rows_x = rows_z[:, used_z], rows_y[:, used_y], rows_x[:, used_x]
        # The axes that shrink go first, so that the later ones have less to do.
        if len(rows_y) * len(rows_x) > voxels[0].size:
            return _in_plane(_along_z(voxels.astype(np.float32), rows_z), rows_y, rows_x)
        return _along_z(_in_plane(voxels, rows_y, rows_x), rows_z)

    def reach(self, marked: BoolArray, slices: slice) -> Slices3 | None:
        """The box of the result, within some of its slices, that holds every voxel depending on a marked one.

        Args:
            marked: bool, the whole source volume, shape (z, y, x).
            slices: Which z indices of the result to look at.

        Returns:
            The smallest such box with all of `slices`; None where nothing depends on a marked voxel.
        """
        plane: BoolArray = np.any(marked[_support(self.weights[0][slices])], axis=0)
        if not plane.any():
            return None
        marked_y, marked_x = np.any(plane, axis=1), np.any(plane, axis=0)
        return slices, _touched(self.weights[1], marked_y), _touched(self.weights[2], marked_x)


def resampler_between(source: tuple[int, int, int], target: tuple[int, int, int]) -> Resampler:
    """The way from a grid of `source` voxels to one of `target` voxels, both along (z, y, x), over the same box."""
    z, y, x = (axis_weights(have, want) for have, want in zip(source, target, strict=True))
    return Resampler((z, y, x))


def resample(voxels: npt.NDArray[np.generic], shape: tuple[int, int, int]) -> Float32Array:
    """Resample a volume.

    Args:
        voxels: Any real type, shape (z, y, x).
        shape: Sides of the result along (z, y, x).

    Returns:
        float32, of that shape, in the units given.
    """
    z, y, x = voxels.shape
    return resampler_between((z, y, x), shape).box(voxels, (slice(None), slice(None), slice(None)))


def _extent(flags: BoolArray) -> slice:
    used = np.flatnonzero(flags)
    return slice(int(used[0]), int(used[-1]) + 1)


def _support(rows: Float32Array) -> slice:
    """The source samples that these rows of a weight matrix read."""
    return _extent(np.any(rows > 0, axis=0))


def _touched(weights: Float32Array, marked: BoolArray) -> slice:
    """The rows of a weight matrix that read a marked source sample."""
    return _extent(np.any(weights[:, marked] > 0, axis=1))


def _in_plane(voxels: npt.NDArray[np.generic], weights_y: Float32Array, weights_x: Float32Array) -> Float32Array:
    bands_y, bands_x = _bands(weights_y), _bands(weights_x)
    result = np.empty((len(voxels), len(weights_y), len(weights_x)), dtype=np.float32)
    rows = np.empty((len(weights_y), voxels.shape[2]), dtype=np.float32)
    for voxel_plane, target in zip(voxels, result, strict=True):
        plane = voxel_plane.astype(np.float32)
        for band in bands_y:
            np.matmul(band.weights, plane[band.reads], out=rows[band.writes])
        for band in bands_x:
            np.matmul(rows[:, band.reads], band.weights.T, out=target[:, band.writes])
    return result


@dataclass(frozen=True, eq=False)
class _Band:
    """Some rows of a weight matrix without the columns that they do not read."""

    writes: slice
    reads: slice
    weights: Float32Array


def _bands(weights: Float32Array) -> list[_Band]:
    """A weight matrix cut up, since a row reads few samples, and those of its neighbours: most of the matrix is 0."""
    bands = []
    for first in range(0, len(weights), _BAND_ROWS):
        rows = weights[first : first + _BAND_ROWS]
        reads = _support(rows)
        bands.append(_Band(slice(first, first + len(rows)), reads, np.ascontiguousarray(rows[:, reads])))
    return bands


def _along_z(voxels: Float32Array, weights_z: Float32Array) -> Float32Array:
    flat = voxels.reshape(len(voxels), -1)
    return (weights_z @ flat).reshape(len(weights_z), *voxels.shape[1:])
