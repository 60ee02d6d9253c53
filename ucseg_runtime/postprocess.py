"""From averages on the model grid to labels on the source grid: resample, decide, turn back, clean up."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from ucseg_runtime.arrays import Float32Array, UInt8Array
from ucseg_runtime.components import erase, find_components
from ucseg_runtime.errors import BackendError
from ucseg_runtime.geometry import VolumeGeometry
from ucseg_runtime.manifest import ModelSpec, Postprocessing
from ucseg_runtime.preprocess import Prepared
from ucseg_runtime.resampling import Resampler, resampler_between
from ucseg_runtime.segmentation import EngineInfo, Segmentation
from ucseg_runtime.stitching import Stitched, joined

_SLAB_SLICES = 8
"""Slices of the source grid that are in work at a time: 8 of 512 x 512 in float32 are 8 MB, which caches still hold."""


class Restoration:
    """Brings results back to the grid that the volume was acquired on, as they come from the stitcher.

    Slabs of the source grid are resampled and decided as soon as all slices of the model grid that they depend on are
    there; only slices that later slabs depend on too are kept.

    Args:
        prepared: The volume that the results belong to; remembers the way back.
        geometry: Source grid.
        spec: Classes, activation and clean-up.
        keep_probabilities: Whether the probabilities of every foreground class are returned too.
    """

    def __init__(
        self, prepared: Prepared, geometry: VolumeGeometry, spec: ModelSpec, *, keep_probabilities: bool = False
    ) -> None:
        self._geometry, self._spec = geometry, spec
        self._resampler = resampler_between(prepared.spatial_shape, prepared.oriented.shape)
        self._slabs = deque(_slabs(prepared.oriented.shape[0]))
        self._waiting: deque[Stitched] = deque()
        self._label_map = np.zeros(geometry.shape, dtype=np.uint8)
        self._uncertainty = np.empty(geometry.shape, dtype=np.float32)
        foreground = len(spec.classes) if keep_probabilities else 0
        self._probabilities = np.empty((foreground, *geometry.shape), dtype=np.uint8)
        # The results are filled through views with the model's axes: turning back costs nothing.
        turn = prepared.orientation.apply
        self._label_view, self._uncertainty_view = turn(self._label_map), turn(self._uncertainty)
        self._probability_views = [turn(target) for target in self._probabilities]

    def add(self, stitched: Stitched) -> None:
        """Take the next slices of the model grid, and fill every slab of the source grid that has all it depends on."""
        self._waiting.append(stitched)
        while self._slabs:
            resampler, needed = self._resampler.of_slices(self._slabs[0])
            if needed.stop > stitched.stop:
                return
            while self._waiting[0].stop <= needed.start:
                self._waiting.popleft()
            self._fill(self._slabs.popleft(), joined(self._waiting, needed), resampler)

    def finish(self, engine: EngineInfo) -> Segmentation:
        """The segmentation, cleaned up, on the source grid.

        Args:
            engine: What computed the results.

        Returns:
            Labels by the greatest interpolated probability (background wins ties), then cleaned up; the uncertainty.

        Raises:
            BackendError: Slices of the model grid are missing.
        """
        if self._slabs:
            there, depth = self._waiting[-1].stop if self._waiting else 0, self._resampler.weights[0].shape[1]
            raise BackendError(f"results of {there} slices of the model grid were stitched; it has {depth} slices")
        remove_small_components(self._label_map, self._spec.postprocessing, self._geometry.voxel_volume_ml)
        return Segmentation(
            label_map=self._label_map,
            uncertainty=self._uncertainty,
            probabilities=self._probabilities if self._probability_views else None,
            geometry=self._geometry,
            classes=self._spec.classes,
            engine=engine,
        )

    def _fill(self, slab: slice, stitched: Stitched, resampler: Resampler) -> None:
        _fill_labels(self._label_view[slab], _scores(stitched.probabilities, self._spec), resampler)
        self._uncertainty_view[slab] = _resampled(stitched.uncertainty, resampler)
        foreground = stitched.probabilities[-len(self._spec.classes) :]
        for view, probability in zip(self._probability_views, foreground, strict=False):
            view[slab] = np.rint(_resampled(probability, resampler) * np.float32(255.0))


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


def _scores(probabilities: Float32Array, spec: ModelSpec) -> Float32Array:
    """What competes for a voxel, background first, float32, shape (classes + 1, z, y, x)."""
    if spec.activation == "softmax":
        return probabilities
    # Foreground is where its probability exceeds one half.
    return np.concatenate([np.full_like(probabilities, 0.5), probabilities])


def _slabs(slices: int) -> Iterator[slice]:
    return (slice(first, min(first + _SLAB_SLICES, slices)) for first in range(0, slices, _SLAB_SLICES))


def _fill_labels(target: UInt8Array, scores: Float32Array, resampler: Resampler) -> None:
    """Give every voxel the label of the greatest resampled score; the lowest label wins ties.

    Args:
        target: uint8, zeros, shape (z, y, x) of the resampler's result; written to.
        scores: float32, shape (labels, z, y, x), model grid.
        resampler: From the grid of `scores` to the grid of `target`.
    """
    # Resampling averages: a label can beat background only near voxels of the model grid where it already does.
    beats_background = [score > scores[0] for score in scores[1:]]
    box = resampler.reach(np.logical_or.reduce(beats_background), slice(None))
    if box is None:
        return
    best = resampler.box(scores[0], box)
    labels = np.zeros(best.shape, dtype=np.uint8)
    for label, candidate in enumerate(beats_background, start=1):
        if not candidate.any():
            continue
        score = resampler.box(scores[label], box)
        # A running maximum: an argmax over the class axis would read memory with a stride and be ten times slower.
        np.copyto(labels, np.uint8(label), where=score > best)
        np.maximum(best, score, out=best)
    target[box] = labels


def _resampled(voxels: Float32Array, resampler: Resampler) -> npt.NDArray[np.float32]:
    """The whole result of a resampler; rounding cannot leave [0, 1]."""
    values = resampler.box(voxels, (slice(None), slice(None), slice(None)))
    return np.clip(values, 0.0, 1.0, out=values)
