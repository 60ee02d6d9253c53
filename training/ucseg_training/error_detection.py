"""Whether an uncertainty is high where a decision is wrong: ranking errors, and the risk of keeping the surest part."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ucseg_runtime.arrays import BoolArray, Float32Array, Float64Array

_STEPS = 65535
"""Uncertainties are told apart in the steps in which results store them; those within a step are equal."""


@dataclass(frozen=True)
class ErrorDetection:
    """How well an uncertainty finds errors.

    Attributes:
        auroc: Chance that a wrong voxel is more uncertain than a right one, equal ones counting half; 0.5 = it says
            nothing, 1 = every error. NaN where all voxels are wrong or none is.
        aurc: Mean share of wrong voxels among those kept, over all shares that can be kept, the surest first; 0 = none,
            smaller is better. It is small for few errors, too. NaN without voxels.
        error: Share of wrong voxels, which is what `aurc` is for an uncertainty that says nothing.
    """

    auroc: float
    aurc: float
    error: float


def error_detection(uncertainty: Float32Array, wrong: BoolArray) -> ErrorDetection:
    """Rank voxels by their uncertainty and see where the wrong ones are.

    Args:
        uncertainty: float32, any shape, in [0, 1].
        wrong: bool, same shape.

    Voxels of equal uncertainty are taken in the mean over all their orders.
    """
    steps = np.rint(uncertainty.ravel() * np.float32(_STEPS)).astype(np.int64)
    all_of = np.bincount(steps, minlength=_STEPS + 1).astype(np.float64)
    wrong_of = np.bincount(steps[wrong.ravel()], minlength=_STEPS + 1).astype(np.float64)
    occupied = all_of > 0
    all_of, wrong_of = all_of[occupied], wrong_of[occupied]
    voxels, errors = float(all_of.sum()), float(wrong_of.sum())
    if not voxels:
        return ErrorDetection(float("nan"), float("nan"), float("nan"))
    return ErrorDetection(_auroc(all_of - wrong_of, wrong_of), _aurc(all_of, wrong_of) / voxels, errors / voxels)


def _auroc(right: Float64Array, wrong: Float64Array) -> float:
    if not right.sum() or not wrong.sum():
        return float("nan")
    below = np.cumsum(right) - right
    return float((wrong * (below + right / 2)).sum() / (right.sum() * wrong.sum()))


def _aurc(voxels: Float64Array, wrong: Float64Array) -> float:
    """Sum over the voxels of the risk at their coverage.

    Within a step, where t goes from 0 to 1, the risk is (E + e t) / (N + n t) on average over the orders. Its integral
    over the step's n voxels is e + (E - e N / n) ln((N + n) / N), and e for the first step.
    """
    before = np.cumsum(voxels) - voxels
    errors_before = np.cumsum(wrong) - wrong
    rest = before[1:]
    correction = (errors_before[1:] - wrong[1:] * rest / voxels[1:]) * np.log1p(voxels[1:] / rest)
    return float(wrong.sum() + correction.sum())
