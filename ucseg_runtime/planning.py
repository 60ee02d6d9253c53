"""What a run will take, before it runs: tiles, time and memory; and the plan that fits a memory budget."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ucseg_runtime.backends.load import EngineLoad
from ucseg_runtime.config import OutputOptions
from ucseg_runtime.errors import MemoryBudgetError
from ucseg_runtime.geometry import VolumeGeometry
from ucseg_runtime.manifest import ModelSpec
from ucseg_runtime.preprocess import model_grid_of
from ucseg_runtime.tiling import plan_tiles

# Fitted to benchmarks/memory.py on 60, 100 and 300 slices of 512 x 512; docs/memory.md says what takes what.
_PROCESS_MB = 73.0
_BYTES_PER_VOXEL = 2 + 1 + 4 + 2  # volume, label map, uncertainty; clean-up and what the allocator keeps
_FLOAT_BYTES = 4
_SECONDS_OF_START_AND_WRITING = 1.6
_SECONDS_PER_MEGAVOXEL = 0.06


@dataclass(frozen=True)
class RunPlan:
    """What one volume will take on one engine.

    Attributes:
        source_shape: Voxels along (z, y, x) as acquired.
        model_shape: The same of the model grid.
        tiles: Number of tiles that the network will see, at most: fewer where there is air to skip.
        parallel_tiles: Tiles that are computed at the same time.
        network_seconds: Time of the network; None where the engine was never timed with this model.
        other_seconds: Time of everything else, writing included.
        peak_memory_mb: Of the whole process.
    """

    source_shape: tuple[int, int, int]
    model_shape: tuple[int, int, int]
    tiles: int
    parallel_tiles: int
    network_seconds: float | None
    other_seconds: float
    peak_memory_mb: float


def plan_run(
    geometry: VolumeGeometry,
    spec: ModelSpec,
    outputs: OutputOptions,
    load: EngineLoad,
    max_memory_mb: int = 0,
    slices_at_a_time: int = 0,
) -> RunPlan:
    """Predict a run, with as many tiles at the same time as fit the memory budget.

    Tiles are those of the whole volume, since pixels are not read; time and memory are estimates from measurements. The
    plan never changes the result.

    Args:
        geometry: Source grid.
        spec: What the model fixes.
        outputs: Which objects are written.
        load: What the engine takes.
        max_memory_mb: Most memory of the process in MB; 0 means no limit.
        slices_at_a_time: Slices that are in memory at the same time, of a clip of frames; 0 means all.

    Raises:
        MemoryBudgetError: Even one tile at a time needs more.
    """
    model_shape = model_grid_of(geometry, spec.preprocessing).shape
    tiles = len(plan_tiles(model_shape, spec.tiling).tiles)
    held = geometry
    if slices_at_a_time:
        held = VolumeGeometry(geometry.affine, (slices_at_a_time, *geometry.shape[1:]))
    memory = {count: _peak_memory_mb(held, spec, outputs, load, count) for count in range(1, load.parallel_tiles + 1)}
    fitting = [count for count, needed_mb in memory.items() if needed_mb <= max_memory_mb or not max_memory_mb]
    if not fitting:
        raise MemoryBudgetError(
            f"segmenting {' x '.join(map(str, geometry.shape))} voxels needs about {math.ceil(memory[1])} MB, "
            f"one tile at a time; --max-memory allows {max_memory_mb} MB.",
            hint="Allow more, or give a series of fewer slices.",
        )
    return RunPlan(
        source_shape=geometry.shape,
        model_shape=model_shape,
        tiles=tiles,
        parallel_tiles=fitting[-1],
        network_seconds=None if load.seconds_per_tile is None else tiles * load.seconds_per_tile,
        other_seconds=_SECONDS_OF_START_AND_WRITING + _SECONDS_PER_MEGAVOXEL * math.prod(geometry.shape) / 1e6,
        peak_memory_mb=memory[fitting[-1]],
    )


def _peak_memory_mb(
    geometry: VolumeGeometry, spec: ModelSpec, outputs: OutputOptions, load: EngineLoad, parallel_tiles: int
) -> float:
    """What is there while labels are cleaned up: the engine, all results, and the arrays of the last tiles."""
    channels = spec.probability_channels
    z, y, x = model_grid_of(geometry, spec.preprocessing).shape
    per_voxel = _BYTES_PER_VOXEL + (len(spec.classes) if outputs.seg_type == "fractional" else 0)
    canvas = (channels + 2) * min(z, spec.tiling.tile_shape[0]) * y * x  # with the uncertainty and the weights
    batches = (
        2 * parallel_tiles * (spec.channels + channels) * math.prod(spec.tiling.tile_shape)
    )  # as the engine and we have them
    arrays = per_voxel * math.prod(geometry.shape) + _FLOAT_BYTES * (spec.channels * z * y * x + canvas + batches)
    return _PROCESS_MB + load.opened_mb + parallel_tiles * load.tile_mb + arrays / 1e6
