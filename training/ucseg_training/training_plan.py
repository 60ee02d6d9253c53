"""What fixes a training run beside its data, and the digest by which a continued run is known."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field
from typing import Literal

from ucseg_training.errors import TrainingError
from ucseg_training.method.config import MethodConfig
from ucseg_training.nets import TrioConfig
from ucseg_training.optimisation import Optimisation


@dataclass(frozen=True)
class TrainingPlan:
    """Everything but the data that decides the weights.

    Attributes:
        trio: Sizes of the networks.
        method: Which losses, in which mode.
        optimisation: How the weights move.
        steps: Optimiser steps of the whole schedule.
        stop_after: Step to stop at before the schedule has ended; None for its end.
        seed: Of everything random.
        precision: Of the networks; losses are always float32.
        checkpoint_every: Steps between two states on disk.
        validate_every: Steps between two validations; 0 for none.
        model_spec: JSON-able description of the model, stored in the checkpoint as it is.

    Raises:
        TrainingError: A mean teacher without a running average of the weights, which it is.
    """

    trio: TrioConfig
    method: MethodConfig
    optimisation: Optimisation
    steps: int
    stop_after: int | None = None
    seed: int = 42
    precision: Literal["f32", "bf16"] = "f32"
    checkpoint_every: int = 200
    validate_every: int = 0
    model_spec: dict[str, object] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.method.pseudo_labels == "teacher" and self.optimisation.average_decay is None:
            raise TrainingError(
                "pseudo_labels is 'teacher', and the weights have no running average, which is the teacher.",
                hint="Set average_decay.",
            )

    @property
    def last_step(self) -> int:
        """Steps that a finished run has done."""
        return self.steps if self.stop_after is None else min(self.steps, self.stop_after)

    def digest(self, data: dict[str, object]) -> str:
        """SHA-256 over what decides the weights: this plan but for where it stops and how often it saves, and the data.

        Args:
            data: What the source of the batches says of them.
        """
        deciding = {
            name: value for name, value in asdict(self).items() if name not in {"stop_after", "checkpoint_every"}
        }
        text = json.dumps({"plan": deciding, "data": data}, sort_keys=True, default=str)
        return hashlib.sha256(text.encode()).hexdigest()
