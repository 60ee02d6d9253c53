"""What a run will take, before it runs: tiles, time and memory."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ucseg_runtime.config import OutputOptions
from ucseg_runtime.geometry import VolumeGeometry
from ucseg_runtime.manifest import ModelSpec
from ucseg_runtime.preprocess import model_grid_of
from ucseg_runtime.tiling import plan_tiles

# Measured with benchmarks/segment.py on 66 and 133 slices of 512 x 512; docs/performance.md has the figures.
_PROCESS_MB = 270.0
_BYTES_PER_VOXEL = 15.0
_FRACTIONAL_BYTES_PER_VOXEL_AND_CLASS = 1.0
_SECONDS_OF_START_AND_WRITING = 1.6
_SECONDS_PER_MEGAVOXEL = 0.06


@dataclass(frozen=True)
class RunPlan:
    """What one volume will take on one engine.

    Attributes:
        source_shape: Voxels along (z, y, x) as acquired.
        model_shape: The same of the model grid.
        tiles: Number of tiles that the network will see, at most: fewer where there is air to skip.
        network_seconds: Time of the network; None where the engine was never timed with this model.
        other_seconds: Time of everything else, writing included.
        peak_memory_mb: Of the whole process.
    """

    source_shape: tuple[int, int, int]
    model_shape: tuple[int, int, int]
    tiles: int
    network_seconds: float | None
    other_seconds: float
    peak_memory_mb: float


def plan_run(
    geometry: VolumeGeometry, spec: ModelSpec, outputs: OutputOptions, seconds_per_tile: float | None
) -> RunPlan:
    """Predict a run.

    Tiles are those of the whole volume, since pixels are not read. Time and memory are estimates from measurements with
    the demo model.

    Args:
        geometry: Source grid.
        spec: What the model fixes.
        outputs: Which objects are written.
        seconds_per_tile: Of the engine with this model; None where it is not known.
    """
    model_shape = model_grid_of(geometry, spec.preprocessing).shape
    tiles = len(plan_tiles(model_shape, spec.tiling).tiles)
    voxels = math.prod(geometry.shape)
    per_voxel = _BYTES_PER_VOXEL
    if outputs.seg_type == "fractional":
        per_voxel += _FRACTIONAL_BYTES_PER_VOXEL_AND_CLASS * len(spec.classes)
    return RunPlan(
        source_shape=geometry.shape,
        model_shape=model_shape,
        tiles=tiles,
        network_seconds=None if seconds_per_tile is None else tiles * seconds_per_tile,
        other_seconds=_SECONDS_OF_START_AND_WRITING + _SECONDS_PER_MEGAVOXEL * voxels / 1e6,
        peak_memory_mb=_PROCESS_MB + per_voxel * voxels / 1e6,
    )
