"""Weight-free fusion of two subnets in NumPy: the reference for what `upg` and `decode` of such a model compute.

Every rule takes the logits of subnet A and subnet B, voxel by voxel, to probabilities and an uncertainty in [0, 1] that
is its own and not calibrated. None has weights or knows the shape of a tile. p_A and p_B are the class probabilities:
the softmax over the logits, and for a binary sigmoid model over 0 and the logit of the foreground, which is the same as
its sigmoid. m is their mean, u the evidential uncertainty K / S of `evidence`, H the entropy divided by ln K.

========  ============================================================  ==========================================
rule      probabilities                                                 uncertainty
========  ============================================================  ==========================================
mean      m                                                             (u_A + u_B) / 2
dempster  (belief + u / K) of the reduced Dempster combination          u_A u_B / (1 - conflict)
entropy   p_A and p_B weighted by 1 - H(p_A) and 1 - H(p_B)             H(m)
coranet   m                                                             share of dissenting masks at two thresholds
dual      m, and where they diverge the p of the smaller u              1 - exp(-symmetric KL divergence)
burl      m, and where H(m) > tau the p of the smaller H                H(m)
========  ============================================================  ==========================================

All but `dempster` are mixtures of p_A and p_B with weights of their own per voxel. All are symmetric in the subnets,
and all are continuous: what the works decide by a comparison (coranet, dual, burl) goes from the one to the other over
0.02 on both sides, so that no engine's rounding decides a voxel. Where two figures are equal, both subnets count alike.

Source: adaptations to two subnets at inference; none of the works fuses there itself. `dempster` is the reduced
combination of evidential multi-view classification. `entropy`: Zheng et al., arXiv:2111.11629; `coranet`: Shi et al.,
arXiv:2110.08762; `dual`: Qiu, Gan et al., arXiv:2304.04441; `burl`: Zhou et al., arXiv:2502.07457.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from ucseg_runtime.arrays import Float32Array, Float64Array
from ucseg_runtime.fusion_names import WeightFreeRule, complete_parameters

LEAST_PROBABILITY = 1e-30
"""What a probability counts as at least inside a logarithm; float32 still holds it, and a hundredth of it."""

LEAST_WEIGHT = 1e-2
"""Added to the weights of `entropy`, so that two subnets that know nothing count alike."""

RAMP = 0.02
"""How far from equality a comparison is decided in full."""

_CLASS_AXIS = 1


@dataclass(frozen=True, eq=False)
class Fused:
    """What a rule makes of the logits of two subnets.

    Attributes:
        log_probabilities: float64, shape (tiles, K, z, y, x): ln p, the FUSED_LOGITS of the model; their softmax is p,
            also for a sigmoid model.
        probabilities: float64, in [0, 1], shape (tiles, K, z, y, x), or (tiles, 1, z, y, x), the foreground, for
            sigmoid.
        uncertainty: float64, in [0, 1], shape (tiles, 1, z, y, x).
    """

    log_probabilities: Float64Array
    probabilities: Float64Array
    uncertainty: Float64Array


@dataclass(frozen=True, eq=False)
class _Subnets:
    """What the rules look at; probabilities of shape (tiles, K, z, y, x), all others (tiles, 1, z, y, x)."""

    p_a: Float64Array
    p_b: Float64Array
    evidence_a: Float64Array
    evidence_b: Float64Array

    @property
    def mean(self) -> Float64Array:
        return (self.p_a + self.p_b) / 2

    @property
    def uncertainties(self) -> tuple[Float64Array, Float64Array]:
        return _evidential(self.evidence_a), _evidential(self.evidence_b)


_Result = tuple[Float64Array, Float64Array]
"""Probabilities (tiles, K, z, y, x) and uncertainty (tiles, 1, z, y, x)."""


def fuse(
    rule: WeightFreeRule,
    logits_a: Float32Array,
    logits_b: Float32Array,
    activation: Literal["sigmoid", "softmax"],
    parameters: Mapping[str, float] | None = None,
) -> Fused:
    """Fuse the logits of two subnets by a rule; computed in float64.

    Args:
        rule: Which one.
        logits_a: float32, finite, shape (tiles, K, z, y, x), of subnet A.
        logits_b: The same of subnet B.
        activation: How the model's logits become probabilities. For ``sigmoid`` K is 2 and channel 1 is the foreground.
        parameters: Those that are not at their default: ``cost`` of coranet, more than 1; ``tau`` of burl, in (0, 1).

    Raises:
        ValueError: The rule has no such parameter, or it is out of range.
    """
    a, b = logits_a.astype(np.float64), logits_b.astype(np.float64)
    subnets = _Subnets(
        _softmax(_class_logits(a, activation)), _softmax(_class_logits(b, activation)), _softplus(a), _softplus(b)
    )
    probabilities, uncertainty = _RULES[rule](subnets, complete_parameters(rule, parameters or {}))
    return Fused(
        log_probabilities=_log(probabilities),
        probabilities=probabilities[:, 1:2] if activation == "sigmoid" else probabilities,
        uncertainty=uncertainty.clip(0.0, 1.0),
    )


def cost_thresholds(cost: float) -> tuple[float, float]:
    """Thresholds on a calibrated probability that misclassification costs of 1 : cost and cost : 1 amount to."""
    return 1.0 / (1.0 + cost), cost / (1.0 + cost)


def _mean(subnets: _Subnets, _: Mapping[str, float]) -> _Result:
    u_a, u_b = subnets.uncertainties
    return subnets.mean, (u_a + u_b) / 2


def _dempster(subnets: _Subnets, _: Mapping[str, float]) -> _Result:
    """Belief q / T and uncertainty w / T; T = 1 - conflict is the sum of all q and of w, so nothing is subtracted."""
    classes = subnets.p_a.shape[_CLASS_AXIS]
    u_a, u_b = subnets.uncertainties
    belief_a, belief_b = subnets.evidence_a * u_a / classes, subnets.evidence_b * u_b / classes
    q = belief_a * belief_b + belief_a * u_b + belief_b * u_a
    w = u_a * u_b
    total = q.sum(axis=_CLASS_AXIS, keepdims=True) + w
    return (q + w / classes) / total, w / total


def _entropy_weighted(subnets: _Subnets, _: Mapping[str, float]) -> _Result:
    weight_a, weight_b = (1.0 - _entropy(p) + LEAST_WEIGHT for p in (subnets.p_a, subnets.p_b))
    mixture = (weight_a * subnets.p_a + weight_b * subnets.p_b) / (weight_a + weight_b)
    return mixture, _entropy(subnets.mean)


def _coranet(subnets: _Subnets, parameters: Mapping[str, float]) -> _Result:
    """Graded: twice the share of the four masks that are in the minority, for the class where it is largest.

    A subnet that does not hold a single class to be possible has given no class: that is uncertain, too.
    """
    low, high = cost_thresholds(parameters["cost"])
    votes = sum(_exceeds(p, threshold) for p in (subnets.p_a, subnets.p_b) for threshold in (low, high))
    dissent = np.minimum(votes, 4.0 - votes).max(axis=_CLASS_AXIS, keepdims=True) / 2
    decided = [_exceeds(p.max(axis=_CLASS_AXIS, keepdims=True), low) for p in (subnets.p_a, subnets.p_b)]
    return subnets.mean, np.maximum(dissent, 1.0 - decided[0] * decided[1])


def _dual(subnets: _Subnets, _: Mapping[str, float]) -> _Result:
    """Half the sum of both KL divergences is half the sum of (p_A - p_B)(ln p_A - ln p_B), no term of it negative."""
    terms = (subnets.p_a - subnets.p_b) * (_log(subnets.p_a) - _log(subnets.p_b))
    agreement = np.exp(-0.5 * terms.sum(axis=_CLASS_AXIS, keepdims=True))
    u_a, u_b = subnets.uncertainties
    return _fallen_back(subnets, 1.0 - agreement, agreement, u_a, u_b), 1.0 - agreement


def _burl(subnets: _Subnets, parameters: Mapping[str, float]) -> _Result:
    uncertainty = _entropy(subnets.mean)
    high = _exceeds(uncertainty, parameters["tau"])
    return _fallen_back(subnets, high, 1.0 - high, _entropy(subnets.p_a), _entropy(subnets.p_b)), uncertainty


_RULES: Mapping[WeightFreeRule, Callable[[_Subnets, Mapping[str, float]], _Result]] = {
    "mean": _mean,
    "dempster": _dempster,
    "entropy": _entropy_weighted,
    "coranet": _coranet,
    "dual": _dual,
    "burl": _burl,
}


def _fallen_back(
    subnets: _Subnets, share: Float64Array, rest: Float64Array, of_a: Float64Array, of_b: Float64Array
) -> Float64Array:
    """To a share the subnet whose figure is the smaller one, for the rest the mean; the two sum to 1.

    Both weights are sums, so that a small one keeps its digits in float32.
    """
    weight_a = rest / 2 + share * _exceeds(of_b - of_a, 0.0)
    weight_b = rest / 2 + share * _exceeds(of_a - of_b, 0.0)
    fused: Float64Array = weight_a * subnets.p_a + weight_b * subnets.p_b
    return fused


def _exceeds(values: Float64Array, threshold: float) -> Float64Array:
    """1 above the threshold and 0 below it, with a straight line between, `RAMP` wide on each side."""
    share: Float64Array = ((values - threshold) / (2 * RAMP) + 0.5).clip(0.0, 1.0)
    return share


def _evidential(evidence: Float64Array) -> Float64Array:
    classes = evidence.shape[_CLASS_AXIS]
    uncertainty: Float64Array = classes / (evidence.sum(axis=_CLASS_AXIS, keepdims=True) + classes)
    return uncertainty


def _entropy(p: Float64Array) -> Float64Array:
    entropy: Float64Array = -(p * _log(p)).sum(axis=_CLASS_AXIS, keepdims=True) / np.log(p.shape[_CLASS_AXIS])
    return entropy


def _log(p: Float64Array) -> Float64Array:
    return np.log(np.maximum(p, LEAST_PROBABILITY))


def _class_logits(logits: Float64Array, activation: Literal["sigmoid", "softmax"]) -> Float64Array:
    """Logits whose softmax are the class probabilities: for sigmoid 0 and the foreground's own."""
    if activation == "softmax":
        return logits
    foreground = logits[:, 1:2]
    return np.concatenate((np.zeros_like(foreground), foreground), axis=_CLASS_AXIS)


def _softmax(logits: Float64Array) -> Float64Array:
    exponential = np.exp(logits - logits.max(axis=_CLASS_AXIS, keepdims=True))
    p: Float64Array = exponential / exponential.sum(axis=_CLASS_AXIS, keepdims=True)
    return p


def _softplus(logits: Float64Array) -> Float64Array:
    return np.logaddexp(0.0, logits)
