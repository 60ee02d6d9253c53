"""A second look at the uncertain parts of a volume: extra tiles half-way between those of the plan, where they pay.

The first pass averages overlapping tiles and is least sure at their borders and at the edges of what it finds. Tiles
centred on these borders see more context there. Only those are computed that hold enough uncertain voxels.

Source: adaptation of the regions of high uncertainty of Zhou et al., arXiv:2502.07457; works for any fusion rule, since
what counts as uncertain is relative to the volume.
"""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np

from ucseg_runtime.arrays import BoolArray, Float32Array
from ucseg_runtime.manifest import ModelSpec
from ucseg_runtime.stitching import Stitched, tile_weights
from ucseg_runtime.tiling import Tile, TilePlan

UNCERTAIN_PERCENTILE = 90.0
"""Of the uncertainty of what was found: voxels above it are uncertain."""

LEAST_SHARE = 0.02
"""Of the voxels in the middle half of a tile that must be uncertain for it to be computed."""


def second_look_plan(plan: TilePlan, first: Stitched, spec: ModelSpec) -> TilePlan:
    """Tiles half-way between neighbours of the plan, along every axis at once, that hold enough uncertain voxels.

    Args:
        plan: Of the first pass.
        first: Its result, for the whole model grid.
        spec: Activation of the model.

    Returns:
        In the order of a plan; none where nothing was found, or where the plan has one tile along every axis.
    """
    found = _found(first.probabilities, spec)
    if not found.any():
        return replace(plan, tiles=())
    uncertain = first.uncertainty > np.percentile(first.uncertainty[found], UNCERTAIN_PERCENTILE)
    known = {tile.start for tile in plan.tiles}
    axes = [_between(sorted({start[axis] for start in known})) for axis in range(3)]
    shape = plan.tiling.tile_shape
    candidates = [Tile((z, y, x), shape) for z, y, x in itertools.product(*axes) if (z, y, x) not in known]
    return replace(plan, tiles=tuple(tile for tile in candidates if _share_in_core(tile, uncertain) > LEAST_SHARE))


def averaged(plan: TilePlan, first: Stitched, more: TilePlan, second: Stitched) -> Stitched:
    """Both passes as if all of their tiles had been one, each voxel by the weights of the tiles that cover it.

    Args:
        plan: Of the first pass.
        first: Its result, for the whole model grid.
        more: Tiles of the second pass; at least one.
        second: Their result, for the whole model grid.
    """
    weights, added = _weights(plan), _weights(more)
    share = np.divide(added, weights + added, out=np.zeros_like(added), where=added > 0.0)
    return Stitched(
        first.first,
        first.probabilities + share * (second.probabilities - first.probabilities),
        first.uncertainty + share * (second.uncertainty - first.uncertainty),
    )


def _weights(plan: TilePlan) -> Float32Array:
    """Sum of the tiles' weights, float32, shape (z, y, x) of the model grid; 0 where no tile lies."""
    of_tile = tile_weights(plan.tiling)
    weights = np.zeros(plan.spatial_shape, dtype=np.float32)
    for tile in plan.tiles:
        inside, within = tile.overlap_with(plan.spatial_shape)
        weights[inside] += of_tile[within]
    return weights


def _found(probabilities: Float32Array, spec: ModelSpec) -> BoolArray:
    found: BoolArray = (
        probabilities[0] > 0.5 if spec.activation == "sigmoid" else probabilities.argmax(axis=0).astype(np.bool_)
    )
    return found


def _between(starts: list[int]) -> list[int]:
    """Middles between neighbouring starts; the starts themselves where nothing lies between them."""
    middles = [(one + other) // 2 for one, other in itertools.pairwise(starts) if other - one > 1]
    return middles or starts


def _share_in_core(tile: Tile, uncertain: BoolArray) -> float:
    core = Tile(
        tuple(start + side // 4 for start, side in zip(tile.start, tile.shape, strict=True)),  # type: ignore[arg-type]
        tuple(max(1, side // 2) for side in tile.shape),  # type: ignore[arg-type]  # three, as the tile has
    )
    z, y, x = uncertain.shape
    inside, _ = core.overlap_with((z, y, x))
    part = uncertain[inside]
    return float(part.mean()) if part.size else 0.0
