"""The way back as it is defined: all tiles on a canvas of the whole model grid, then every step on the whole volume.

Slow in memory, kept for the tests: what hands on slabs must give the very same bits.
"""

from __future__ import annotations

import numpy as np

from tests.fake_backend import FAKE_ENGINE
from ucseg_runtime.arrays import Float32Array, UInt8Array
from ucseg_runtime.backends.base import Backend, TileOutput
from ucseg_runtime.manifest import ModelSpec
from ucseg_runtime.postprocess import remove_small_components
from ucseg_runtime.preprocess import Prepared, preprocess
from ucseg_runtime.resampling import Resampler, resampler_between
from ucseg_runtime.segmentation import Segmentation
from ucseg_runtime.stitching import Stitched, tile_weights
from ucseg_runtime.tiling import TilePlan, plan_tiles
from ucseg_runtime.volume import Volume

SLAB_SLICES = 8


def segment_at_once(volume: Volume, spec: ModelSpec, backend: Backend) -> Segmentation:
    """What `segment_volume` must return, with probabilities."""
    prepared = preprocess(volume, spec.preprocessing)
    plan = plan_tiles(prepared.spatial_shape, spec.tiling)
    return restored_at_once(stitched_at_once(plan, backend.infer(prepared.read(plan.tiles))), prepared, volume, spec)


def stitched_at_once(plan: TilePlan, output: TileOutput) -> Stitched:
    """The averages of all tiles."""
    channels = output.probabilities.shape[1]
    sums = np.zeros((channels + 1, *plan.spatial_shape), dtype=np.float32)
    sum_of_weights = np.zeros(plan.spatial_shape, dtype=np.float32)
    for tile, probabilities, uncertainty in zip(plan.tiles, output.probabilities, output.uncertainty, strict=True):
        inside, within = tile.overlap_with(plan.spatial_shape)
        weights = tile_weights(plan.tiling)[within]
        sums[(slice(-1), *inside)] += probabilities[(slice(None), *within)] * weights
        sums[(-1, *inside)] += uncertainty[(0, *within)] * weights
        sum_of_weights[inside] += weights
    return Stitched(0, sums[:-1] / sum_of_weights, sums[-1] / sum_of_weights)


def restored_at_once(stitched: Stitched, prepared: Prepared, volume: Volume, spec: ModelSpec) -> Segmentation:
    """Labels, uncertainty and probabilities on the source grid."""
    geometry = volume.geometry
    resampler = resampler_between(prepared.spatial_shape, prepared.oriented.shape)
    turn = prepared.orientation.apply
    label_map = np.zeros(geometry.shape, dtype=np.uint8)
    uncertainty = np.empty(geometry.shape, dtype=np.float32)
    foreground = stitched.probabilities if spec.activation == "sigmoid" else stitched.probabilities[1:]
    probabilities = np.empty((len(foreground), *geometry.shape), dtype=np.uint8)
    _fill_labels(turn(label_map), _scores(stitched, spec), resampler)
    _fill(turn(uncertainty), stitched.uncertainty, resampler)
    for target, values in zip(probabilities, foreground, strict=True):
        resampled = np.empty(prepared.oriented.shape, dtype=np.float32)
        _fill(resampled, values, resampler)
        turn(target)[...] = np.rint(resampled * np.float32(255.0))
    remove_small_components(label_map, spec.postprocessing, geometry.voxel_volume_ml)

    return Segmentation(label_map, uncertainty, probabilities, geometry, spec.classes, FAKE_ENGINE)


def _scores(stitched: Stitched, spec: ModelSpec) -> Float32Array:
    if spec.activation == "softmax":
        return stitched.probabilities
    return np.concatenate([np.full_like(stitched.probabilities, 0.5), stitched.probabilities])


def _fill_labels(target: UInt8Array, scores: Float32Array, resampler: Resampler) -> None:
    beats_background = [score > scores[0] for score in scores[1:]]
    somewhere = np.logical_or.reduce(beats_background)
    for first in range(0, len(target), SLAB_SLICES):
        slab = slice(first, min(first + SLAB_SLICES, len(target)))
        box = resampler.reach(somewhere, slab)
        if box is None:
            continue
        best = resampler.box(scores[0], box)
        labels = np.zeros(best.shape, dtype=np.uint8)
        for label, candidate in enumerate(beats_background, start=1):
            if resampler.reach(candidate, slab) is None:
                continue
            score = resampler.box(scores[label], box)
            np.copyto(labels, np.uint8(label), where=score > best)
            np.maximum(best, score, out=best)
        target[box] = labels


def _fill(target: Float32Array, values: Float32Array, resampler: Resampler) -> None:
    for first in range(0, len(target), SLAB_SLICES):
        slab = slice(first, min(first + SLAB_SLICES, len(target)))
        target[slab] = np.clip(resampler.box(values, (slab, slice(None), slice(None))), 0.0, 1.0)
