"""Confidence intervals over patients: the percentile bootstrap.

Voxels and cases of one patient are not independent, so whole patients are drawn.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable

import numpy as np

from ucseg_runtime.arrays import Float64Array
from ucseg_runtime.calibration import Estimate, Resampling

RESAMPLING = Resampling(resamples=1000, seed=20240229, level=0.95)

Statistic = Callable[[Float64Array], Float64Array]
"""From weights of patients, float64, shape (n, patients), to n values; NaN where one is not defined."""


def resample_patients(patients: int, resampling: Resampling = RESAMPLING) -> Float64Array:
    """How often each patient is drawn, float64, shape (resamples, patients); each row sums to `patients`."""
    generator = np.random.default_rng(resampling.seed)
    share = np.full(patients, 1.0 / patients)
    return generator.multinomial(patients, share, size=resampling.resamples).astype(np.float64)


def estimate(statistic: Statistic, patients: int, resampling: Resampling = RESAMPLING) -> Estimate:
    """A figure over all patients with its interval; a single patient has none.

    Resamples in which the figure is not defined, as one that missed every patient with a class, are left out.

    Args:
        statistic: The figure.
        patients: How many there are.
        resampling: How many draws, their seed, and the share that the interval holds.
    """
    value = float(statistic(np.ones((1, patients)))[0])
    if np.isnan(value):
        return Estimate(value=None)
    if patients < 2:
        return Estimate(value=value)
    values = statistic(resample_patients(patients, resampling))
    outside = 50.0 * (1.0 - resampling.level)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # of means and percentiles of nothing but NaN
        low, high = np.nanpercentile(values, [outside, 100.0 - outside])
    return Estimate(value=value, low=float(low), high=float(high)) if np.isfinite(low) else Estimate(value=value)


def weighted_mean(values: Float64Array) -> Statistic:
    """The mean over patients as a statistic.

    Args:
        values: float64, shape (patients,); NaN where a patient has none.
    """
    defined = ~np.isnan(values)
    filled = np.where(defined, values, 0.0)

    def mean(weights: Float64Array) -> Float64Array:
        with np.errstate(invalid="ignore", divide="ignore"):
            result: Float64Array = (weights @ filled) / (weights @ defined.astype(np.float64))
        return result

    return mean
