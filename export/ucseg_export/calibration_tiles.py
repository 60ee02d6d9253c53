"""Tiles of real volumes on which quantised graphs are calibrated."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ucseg_export.prove_cases import volumes_to_compare_on
from ucseg_runtime.arrays import Float32Array
from ucseg_runtime.manifest import ModelSpec
from ucseg_runtime.preprocess import preprocess
from ucseg_runtime.tiling import plan_tiles
from ucseg_runtime.volume import Volume


def calibration_tiles(cases: Path, spec: ModelSpec, tiles_per_case: int) -> list[list[Float32Array]]:
    """Tiles of every case, as the network gets them.

    Args:
        cases: Folder with DICOM series or prepared cases.
        spec: What the model fixes.
        tiles_per_case: Most tiles of each case, spread evenly over it.

    Returns:
        For each case its tiles, float32, shape (1, channels, *tile in the order of the network), network input units.

    Raises:
        InputError: There are no cases, or one cannot be read.
    """
    return [_tiles_of(volume, spec, tiles_per_case) for volume in volumes_to_compare_on(cases, spec)]


def digest_of(tiles: Sequence[Float32Array]) -> str:
    """SHA-256 of the tiles in their order, 64 hexadecimal digits."""
    digest = hashlib.sha256()
    for tile in tiles:
        digest.update(str(tile.shape).encode("ascii"))
        digest.update(np.ascontiguousarray(tile).tobytes())
    return digest.hexdigest()


def _tiles_of(volume: Volume, spec: ModelSpec, most: int) -> list[Float32Array]:
    prepared = preprocess(volume, spec.preprocessing, channels=spec.channels)
    plan = plan_tiles(prepared.spatial_shape, spec.tiling).tiles
    chosen = np.linspace(0, len(plan) - 1, min(most, len(plan))).round().astype(int)
    tiles = (prepared.read((plan[index],)) for index in chosen)
    if spec.tiling.axis_order == "zyx":
        return list(tiles)
    return [np.ascontiguousarray(tile.transpose(0, 1, 4, 3, 2)) for tile in tiles]
