"""Batches of a prepared data set for the published method: labelled and unlabelled tiles, varied as upstream does."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from ucseg_training.batches import Batch
from ucseg_training.data.dataset_spec import DatasetSpec, tile_shape_problem
from ucseg_training.data.prepared_set import PreparedSet, SampleFile
from ucseg_training.data.sample import Sample
from ucseg_training.data.two_stream import TwoStreamSampler
from ucseg_training.data.upstream_augment import PlaneVariation, draw_volume_tile, vary_plane
from ucseg_training.errors import TrainingError
from ucseg_training.method.targets import PartialTarget, one_hot_target, partial_target

# Apart from the numbers of other streams that are seeded with the same seed.
_STREAM = 103


class SampleBatches:
    """Keeps the `BatchSource` contract.

    Batch number n is that of worker n modulo their number in step n divided by it, so that the workers of one step
    never share a labelled case.

    Args:
        prepared: The data set.
        spec: Its description: tile shape, classes, batch size, seed.
        workers: Number of workers that share the batches.
        labels_alone: Leave the unlabelled cases out; batches then hold their labelled half only.
        zero_padding: Continue volumes with 0 as upstream does, not with what the deployed model sees there.
        keep_mb: Memory for samples that were read already, in MiB.

    Raises:
        TrainingError: Too few cases for a batch, an odd batch, or tiles that do not fit the networks.
    """

    def __init__(
        self,
        prepared: PreparedSet,
        spec: DatasetSpec,
        *,
        workers: int = 1,
        labels_alone: bool = False,
        zero_padding: bool = False,
        keep_mb: int = 2048,
    ) -> None:
        if problem := tile_shape_problem(spec.tiling.tile_shape, spec.dim):
            raise TrainingError(f"{problem}.")
        self._spec = spec
        self._labelled = prepared.of("train")
        self._unlabelled = () if labels_alone else prepared.of("unlabelled")
        self._labels_alone = labels_alone
        # Labels alone are drawn like the labelled half of a batch; what is drawn beside them is not looked at.
        unlabelled = 1 if labels_alone else len(self._unlabelled)
        self._sampler = TwoStreamSampler(len(self._labelled), unlabelled, spec.batch_size, spec.seed, workers)
        self._zero_padding = zero_padding
        greatest = max((_bytes_of(sample) for sample in (*self._labelled, *self._unlabelled)), default=1)
        self._load = lru_cache(maxsize=keep_mb * 2**20 // greatest)(SampleFile.load)

    def describe(self) -> dict[str, object]:
        """The description of the data set, and the digests of its prepared samples."""
        return {
            "data_set": self._spec.model_dump(mode="json"),
            "zero_padding": self._zero_padding,
            "variation": dataclasses.asdict(PlaneVariation()) if self._spec.dim == 2 else {},
            "workers": self._sampler.world_size,
            # The name of a prepared sample is a digest of its files and preparation.
            "labelled": [(sample.path.stem, sample.z) for sample in self._labelled],
            "unlabelled": [(sample.path.stem, sample.z) for sample in self._unlabelled],
        }

    def draw(self, number: int) -> Batch:
        """The batch with this number."""
        chosen = self._sampler.draw(*divmod(number, self._sampler.world_size))
        rng = np.random.default_rng((self._spec.seed, _STREAM, number))
        labelled = [self._varied(self._labelled[index], rng) for index in chosen.labelled]
        if self._labels_alone:
            return Batch(_images(labelled), self._target(labelled), None)
        unlabelled = [self._varied(self._unlabelled[index], rng) for index in chosen.unlabelled]
        return Batch(_images(labelled), self._target(labelled), _images(unlabelled))

    def _varied(self, file: SampleFile, rng: np.random.Generator) -> Sample:
        sample = self._load(file)
        if self._spec.dim == 2:
            return vary_plane(sample, rng)
        return draw_volume_tile(sample, self._spec.tiling.tile_shape, rng, zero_padding=self._zero_padding)

    def _target(self, tiles: Sequence[Sample]) -> PartialTarget:
        num_classes = len(self._spec.classes) + 1
        label_map = torch.from_numpy(np.stack([_labels(tile) for tile in tiles])).long()
        if all(tile.known is None for tile in tiles):
            return one_hot_target(label_map, num_classes)
        everything = np.uint8(255)
        known = [np.full_like(_labels(tile), everything) if tile.known is None else tile.known for tile in tiles]
        return partial_target(label_map, torch.from_numpy(np.stack(known)).long(), num_classes)


def _labels(tile: Sample) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    if tile.label_map is None:
        raise TrainingError(f"the labelled case {tile.name!r} has no label.")
    return tile.label_map


def _bytes_of(sample: SampleFile) -> int:
    """Image in float32, label and known classes in a byte each."""
    return 4 * math.prod(sample.shape) + 2 * math.prod(sample.shape[1:])


def _images(tiles: Sequence[Sample]) -> Tensor:
    return torch.from_numpy(np.stack([tile.image for tile in tiles]))
