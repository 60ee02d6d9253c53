"""Whether probabilities mean what they say."""

from __future__ import annotations

import numpy as np

from ucseg_runtime.arrays import BoolArray, Float32Array

_BINS = 15


def expected_calibration_error(confidence: Float32Array, correct: BoolArray) -> float:
    """Mean gap between confidence and accuracy over equal bins of confidence, weighted by their voxels.

    Args:
        confidence: float32, any shape, in [0, 1]: probability of the decided class.
        correct: bool, same shape: whether the decision was right.

    Returns:
        In [0, 1]; 0 = in every bin the confidence is the share of right decisions. NaN without voxels.

    Source: C. Guo et al., On calibration of modern neural networks, ICML 2017, with 15 bins.
    """
    if not confidence.size:
        return float("nan")
    bins = np.minimum((confidence.ravel() * _BINS).astype(np.int64), _BINS - 1)
    right = np.bincount(bins, weights=correct.ravel(), minlength=_BINS)
    confident = np.bincount(bins, weights=confidence.ravel(), minlength=_BINS)
    return float(np.abs(right - confident).sum() / confidence.size)
