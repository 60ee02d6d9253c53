"""The named terms of one step, their weights, and their sum."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ucseg_training.errors import TrainingError


@dataclass(frozen=True, eq=False)
class Terms:
    """What one step costs.

    Attributes:
        total: Scalar with gradient: the sum of weight × value over all terms.
        values: Value of each term by name, scalars without gradient.
        weights: Weight of each term, same names.
        labelled_dice: Soft Dice of subnet A and B on the labelled tiles, by which prototypes are kept or not; None
            where no prototypes are used.
    """

    total: Tensor
    values: Mapping[str, Tensor]
    weights: Mapping[str, float]
    labelled_dice: tuple[float, float] | None = None

    def as_floats(self) -> dict[str, float]:
        """Every value by name, and the total as `total`, for logs."""
        numbers = torch.stack([*self.values.values(), self.total.detach()]).tolist()
        return dict(zip([*self.values, "total"], numbers, strict=True))


@dataclass
class TermSum:
    """Terms while they are collected."""

    _terms: dict[str, tuple[float, Tensor]] = field(default_factory=dict)

    def add(self, name: str, weight: float, value: Tensor | Mapping[str, Tensor]) -> None:
        """Note a term, or the parts of one as "name.part" with the weight of the whole."""
        parts = {name: value} if isinstance(value, Tensor) else {f"{name}.{part}": v for part, v in value.items()}
        self._terms.update({part: (weight, v) for part, v in parts.items()})

    def finish(self, step: int, labelled_dice: tuple[float, float] | None) -> Terms:
        """The terms with their sum.

        Raises:
            TrainingError: A term is not finite; the message names the first such term and the step.
        """
        values = torch.stack([value for _, value in self._terms.values()])
        weights = {name: weight for name, (weight, _) in self._terms.items()}
        detached = values.detach()
        finite = detached.isfinite()
        if not finite.all():
            name, value = next((n, v) for n, v in zip(weights, detached.tolist(), strict=True) if not math.isfinite(v))
            raise TrainingError(
                f"step {step}: the term {name} is not finite ({value}); nothing was learnt from this step.",
                hint="Lower the learning rate, or look for images with extreme intensities.",
            )
        total = (values * values.new_tensor(list(weights.values()))).sum()
        return Terms(total, dict(zip(weights, detached.unbind(), strict=True)), weights, labelled_dice)
