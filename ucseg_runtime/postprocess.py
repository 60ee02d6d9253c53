"""From averages on the model grid to labels on the source grid: resample, decide, turn back, clean up."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from ucseg_runtime.arrays import Float32Array, UInt8Array
from ucseg_runtime.components import erase, find_components
from ucseg_runtime.geometry import VolumeGeometry
from ucseg_runtime.manifest import ModelSpec, Postprocessing
from ucseg_runtime.preprocess import Prepared
from ucseg_runtime.resampling import Resampler, resampler_between
from ucseg_runtime.segmentation import EngineInfo, Segmentation
from ucseg_runtime.stitching import Stitched

_SLAB_SLICES = 8
"""Slices of the source grid that are in work at a time: 8 of 512 x 512 in float32 are 8 MB, which caches still hold."""


def restore(
    stitched: Stitched,
    prepared: Prepared,
    geometry: VolumeGeometry,
    spec: ModelSpec,
    engine: EngineInfo,
    *,
    keep_probabilities: bool = False,
) -> Segmentation:
    """Bring results back to the grid that the volume was acquired on.

    Args:
        stitched: Averages on the model grid.
        prepared: The volume that they belong to; remembers the way back.
        geometry: Source grid.
        spec: Classes, activation and clean-up.
        engine: What computed the results.
        keep_probabilities: Whether the probabilities of every foreground class are returned too.

    Returns:
        Labels by the greatest interpolated probability (background wins ties), then cleaned up; the uncertainty.
    """
    resampler = resampler_between(prepared.spatial_shape, prepared.oriented.shape)
    label_map = np.zeros(geometry.shape, dtype=np.uint8)
    uncertainty = np.empty(geometry.shape, dtype=np.float32)
    # The results are filled through views with the model's axes: turning back costs nothing.
    _fill_labels(prepared.orientation.apply(label_map), _scores(stitched, spec), resampler)
    _fill_uncertainty(prepared.orientation.apply(uncertainty), stitched.uncertainty, resampler)
    remove_small_components(label_map, spec.postprocessing, geometry.voxel_volume_ml)
    return Segmentation(
        label_map=label_map,
        uncertainty=uncertainty,
        probabilities=_probabilities(stitched, prepared, geometry, resampler) if keep_probabilities else None,
        geometry=geometry,
        classes=spec.classes,
        engine=engine,
    )


def remove_small_components(label_map: UInt8Array, spec: Postprocessing, voxel_volume_ml: float) -> None:
    """Turn components that the model's clean-up rejects into background, in place.

    Components are 26-connected. Of equally large ones the first in index order counts as the largest.

    Args:
        label_map: uint8, C-contiguous, shape (z, y, x); 0 is background.
        spec: Labels that keep their largest component alone, and least volumes in ml.
        voxel_volume_ml: Volume of one voxel in ml.
    """
    if not (spec.largest_component or spec.smallest_component_ml):
        return
    components = find_components(label_map)
    least_ml = np.zeros(256)
    least_ml[list(spec.smallest_component_ml)] = list(spec.smallest_component_ml.values())
    rejected = components.voxels < least_ml[components.labels] / voxel_volume_ml
    for label in spec.largest_component:
        of_label = np.flatnonzero(components.labels == label)
        if len(of_label):
            rejected[of_label[of_label != of_label[components.voxels[of_label].argmax()]]] = True
    erase(label_map, components, rejected)


def _scores(stitched: Stitched, spec: ModelSpec) -> Float32Array:
    """What competes for a voxel, background first, float32, shape (classes + 1, z, y, x)."""
    if spec.activation == "softmax":
        return stitched.probabilities
    # Foreground is where its probability exceeds one half.
    return np.concatenate([np.full_like(stitched.probabilities, 0.5), stitched.probabilities])


def _slabs(slices: int) -> Iterator[slice]:
    return (slice(first, min(first + _SLAB_SLICES, slices)) for first in range(0, slices, _SLAB_SLICES))


def _fill_labels(target: UInt8Array, scores: Float32Array, resampler: Resampler) -> None:
    """Give every voxel the label of the greatest resampled score; the lowest label wins ties.

    Args:
        target: uint8, zeros, shape (z, y, x) of the resampler's result; written to.
        scores: float32, shape (labels, z, y, x), model grid.
        resampler: From the model grid to the grid of `target`.
    """
    # Resampling averages: a label can beat background only near voxels of the model grid where it already does.
    beats_background = [score > scores[0] for score in scores[1:]]
    somewhere = np.logical_or.reduce(beats_background)
    for slab in _slabs(len(target)):
        box = resampler.reach(somewhere, slab)
        if box is None:
            continue
        best = resampler.box(scores[0], box)
        labels = np.zeros(best.shape, dtype=np.uint8)
        for label, candidate in enumerate(beats_background, start=1):
            if resampler.reach(candidate, slab) is None:
                continue
            score = resampler.box(scores[label], box)
            # A running maximum: an argmax over the class axis would read memory with a stride and be ten times slower.
            np.copyto(labels, np.uint8(label), where=score > best)
            np.maximum(best, score, out=best)
        target[box] = labels


def _fill_uncertainty(target: Float32Array, uncertainty: Float32Array, resampler: Resampler) -> None:
    for slab in _slabs(len(target)):
        target[slab] = _whole_slab(uncertainty, resampler, slab)


def _probabilities(
    stitched: Stitched, prepared: Prepared, geometry: VolumeGeometry, resampler: Resampler
) -> UInt8Array:
    """Probability x 255 of the foreground classes, uint8, shape (foreground classes, z, y, x), source grid."""
    foreground = stitched.probabilities[1:] if len(stitched.probabilities) > 1 else stitched.probabilities
    result = np.empty((len(foreground), *geometry.shape), dtype=np.uint8)
    for target, probability in zip(result, foreground, strict=True):
        turned = prepared.orientation.apply(target)
        for slab in _slabs(len(turned)):
            turned[slab] = np.rint(_whole_slab(probability, resampler, slab) * np.float32(255.0))
    return result


def _whole_slab(voxels: Float32Array, resampler: Resampler, slab: slice) -> npt.NDArray[np.float32]:
    """Some slices of the resampled volume; rounding cannot leave [0, 1]."""
    values = resampler.box(voxels, (slab, slice(None), slice(None)))
    return np.clip(values, 0.0, 1.0, out=values)
