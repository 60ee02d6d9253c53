"""Evidential read-out of logits in NumPy: the reference for what the `decode` graph of a model computes.

Logits are evidence for each class; little evidence in all means high uncertainty, whatever the probabilities say. The
uncertainty is not calibrated.

Source: behaviour of taozh2017/UCSeg 7251be6 for evidence and uncertainty; belief and expected probability are those of
the Dirichlet distribution with parameters evidence + 1.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from ucseg_runtime.arrays import Float32Array

_CLASS_AXIS = 1


@dataclass(frozen=True, eq=False)
class Evidence:
    """What the logits of one network say about each voxel.

    Attributes:
        per_class: float32, shape (tiles, K, z, y, x), softplus of the logits, at least 0.
    """

    per_class: Float32Array

    @property
    def strength(self) -> Float32Array:
        """Sum over the classes of evidence + 1, float32, shape (tiles, 1, z, y, x), at least K."""
        total: Float32Array = (self.per_class + np.float32(1.0)).sum(axis=_CLASS_AXIS, keepdims=True)
        return total

    @property
    def uncertainty(self) -> Float32Array:
        """K / strength, float32, shape (tiles, 1, z, y, x), in (0, 1]; 1 = no evidence at all."""
        return np.float32(self.per_class.shape[_CLASS_AXIS]) / self.strength

    @property
    def belief(self) -> Float32Array:
        """Evidence / strength, float32, shape (tiles, K, z, y, x); belief and uncertainty of a voxel sum to 1."""
        return self.per_class / self.strength

    @property
    def expected_probability(self) -> Float32Array:
        """(Evidence + 1) / strength, float32, shape (tiles, K, z, y, x); sums to 1 over the classes."""
        return (self.per_class + np.float32(1.0)) / self.strength


def evidence_from_logits(logits: Float32Array) -> Evidence:
    """Softplus of the logits, shape (tiles, K, z, y, x), without overflow for logits of any size."""
    return Evidence(np.logaddexp(np.float32(0.0), logits))


def probabilities_from_logits(logits: Float32Array, activation: Literal["sigmoid", "softmax"]) -> Float32Array:
    """Class probabilities as the model's activation defines them.

    Args:
        logits: float32, shape (tiles, K, z, y, x).
        activation: ``softmax`` over the classes, or ``sigmoid`` of the one foreground channel of a binary model.

    Returns:
        float32, in [0, 1], shape (tiles, K, z, y, x) for softmax and (tiles, 1, z, y, x), the foreground, for sigmoid.
    """
    if activation == "sigmoid":
        # exp(-log(1 + exp(-z))) is the sigmoid of z, and cannot overflow.
        return np.exp(-np.logaddexp(np.float32(0.0), -logits[:, 1:2]))
    exponential = np.exp(logits - logits.max(axis=_CLASS_AXIS, keepdims=True))
    probabilities: Float32Array = exponential / exponential.sum(axis=_CLASS_AXIS, keepdims=True)
    return probabilities
