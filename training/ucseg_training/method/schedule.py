"""What changes with the step: weights of the losses, thresholds, the learning rate and the end of the run.

Source: behaviour of taozh2017/UCSeg 7251be6.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from ucseg_training.method.config import Method

_RAMP_PLATEAUS = 200
_RAMP_HEIGHT = 0.1
_FIRST_UNCERTAINTY_WEIGHT = 0.01
_WRITE_THRESHOLD = {2: (0.5, 0.46), 3: (0.2, 0.56)}
"""At the first step, and how much it grows until the last."""


@dataclass(frozen=True)
class TermWeights:
    """Weights of the terms in the total.

    Attributes:
        difference: Of each subnet's difference from the other one.
        unsupervised: Of each subnet's loss against pseudo-labels.
        prototype: Of each subnet's prototype term.
        patch: Of the patch term.
    """

    difference: float
    unsupervised: float
    prototype: float
    patch: float


def term_weights(step: int, method: Method, mixing: bool) -> TermWeights:
    """Weights of the terms of one batch; with mixing, those of the mixed batch are the same.

    Args:
        step: Steps done, from 0.
        method: Says the ramp.
        mixing: Whether this step has a mixed batch, which then takes half of the weight of every term but the
            supervised ones.

    Returns:
        Weights that hold the factor of one half with which both subnets enter the total.
    """
    share = 0.5 if mixing else 1.0
    return TermWeights(
        difference=0.5 * share * 0.5,
        unsupervised=0.5 * share * unsupervised_weight(step, method),
        prototype=0.5 * share * 0.2,
        patch=share * 0.1,
    )


def ramp(step: int, method: Method) -> float:
    """Sigmoid-shaped ramp from 0.1 exp(-5) to 0.1, in 200 equal plateaus."""
    plateau = min(math.floor(_RAMP_PLATEAUS * step / method.ramp_end), _RAMP_PLATEAUS)
    return _RAMP_HEIGHT * math.exp(-5.0 * (1.0 - plateau / _RAMP_PLATEAUS) ** 2)


def unsupervised_weight(step: int, method: Method) -> float:
    """Weight of the losses against pseudo-labels: the ramp times `unsupervised_factor`; by default 0.10 to 15."""
    return method.config.unsupervised_factor * ramp(step, method)


def uncertainty_weight(step: int, method: Method) -> float:
    """Share of the rightly predicted voxels in accuracy-versus-uncertainty: 0.01 at the first step, 1 at the last."""
    weight: float = _FIRST_UNCERTAINTY_WEIGHT ** (1.0 - _progress(step, method))
    return weight


def write_threshold(step: int, method: Method) -> float:
    """Dice on the labelled tiles above which a subnet's prototypes are stored."""
    first, growth = _WRITE_THRESHOLD[method.dim]
    return first + growth * _progress(step, method)


def is_mixing(step: int, method: Method) -> bool:
    """Whether tiles are mixed in this step, if there are unlabelled ones."""
    return method.config.use_mixing and step >= method.mixing_start


def _progress(step: int, method: Method) -> float:
    """Part of the run that is done, in [0, 1]."""
    return min(1.0, step / method.config.total_steps)
