"""Volumes that something is wrong with, from mild to gross, and clean copies that nothing is wrong with."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType

import numpy as np

from ucseg_runtime.volume import Volume

_AIR_HU = -1000.0
_SEED = 5

Change = Callable[[Volume, float], Volume]
"""A volume and how much of the change; made deterministically."""


def with_noise(volume: Volume, deviation_hu: float) -> Volume:
    """Independent Gaussian noise in every voxel."""
    noise = np.random.default_rng(_SEED).standard_normal(volume.voxels.shape, dtype=np.float32)
    return _with_voxels(volume, volume.voxels + np.float32(deviation_hu) * noise)


def with_offset(volume: Volume, offset_hu: float) -> Volume:
    """The intercept is wrong by so much; 1024: it was not added at all."""
    return _with_voxels(volume, volume.voxels + np.float32(offset_hu))


def windowed(volume: Volume, width_hu: float) -> Volume:
    """What is left after a window of this width around 40 HU was burnt in, at 8 bits a grey value."""
    low = 40.0 - width_hu / 2.0
    grey = np.clip((volume.voxels - low) / width_hu, 0.0, 1.0)
    return _with_voxels(volume, np.rint(grey * 255.0))


def flipped(volume: Volume, axis: float) -> Volume:
    """The images run the other way along an axis (z, y, x) of the array, and the geometry does not say so."""
    return _with_voxels(volume, np.flip(volume.voxels, int(axis)))


def truncated(volume: Volume, share: float) -> Volume:
    """The middle of the volume alone along every axis, as if the field of view were too small for the patient."""
    cuts = []
    for side in volume.geometry.shape:
        kept = max(4, round(share * side))
        cuts.append(slice((side - kept) // 2, (side - kept) // 2 + kept))
    return _cut(volume, (cuts[0], cuts[1], cuts[2]))


def inverted(volume: Volume, share: float) -> Volume:
    """Intensities on the way to those of another modality: bone dark, fat bright, all values from 0 to 600."""
    clipped = np.clip(volume.voxels, -200.0, 400.0)
    other = np.where(volume.voxels < -200.0, 0.0, 400.0 - clipped)
    return _with_voxels(volume, (1.0 - share) * np.maximum(volume.voxels, _AIR_HU) + share * other)


def shifted(volume: Volume, millimetres: float) -> Volume:
    """So much cut off at the beginning of every axis: the tiles lie elsewhere in the patient."""
    first = [min(round(millimetres / spacing), side // 8) for spacing, side in _sides(volume)]
    return _cut(volume, (slice(first[0], None), slice(first[1], None), slice(first[2], None)))


CORRUPTIONS: Mapping[str, tuple[Change, tuple[float, ...]]] = MappingProxyType(
    {
        "noise, HU": (with_noise, (100.0, 300.0, 900.0)),
        "intercept off by, HU": (with_offset, (300.0, 1024.0)),
        "burnt-in window, HU": (windowed, (1500.0, 400.0)),
        "turned along axis": (flipped, (0.0, 1.0, 2.0)),
        "field of view, share": (truncated, (0.5, 0.25)),
        "other modality, share": (inverted, (0.5, 1.0)),
    }
)
"""By name, each with how much of it, from mild to gross."""

CLEAN_COPIES: Mapping[str, tuple[Change, tuple[float, ...]]] = MappingProxyType(
    {"mild noise, HU": (with_noise, (5.0, 10.0, 20.0)), "shifted tiling, mm": (shifted, (7.0, 13.0, 22.0))}
)
"""Copies with which nothing is wrong."""


def copies(
    volume: Volume, changes: Mapping[str, tuple[Change, tuple[float, ...]]]
) -> Iterator[tuple[str, float, Volume]]:
    """Name, amount and volume of each change."""
    for name, (change, amounts) in changes.items():
        for amount in amounts:
            yield name, amount, change(volume, amount)


def _sides(volume: Volume) -> Iterator[tuple[float, int]]:
    return zip(volume.geometry.spacing_mm, volume.geometry.shape, strict=True)


def _with_voxels(volume: Volume, voxels: np.ndarray) -> Volume:
    return Volume(np.ascontiguousarray(voxels, dtype=np.float32), volume.geometry, volume.modality)


def _cut(volume: Volume, cut: tuple[slice, slice, slice]) -> Volume:
    geometry = volume.geometry
    affine = geometry.affine.copy()
    affine[:3, 3] = geometry.lps_from_index([part.start or 0 for part in cut])
    voxels = np.ascontiguousarray(volume.voxels[cut])
    return Volume(voxels, type(geometry)(affine, voxels.shape), volume.modality)
