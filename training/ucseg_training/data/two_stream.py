"""Which cases a step learns from: labelled ones and unlabelled ones, side by side.

Labelled cases are shuffled once per epoch and each is used at most once in it; unlabelled ones come from endless
shuffles. Everything is a function of seed and step, so that a continued run draws what an undisturbed one would.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ucseg_training.errors import TrainingError

# Apart from the generators of other things that are seeded with the same seed.
_LABELLED_STREAM, _UNLABELLED_STREAM = 101, 102


@dataclass(frozen=True)
class TwoStreamBatch:
    """Indices into the labelled and into the unlabelled cases; labelled i is mixed with unlabelled i."""

    labelled: tuple[int, ...]
    unlabelled: tuple[int, ...]


@dataclass(frozen=True)
class TwoStreamSampler:
    """Draws the batches of one worker, or of several that learn side by side.

    Attributes:
        labelled: Number of labelled cases.
        unlabelled: Number of unlabelled cases.
        batch_size: Cases per step and worker; the first half is labelled, the second is not.
        seed: Of the shuffles.
        world_size: Number of workers. A step takes the next batch for each of them: what they draw together is what one
            worker with a batch of that size would draw.

    Raises:
        TrainingError: The batch is odd, or there are too few cases.

    Source: behaviour of HiLab-git/SSL4MIS a4dddaf, whose sampler UC-Seg leaves out of its repository.
    """

    labelled: int
    unlabelled: int
    batch_size: int
    seed: int
    world_size: int = 1

    def __post_init__(self) -> None:
        if self.batch_size < 2 or self.batch_size % 2:
            raise TrainingError(
                f"the batch has {self.batch_size} cases; expected an even number: each labelled case is mixed with an "
                "unlabelled one.",
                hint="Choose an even batch size.",
            )
        if self.unlabelled < 1:
            raise TrainingError(
                "there are no unlabelled cases.", hint="Train on labels alone, or add unlabelled cases."
            )
        if self.labelled < self._half * self.world_size:
            raise TrainingError(
                f"there are {self.labelled} labelled cases; a step takes {self._half} for each of {self.world_size} "
                "workers.",
                hint="Use fewer workers or a smaller batch.",
            )

    @property
    def steps_per_epoch(self) -> int:
        """Steps in which each labelled case is used at most once; what does not fill a step is left out."""
        return self.labelled // (self._half * self.world_size)

    def draw(self, step: int, rank: int = 0) -> TwoStreamBatch:
        """The batch of a worker, from 0, in a step, from 0.

        Workers of one step never share a labelled case. They share an unlabelled one only where a shuffle ends within
        the step.

        Raises:
            TrainingError: There is no such worker.
        """
        if not 0 <= rank < self.world_size:
            raise TrainingError(f"there is no worker {rank} among {self.world_size} that count from 0.")
        epoch, within = divmod(step, self.steps_per_epoch)
        half = self._half
        first = (within * self.world_size + rank) * half
        labelled = self._shuffle(_LABELLED_STREAM, epoch, self.labelled)[first : first + half]
        start = (step * self.world_size + rank) * half
        return TwoStreamBatch(
            tuple(int(index) for index in labelled), tuple(self._unlabelled_at(start + place) for place in range(half))
        )

    @property
    def _half(self) -> int:
        return self.batch_size // 2

    def _unlabelled_at(self, position: int) -> int:
        shuffle, place = divmod(position, self.unlabelled)
        return int(self._shuffle(_UNLABELLED_STREAM, shuffle, self.unlabelled)[place])

    def _shuffle(self, stream: int, number: int, count: int) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
        return np.random.default_rng((self.seed, stream, number)).permutation(count)
