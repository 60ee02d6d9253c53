"""The variation that the published method is trained with. Everything random comes from the generator that is given.

Source: behaviour of taozh2017/UCSeg 7251be6.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal, TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from ucseg_runtime.arrays import Float32Array, UInt8Array
from ucseg_runtime.errors import InputError
from ucseg_training.data.sample import Sample

if TYPE_CHECKING:
    from torch import Tensor

_Voxel = TypeVar("_Voxel", bound=np.generic)
Interpolation: TypeAlias = Literal["bilinear", "nearest"]
_Warp: TypeAlias = "Callable[[Tensor, Interpolation], object]"
_ArrayWarp: TypeAlias = Callable[[Float32Array, Interpolation], Float32Array]

_SPARE_VOXELS = 3


def draw_volume_tile(
    sample: Sample, tile_shape: tuple[int, int, int], rng: np.random.Generator, *, zero_padding: bool = False
) -> Sample:
    """A random tile of a volume, turned and mirrored in its plane; intensities stay as they are.

    The volume is turned by a random multiple of 90 degrees in the plane of y and x, mirrored along y or x, and cut. An
    axis that is not longer than the tile is first continued at both ends by half of what is missing and three voxels.

    Args:
        sample: Shape (channels, z, y, x); not changed.
        tile_shape: Voxels along (z, y, x).
        rng: Everything random comes from it.
        zero_padding: Continue the image with 0 as upstream does, not with what the deployed model sees there.

    Returns:
        New arrays. Beyond the volume the label is 0, and no class is known where that is recorded.

    Raises:
        InputError: The sample is no volume.
    """
    if len(sample.spatial_shape) != 3:
        raise InputError(f"{sample.name!r} has shape {sample.spatial_shape}; expected a volume (z, y, x).")
    turns, mirrored = int(rng.integers(4)), int(rng.integers(1, 3))
    rotated = sample.spatial_shape if turns % 2 == 0 else (sample.spatial_shape[0], *sample.spatial_shape[:0:-1])
    start = tuple(_random_start(side, tile, rng) for side, tile in zip(rotated, tile_shape, strict=True))
    padding = np.zeros_like(sample.padding) if zero_padding else sample.padding

    def cut(array: npt.NDArray[_Voxel], fill: npt.NDArray[_Voxel]) -> npt.NDArray[_Voxel]:
        """Of shape (channels, z, y, x)."""
        turned = np.flip(np.rot90(array, turns, axes=(2, 3)), axis=1 + mirrored)
        tile = np.empty((len(array), *tile_shape), dtype=array.dtype)
        tile[...] = fill.reshape(-1, 1, 1, 1)
        inside, within = _overlap(start, tile_shape, rotated)
        tile[(slice(None), *within)] = turned[(slice(None), *inside)]
        return tile

    nothing = np.zeros(1, dtype=np.uint8)
    return replace(
        sample,
        image=cut(sample.image, padding),
        label_map=None if sample.label_map is None else cut(sample.label_map[None], nothing)[0],
        known=None if sample.known is None else cut(sample.known[None], nothing)[0],
    )


def _random_start(side: int, tile: int, rng: np.random.Generator) -> int:
    """First voxel of the tile; negative where it begins before the volume."""
    reach = (tile - side) // 2 + _SPARE_VOXELS if side <= tile else 0
    return int(rng.integers(-reach, side + reach - tile, endpoint=True))


def _overlap(
    start: tuple[int, ...], tile: tuple[int, ...], shape: tuple[int, ...]
) -> tuple[tuple[slice, ...], tuple[slice, ...]]:
    """The part of a tile inside a volume: as slices of the volume, and as slices of the tile."""
    inside = tuple(
        slice(max(first, 0), min(first + side, limit)) for first, side, limit in zip(start, tile, shape, strict=True)
    )
    within = tuple(slice(part.start - first, part.stop - first) for part, first in zip(inside, start, strict=True))
    return inside, within


@dataclass(frozen=True)
class PlaneVariation:
    """How planes are varied. Every magnitude is drawn uniformly.

    Attributes:
        flip: Probability of each of the two mirrorings.
        affine: Probability of shift, scaling and rotation together.
        shift: Largest shift along each axis, as a share of the side.
        scale: Largest relative change of size.
        rotation_deg: Largest rotation.
        warp: Probability of either grid distortion or elastic deformation, one as often as the other.
        grid_cells: Cells of the distorted grid along each axis.
        grid_limit: Largest relative change of a cell's side.
        elastic_pixels: Factor of the elastic displacement: noise in [−1, 1], smoothed. With upstream's figures it stays
            below a hundredth of a pixel.
        elastic_sigma: Standard deviation of that smoothing, in pixels.
        dropout: Probability of holes.
        holes: Least and greatest number of holes.
        hole_share: Greatest side of a hole, as a share of the plane's side.
    """

    flip: float = 0.5
    affine: float = 0.5
    shift: float = 0.0625
    scale: float = 0.05
    rotation_deg: float = 10.0
    warp: float = 0.25
    grid_cells: int = 5
    grid_limit: float = 0.05
    elastic_pixels: float = 1.0
    elastic_sigma: float = 50.0
    dropout: float = 0.5
    holes: tuple[int, int] = (5, 8)
    hole_share: float = 0.05


def vary_plane(sample: Sample, rng: np.random.Generator, variation: PlaneVariation | None = None) -> Sample:
    """A plane mirrored, moved, bent and with holes, its label alike.

    The image is interpolated linearly, labels are taken from the nearest pixel; what moves in from outside is a mirror
    image. Holes are 0 in image and label.

    Args:
        sample: Shape (channels, y, x); not changed.
        rng: Everything random comes from it.
        variation: Probabilities and magnitudes; upstream's when not given.

    Raises:
        InputError: The sample is no plane.
    """
    if len(sample.spatial_shape) != 2:
        raise InputError(f"{sample.name!r} has shape {sample.spatial_shape}; expected a plane (y, x).")
    spec = variation or PlaneVariation()
    shape = sample.image.shape[1:]
    mirrored = tuple(axis for axis in (2, 1) if rng.random() < spec.flip)
    warps: list[_ArrayWarp] = [lambda array, _: np.flip(array, mirrored).copy()]
    if rng.random() < spec.affine:
        warps.append(_affine(shape, spec, rng))
    if rng.random() < spec.warp:
        warps.append(_grid_distortion(spec, rng) if rng.random() < 0.5 else _elastic(shape, spec, rng))
    varied = replace(
        sample,
        image=_through(sample.image, warps),
        label_map=None if sample.label_map is None else _labels_through(sample.label_map, warps),
        known=None if sample.known is None else _labels_through(sample.known, warps),
    )
    if rng.random() < spec.dropout:
        _make_holes(varied, spec, rng)
    return varied


def _through(array: Float32Array, warps: list[_ArrayWarp], interpolation: Interpolation = "bilinear") -> Float32Array:
    for warp in warps:
        array = warp(array, interpolation)
    return np.ascontiguousarray(array)


def _labels_through(labels: UInt8Array, warps: list[_ArrayWarp]) -> UInt8Array:
    warped = _through(labels[None].astype(np.float32), warps, "nearest")
    return np.asarray(np.rint(warped[0]), dtype=np.uint8)


def _affine(shape: tuple[int, ...], spec: PlaneVariation, rng: np.random.Generator) -> _ArrayWarp:
    from monai.transforms.spatial.array import Affine

    shift = rng.uniform(-spec.shift, spec.shift, size=2) * shape
    transform = Affine(
        rotate_params=float(np.deg2rad(rng.uniform(-spec.rotation_deg, spec.rotation_deg))),
        translate_params=[float(pixels) for pixels in shift],
        scale_params=[float(1.0 + rng.uniform(-spec.scale, spec.scale))] * 2,
        padding_mode="reflection",
        image_only=True,
    )
    return _on_arrays(lambda tensor, mode: transform(tensor, mode=mode))


def _grid_distortion(spec: PlaneVariation, rng: np.random.Generator) -> _ArrayWarp:
    from monai.transforms.spatial.array import GridDistortion

    steps = 1.0 + rng.uniform(-spec.grid_limit, spec.grid_limit, size=(2, spec.grid_cells + 1))
    transform = GridDistortion(spec.grid_cells, steps.tolist(), padding_mode="reflection")
    return _on_arrays(lambda tensor, mode: transform(tensor, mode=mode))


def _elastic(shape: tuple[int, ...], spec: PlaneVariation, rng: np.random.Generator) -> _ArrayWarp:
    import torch
    from monai.transforms.spatial.array import Resample
    from monai.transforms.utils import create_grid

    noise = rng.uniform(-1.0, 1.0, size=(2, *shape))
    moved = np.stack([ndimage.gaussian_filter(part, spec.elastic_sigma, mode="reflect") for part in noise])
    grid = np.asarray(create_grid(shape, dtype=np.float64))  # (3, y, x): centred coordinates in pixels, and ones
    grid[:2] += spec.elastic_pixels * moved
    resample = Resample(padding_mode="reflection", dtype=np.float32)
    return _on_arrays(lambda tensor, mode: resample(tensor, grid=torch.from_numpy(grid), mode=mode))


def _on_arrays(warp: _Warp) -> _ArrayWarp:
    """A warp of tensors (channels, y, x) as one of arrays."""
    import torch

    def on_array(array: Float32Array, interpolation: Interpolation) -> Float32Array:
        return np.asarray(warp(torch.from_numpy(np.ascontiguousarray(array)), interpolation), dtype=np.float32)

    return on_array


def _make_holes(sample: Sample, spec: PlaneVariation, rng: np.random.Generator) -> None:
    """Write the holes into arrays that nobody else holds.

    By hand, since MONAI 1.6's RandCoarseDropout draws the sides of a hole from those of the hole before upwards.
    """
    shape = np.array(sample.spatial_shape)
    greatest = np.maximum(1, (shape * spec.hole_share).astype(int))
    for _ in range(int(rng.integers(*spec.holes, endpoint=True))):
        sides = rng.integers(1, greatest, endpoint=True)
        y, x = (int(first) for first in rng.integers(0, shape - sides, endpoint=True))
        hole = np.s_[y : y + int(sides[0]), x : x + int(sides[1])]
        sample.image[(slice(None), *hole)] = 0.0
        if sample.label_map is not None:
            sample.label_map[hole] = 0
