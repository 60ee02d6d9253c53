"""Calibration and error detection from counts of voxels per level, so that memory does not grow with the volumes.

Every function takes float64 counts of shape (…, levels) and gives one value for each of the leading indices; NaN where
it is not defined. Level 0 is the least confidence or uncertainty. Voxels of one level are tied.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ucseg_runtime.arrays import Float64Array

BINS = 15


def calibration_error(hits: Float64Array, misses: Float64Array) -> Float64Array:
    """Mean gap between probability and share of hits over equal bins of probability, weighted by their voxels.

    Args:
        hits: Voxels of each level at which what the probability is of is true; level l of n means a probability of
            l / (n − 1).
        misses: The other voxels.

    Source: C. Guo et al., On calibration of modern neural networks, ICML 2017, for the decided class; M. Kull et al.,
    Beyond temperature scaling, NeurIPS 2019, for one class against the others.
    """
    levels = hits.shape[-1]
    probability = np.arange(levels) / (levels - 1)
    bins = np.minimum((probability * BINS).astype(np.int64), BINS - 1)
    in_bin = (bins[:, None] == np.arange(BINS)).astype(np.float64)  # (levels, bins)
    total = hits + misses
    gaps = np.abs(hits @ in_bin - (total * probability) @ in_bin)
    return _ratio(gaps.sum(axis=-1), total.sum(axis=-1))


def error_auroc(right: Float64Array, wrong: Float64Array) -> Float64Array:
    """Chance that a wrong voxel is more uncertain than a right one, ties counting half; NaN without both kinds.

    Args:
        right: Voxels of each level of uncertainty whose label is right.
        wrong: Those whose label is wrong.
    """
    below = np.cumsum(right, axis=-1) - right
    ahead = (wrong * (below + 0.5 * right)).sum(axis=-1)
    return _ratio(ahead, right.sum(axis=-1) * wrong.sum(axis=-1))


def error_aupr(right: Float64Array, wrong: Float64Array) -> Float64Array:
    """Average precision of finding wrong voxels by their uncertainty; NaN where none is wrong."""
    found = np.cumsum(wrong[..., ::-1], axis=-1)
    flagged = np.cumsum((right + wrong)[..., ::-1], axis=-1)
    precision = np.divide(found, flagged, out=np.zeros_like(found), where=flagged > 0)
    return _ratio((precision * wrong[..., ::-1]).sum(axis=-1), wrong.sum(axis=-1))


def aurc(right: Float64Array, wrong: Float64Array) -> Float64Array:
    """Area under the risk–coverage curve: mean, over all voxels, of the error rate among those no more uncertain.

    Source: Y. Geifman et al., Bias-reduced uncertainty estimation for deep neural classifiers, ICLR 2019.
    """
    total = right + wrong
    kept = np.cumsum(total, axis=-1)
    risk = np.divide(np.cumsum(wrong, axis=-1), kept, out=np.zeros_like(kept), where=kept > 0)
    return _ratio((risk * total).sum(axis=-1), total.sum(axis=-1))


def error_rate(right: Float64Array, wrong: Float64Array) -> Float64Array:
    """Share of wrong voxels."""
    return _ratio(wrong.sum(axis=-1), (right + wrong).sum(axis=-1))


def sparsification(right: Float64Array, wrong: Float64Array, left_out: Sequence[float]) -> Float64Array:
    """Error rate of what is left when a share of the most uncertain voxels is left out.

    Args:
        right: Shape (levels,).
        wrong: Same shape.
        left_out: Shares, in [0, 1). Of a level that is left out in part, right and wrong voxels go evenly.

    Returns:
        float64, one for each share; NaN without voxels.

    Source: E. Ilg et al., Uncertainty estimates and multi-hypotheses networks for optical flow, ECCV 2018.
    """
    counts = np.concatenate([[0.0], np.cumsum(right + wrong)])
    kept = counts[-1] * (1.0 - np.asarray(left_out))
    return _ratio(np.interp(kept, counts, np.concatenate([[0.0], np.cumsum(wrong)])), kept)


def _ratio(numerator: Float64Array, denominator: Float64Array) -> Float64Array:
    filled: Float64Array = np.full(np.shape(denominator), np.nan)
    np.divide(numerator, denominator, out=filled, where=np.asarray(denominator) > 0)
    return filled
