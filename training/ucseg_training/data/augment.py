"""Cut a tile out of a case, turned, scaled and with other contrast than the scanner gave it.

Three patients are few: what the network must not rely on (contrast phase, size, position of the patient, kernel) is
varied far beyond what they show.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812  (torch's own convention)
from torch import Tensor

from ucseg_runtime.arrays import Float32Array, Float64Array, UInt8Array
from ucseg_training.data.case import Case

_ALL_KNOWN = 255


@dataclass(frozen=True)
class AugmentSpec:
    """Ranges of the variation. Every magnitude is drawn uniformly.

    Attributes:
        rotation_deg: Largest turn about the (z, y, x) axis of the patient.
        scale: Least and largest magnification.
        anisotropy: Largest relative difference between the magnifications of two axes.
        enhancement_hu: Per label, the least and largest change of HU that imitates a contrast agent.
        shift_hu: Largest change of all voxels.
        gain: Largest relative change of contrast about 0 HU.
        noise_hu: Largest standard deviation of added noise.
        blur_voxels: Largest standard deviation of the smoothing that imitates a soft kernel or thick slices.
        focus: Share of tiles that are centred on a voxel of a labelled class.
        round_field: Share of tiles outside of whose circular field of view there is nothing but air, as scanners fill
            the corners of an image.
    """

    enhancement_hu: dict[int, tuple[float, float]]
    rotation_deg: tuple[float, float, float] = (20.0, 12.0, 12.0)
    scale: tuple[float, float] = (0.75, 1.35)
    anisotropy: float = 0.12
    shift_hu: float = 25.0
    gain: float = 0.12
    noise_hu: float = 45.0
    blur_voxels: float = 0.9
    focus: float = 0.8
    round_field: float = 0.3


@dataclass(frozen=True)
class TrainingTile:
    """One tile ready for the intensity rule.

    Attributes:
        voxels: float32, (1, 1, z, y, x), HU.
        label_map: int64, (1, z, y, x).
        known: int64, (1, z, y, x), bits as in `Case.known`; 0 outside the volume, so that nothing is learnt there.
    """

    voxels: Tensor
    label_map: Tensor
    known: Tensor


def draw_tile(
    case: Case, tile_shape: tuple[int, int, int], spec: AugmentSpec, air_hu: float, rng: np.random.Generator
) -> TrainingTile:
    """A random tile of a case.

    Args:
        case: What to cut from; not changed.
        tile_shape: Voxels along (z, y, x).
        spec: Ranges of the variation.
        air_hu: HU of the space outside the volume, and the least HU of the result.
        rng: Everything random comes from it, so that a step can be repeated.
    """
    theta = _random_affine(case, tile_shape, spec, rng)
    grid = F.affine_grid(theta, [1, 1, *tile_shape], align_corners=False)
    voxels = _as_tensor(case.voxels)
    # Half of the tiles continue the outermost slices instead of ending in air: a thin slab would else teach that a
    # patient is four centimetres tall.
    if rng.random() < 0.5:
        image = F.grid_sample(voxels, grid, padding_mode="border", align_corners=False)
    else:
        image = F.grid_sample(voxels - air_hu, grid, padding_mode="zeros", align_corners=False) + air_hu
    label_map = F.grid_sample(_as_tensor(case.label_map), grid, mode="nearest", align_corners=False)
    known = F.grid_sample(_as_tensor(case.known), grid, mode="nearest", align_corners=False)
    labels = label_map[:, 0].long()
    tile = TrainingTile(_vary_intensity(image, labels, spec, air_hu, rng), labels, known[:, 0].long())
    return _with_round_field(tile, air_hu, rng) if rng.random() < spec.round_field else tile


def _as_tensor(array: Float32Array | UInt8Array) -> Tensor:
    return torch.from_numpy(array.astype(np.float32))[None, None]


def _random_centre(case: Case, spec: AugmentSpec, rng: np.random.Generator) -> Float64Array:
    """Fractional index (z, y, x), shape (3,): near a voxel of a random labelled class, or anywhere."""
    present = [label for label in np.unique(case.label_map) if label > 0]
    if present and rng.random() < spec.focus:
        candidates = np.flatnonzero(case.label_map.ravel() == rng.choice(present))
        centre = np.array(np.unravel_index(rng.choice(candidates), case.label_map.shape), dtype=np.float64)
        return centre + rng.uniform(-16, 16, size=3)
    return rng.uniform(0, np.array(case.voxels.shape))


def _random_affine(case: Case, tile_shape: tuple[int, int, int], spec: AugmentSpec, rng: np.random.Generator) -> Tensor:
    """Matrix for `affine_grid`, (1, 3, 4): normalised (x, y, z) of the tile to normalised (x, y, z) of the case."""
    angles = np.deg2rad(rng.uniform(-1, 1, size=3) * np.array(spec.rotation_deg))
    magnification = rng.uniform(*spec.scale) * (1 + rng.uniform(-1, 1, size=3) * spec.anisotropy)
    linear = _rotation_zyx(angles) @ np.diag(1.0 / magnification)  # tile voxels to case voxels, order (z, y, x)
    case_shape = np.array(case.voxels.shape, dtype=np.float64)
    half_tile, half_case = np.array(tile_shape) / 2.0, case_shape / 2.0
    centre = (_random_centre(case, spec, rng) + 0.5 - half_case) / half_case
    matrix = np.concatenate([linear * half_tile[None, :] / half_case[:, None], centre[:, None]], axis=1)
    xyz = matrix[::-1].copy()
    xyz[:, :3] = xyz[:, [2, 1, 0]]
    return torch.from_numpy(xyz.astype(np.float32))[None]


def _rotation_zyx(angles: Float64Array) -> Float64Array:
    """Rotation by three angles in radians about the z, then y, then x axis, acting on (z, y, x) vectors."""
    result: Float64Array = np.eye(3)
    for axis, angle in enumerate(angles):
        first, second = [other for other in range(3) if other != axis]
        turn = np.eye(3)
        turn[first, first] = turn[second, second] = np.cos(angle)
        turn[first, second], turn[second, first] = -np.sin(angle), np.sin(angle)
        result = turn @ result
    return result


def _vary_intensity(
    image: Tensor, labels: Tensor, spec: AugmentSpec, air_hu: float, rng: np.random.Generator
) -> Tensor:
    image = image + _enhancement(labels, spec, rng)
    image = image * (1 + rng.uniform(-spec.gain, spec.gain)) + rng.uniform(-spec.shift_hu, spec.shift_hu)
    if rng.random() < 0.4:
        image = _blur(image, rng.uniform(0.3, spec.blur_voxels), rng)
    generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
    noise = torch.randn(image.shape, generator=generator) * rng.uniform(0, spec.noise_hu)
    return torch.clamp(image + noise, min=air_hu)


def _enhancement(labels: Tensor, spec: AugmentSpec, rng: np.random.Generator) -> Tensor:
    """HU to add, (1, 1, z, y, x): each class by its own amount, with soft borders."""
    table = torch.zeros(256)
    for label, (least, largest) in spec.enhancement_hu.items():
        table[label] = rng.uniform(least, largest) if rng.random() < 0.7 else 0.0
    return F.avg_pool3d(table[labels][:, None], kernel_size=3, stride=1, padding=1)


def _blur(image: Tensor, sigma: float, rng: np.random.Generator) -> Tensor:
    """Gaussian smoothing along one axis, or along all three."""
    positions = torch.arange(-3, 4, dtype=torch.float32)
    kernel = torch.exp(-0.5 * (positions / sigma) ** 2)
    kernel = kernel / kernel.sum()
    axes = (0, 1, 2) if rng.random() < 0.5 else (int(rng.integers(3)),)
    for axis in axes:
        shape, padding = [1, 1, 1, 1, 1], [0, 0, 0]
        shape[2 + axis], padding[axis] = 7, 3
        image = F.conv3d(F.pad(image, _both_sides(padding), mode="replicate"), kernel.reshape(shape))
    return image


def _with_round_field(tile: TrainingTile, air_hu: float, rng: np.random.Generator) -> TrainingTile:
    """Nothing but air outside a circle in (y, x) that leaves at least the middle of the tile; no class is there."""
    rows, columns = tile.label_map.shape[2:]
    row, column = rng.uniform(0.3, 0.7, size=2) * (rows, columns)
    radius = rng.uniform(0.35, 0.7) * min(rows, columns)
    y, x = np.ogrid[:rows, :columns]
    outside = torch.from_numpy((y - row) ** 2 + (x - column) ** 2 > radius**2)
    return TrainingTile(
        voxels=tile.voxels.masked_fill(outside, air_hu),
        label_map=tile.label_map.masked_fill(outside, 0),
        known=tile.known.masked_fill(outside, _ALL_KNOWN),
    )


def _both_sides(padding: list[int]) -> list[int]:
    """`F.pad` wants the last axis first, before and after."""
    return [value for side in reversed(padding) for value in (side, side)]
