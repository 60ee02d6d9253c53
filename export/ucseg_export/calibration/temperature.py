"""One temperature for the fused logits: fitted by likelihood, judged on patients that it was not fitted on.

Source: C. Guo et al., On calibration of modern neural networks, ICML 2017.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import log_expit, log_softmax

from ucseg_export.calibration.bootstrap import estimate, weighted_mean
from ucseg_export.calibration.fused_logits import LogitSample
from ucseg_runtime.arrays import Float64Array
from ucseg_runtime.calibration import Estimate, Temperature
from ucseg_training.calibration import expected_calibration_error

Activation = Literal["sigmoid", "softmax"]

_LEAST, _MOST = 0.05, 100.0
"""Between these the temperature is looked for."""


def judged_temperature(samples: Sequence[LogitSample], activation: Activation) -> Temperature:
    """Fit a temperature, and see on each patient in turn whether one that was fitted on the others helps.

    Every patient counts alike. It helps where both means over the held-out patients, of the expected calibration error
    and of the negative log-likelihood, get better.

    Args:
        samples: One per case; those without voxels count for nothing.
        activation: Of the model.
    """
    patients = _by_patient([sample for sample in samples if len(sample.labels)])
    voxels = sum(len(sample.labels) for sample in samples)
    if len(patients) < 2:
        none = Estimate(value=None)
        return Temperature(
            value=None,
            helps=False,
            patients=len(patients),
            voxels=voxels,
            calibration_error=none,
            calibration_error_after=none,
            nll=none,
            nll_after=none,
        )
    held_out = [
        fitted_temperature([*patients[:index], *patients[index + 1 :]], activation) for index in range(len(patients))
    ]
    before = _scores(patients, [1.0] * len(patients), activation)
    after = _scores(patients, held_out, activation)
    better = after.errors.mean() < before.errors.mean() and after.nll.mean() < before.nll.mean()
    return Temperature(
        value=fitted_temperature(patients, activation),
        helps=bool(better),
        patients=len(patients),
        voxels=voxels,
        calibration_error=_mean(before.errors),
        calibration_error_after=_mean(after.errors),
        nll=_mean(before.nll),
        nll_after=_mean(after.nll),
    )


def fitted_temperature(samples: Sequence[LogitSample], activation: Activation) -> float:
    """The temperature of the least negative log-likelihood, every sample counting alike; in [0.05, 100]."""

    def loss(log_temperature: float) -> float:
        return math.fsum(negative_log_likelihood(sample, math.exp(log_temperature), activation) for sample in samples)

    found = minimize_scalar(loss, bounds=(math.log(_LEAST), math.log(_MOST)), method="bounded", options={"xatol": 1e-4})
    return math.exp(float(found.x))


def negative_log_likelihood(sample: LogitSample, temperature: float, activation: Activation) -> float:
    """Mean over the voxels of −log of the probability of the label, in nats."""
    logarithms = _log_probabilities(sample, temperature, activation)
    return -float(np.take_along_axis(logarithms, sample.labels[:, None].astype(np.intp), axis=1).mean())


@dataclass(frozen=True, eq=False)
class _Scores:
    """One value for each patient."""

    errors: Float64Array
    nll: Float64Array


def _scores(patients: Sequence[LogitSample], temperatures: Sequence[float], activation: Activation) -> _Scores:
    pairs = list(zip(patients, temperatures, strict=True))
    return _Scores(
        errors=np.array([_calibration_error(sample, temperature, activation) for sample, temperature in pairs]),
        nll=np.array([negative_log_likelihood(sample, temperature, activation) for sample, temperature in pairs]),
    )


def _calibration_error(sample: LogitSample, temperature: float, activation: Activation) -> float:
    probabilities = np.exp(_log_probabilities(sample, temperature, activation))
    decided = probabilities.argmax(axis=1)
    return expected_calibration_error(probabilities.max(axis=1).astype(np.float32), decided == sample.labels)


def _log_probabilities(sample: LogitSample, temperature: float, activation: Activation) -> Float64Array:
    """float64, shape (voxels, K)."""
    logits = sample.logits.astype(np.float64) / temperature
    if activation == "sigmoid":  # the foreground's own logit decides
        return np.stack([log_expit(-logits[:, 1]), log_expit(logits[:, 1])], axis=1)
    logarithms: Float64Array = log_softmax(logits, axis=1)
    return logarithms


def _by_patient(samples: Sequence[LogitSample]) -> list[LogitSample]:
    names = dict.fromkeys(sample.patient for sample in samples)
    return [_joined(name, [sample for sample in samples if sample.patient == name]) for name in names]


def _joined(patient: str, samples: Sequence[LogitSample]) -> LogitSample:
    logits = np.concatenate([sample.logits for sample in samples])
    return LogitSample(patient, logits, np.concatenate([sample.labels for sample in samples]))


def _mean(values: Float64Array) -> Estimate:
    return estimate(weighted_mean(values), len(values))
