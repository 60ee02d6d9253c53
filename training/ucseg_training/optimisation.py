"""Optimiser and learning rate of a training run."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn


@dataclass(frozen=True)
class Optimisation:
    """How the weights move.

    Attributes:
        kind: ``sgd`` with momentum, as upstream; or ``adamw``.
        learning_rate: Largest learning rate.
        schedule: ``linear`` falls to 0 at the last step, as upstream; ``cosine`` falls to 1 % along half a cosine.
        warm_up: Steps of linear warm-up. The V-Net has no normalisation: with adamw it diverges without one.
        weight_decay: Of either optimiser.
        gradient_norm: Largest gradient norm of subnet A, subnet B and the UPG, each for itself; None for no limit.
        accumulate: Batches whose gradients are averaged before a step.
        average_decay: Decay of the running average of the weights; None for no average.
    """

    kind: Literal["sgd", "adamw"] = "sgd"
    learning_rate: float = 0.01
    schedule: Literal["linear", "cosine"] = "linear"
    warm_up: int = 0
    weight_decay: float = 1e-5
    gradient_norm: float | None = None
    accumulate: int = 1
    average_decay: float | None = None

    def __post_init__(self) -> None:
        if self.learning_rate <= 0 or self.warm_up < 0 or self.accumulate < 1:
            raise ValueError("learning_rate and accumulate must be positive, warm_up must not be negative")
        if self.average_decay is not None and not 0.0 <= self.average_decay < 1.0:
            raise ValueError(f"average_decay is {self.average_decay}; expected 0 <= average_decay < 1")

    def rate_at(self, step: int, steps: int) -> float:
        """Learning rate of a step.

        Args:
            step: 0 … steps − 1.
            steps: Length of the schedule.
        """
        if step < self.warm_up:
            return self.learning_rate * (step + 1) / self.warm_up
        fraction = min(1.0, (step - self.warm_up) / max(1, steps - self.warm_up))
        if self.schedule == "linear":
            return self.learning_rate * (1.0 - fraction)
        return self.learning_rate * (0.01 + 0.99 * 0.5 * (1.0 + math.cos(math.pi * fraction)))

    def average_decay_at(self, step: int) -> float:
        """Decay of the running average: short at first, or the average would hold on to the random start."""
        return min(self.average_decay or 0.0, (1 + step) / (10 + step))


def make_optimizer(parameters: Iterable[nn.Parameter], optimisation: Optimisation) -> torch.optim.Optimizer:
    """An optimiser whose learning rate the caller sets before every step."""
    rate, decay = optimisation.learning_rate, optimisation.weight_decay
    if optimisation.kind == "sgd":
        return torch.optim.SGD(parameters, lr=rate, momentum=0.9, weight_decay=decay)
    return torch.optim.AdamW(parameters, lr=rate, weight_decay=decay, betas=(0.9, 0.99))
