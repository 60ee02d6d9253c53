"""What a training step learns from, and who supplies it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from ucseg_training.distributed import Workers
from ucseg_training.method.targets import PartialTarget


@dataclass(frozen=True, eq=False)
class Batch:
    """The tiles of one step.

    Attributes:
        labelled: float32, (tiles, channels, *tile_shape), network input units.
        target: What is known of the labelled tiles.
        unlabelled: float32, (tiles, channels, *tile_shape); None where a run learns from labels alone.
    """

    labelled: Tensor
    target: PartialTarget
    unlabelled: Tensor | None


class BatchSource(Protocol):
    """Supplies batches. A batch depends on nothing but its number, so that a run can be continued exactly."""

    def describe(self) -> dict[str, object]:
        """JSON-able words for everything that decides what the batches hold: cases, variation, seed."""

    def draw(self, number: int) -> Batch:
        """The batch with this number, counted from 0."""


class ShareOfWorker:
    """Every n-th batch of a source: what one of n data-parallel workers learns from.

    Args:
        batches: Where all batches come from.
        workers: Which of how many this is.
    """

    def __init__(self, batches: BatchSource, workers: Workers) -> None:
        self._batches = batches
        self._workers = workers

    def describe(self) -> dict[str, object]:
        """What the source says, and how many workers share it."""
        return {**self._batches.describe(), "workers": self._workers.count}

    def draw(self, number: int) -> Batch:
        """The batch with this number among those of this worker."""
        return self._batches.draw(number * self._workers.count + self._workers.rank)
