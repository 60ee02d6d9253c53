"""The weight-free fusion rules as torch modules: `upg` and `decode` of a model folder, without weights.

They compute what `ucseg_runtime.fusion_rules` computes, whose docstring says what each rule is. Probabilities go
through a softmax for sigmoid models too: a logarithm shows digits that engines' approximations of a sigmoid lack.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812  (torch's own convention)
from torch import Tensor, nn

from ucseg_runtime.fusion_names import WeightFreeRule, complete_parameters
from ucseg_runtime.fusion_rules import LEAST_PROBABILITY, LEAST_WEIGHT, RAMP, cost_thresholds

Weight = Tensor | float


@dataclass(frozen=True)
class FusionChoice:
    """A rule with what its graphs depend on.

    Attributes:
        rule: Which one.
        activation: How the model's logits become probabilities.
        parameters: All of the rule's.
    """

    rule: WeightFreeRule
    activation: str
    parameters: Mapping[str, float]


def fusion_stages(rule: WeightFreeRule, activation: str, parameters: Mapping[str, float]) -> dict[str, nn.Module]:
    """The stages `upg` and `decode` of a rule.

    Args:
        rule: Which one.
        activation: Of the model.
        parameters: Those that are not at their default.

    Raises:
        ValueError: The rule has no such parameter, or it is out of range.
    """
    choice = FusionChoice(rule, activation, complete_parameters(rule, parameters))
    return {"upg": FusionStage(choice).eval(), "decode": FusionDecodeStage(choice).eval()}


class FusionStage(nn.Module):
    """LOGITS_A and LOGITS_B to FUSED_LOGITS, the logarithm of the fused probabilities."""

    def __init__(self, choice: FusionChoice) -> None:
        super().__init__()
        self.choice = choice

    def forward(self, logits_a: Tensor, logits_b: Tensor) -> Tensor:
        """(tiles, K, *tile) from two of the same shape."""
        if self.choice.rule == "dempster":
            return _log(_dempster(logits_a, logits_b)[0])
        p_a, p_b = (_probabilities(logits, self.choice.activation) for logits in (logits_a, logits_b))
        weight_a, weight_b = self._weights(p_a, p_b, logits_a, logits_b)
        return _log(weight_a * p_a + weight_b * p_b)

    def _weights(self, p_a: Tensor, p_b: Tensor, logits_a: Tensor, logits_b: Tensor) -> tuple[Weight, Weight]:
        """Of both subnets: (tiles, 1, *tile) in [0, 1], or one number for all voxels; together 1."""
        rule = self.choice.rule
        if rule == "entropy":
            weight_a, weight_b = (1.0 - _entropy(p) + LEAST_WEIGHT for p in (p_a, p_b))
            return weight_a / (weight_a + weight_b), weight_b / (weight_a + weight_b)
        if rule == "dual":
            agreement = _agreement(p_a, p_b)
            return _fallen_back(1.0 - agreement, agreement, _evidential(logits_a), _evidential(logits_b))
        if rule == "burl":
            high = _exceeds(_entropy((p_a + p_b) / 2), self.choice.parameters["tau"])
            return _fallen_back(high, 1.0 - high, _entropy(p_a), _entropy(p_b))
        return 0.5, 0.5


class FusionDecodeStage(nn.Module):
    """FUSED_LOGITS, LOGITS_A and LOGITS_B to PROBABILITIES and UNCERTAINTY."""

    def __init__(self, choice: FusionChoice) -> None:
        super().__init__()
        self.choice = choice

    def forward(self, fused_logits: Tensor, logits_a: Tensor, logits_b: Tensor) -> tuple[Tensor, Tensor]:
        """Probabilities (tiles, K, *tile), or (tiles, 1, *tile) of the foreground; uncertainty (tiles, 1, *tile)."""
        probabilities = torch.softmax(fused_logits, dim=1)
        if self.choice.activation == "sigmoid":
            probabilities = probabilities[:, 1:2]
        return probabilities, self._uncertainty(logits_a, logits_b).clamp(0.0, 1.0)

    def _uncertainty(self, logits_a: Tensor, logits_b: Tensor) -> Tensor:
        rule = self.choice.rule
        if rule == "mean":
            return (_evidential(logits_a) + _evidential(logits_b)) / 2
        if rule == "dempster":
            return _dempster(logits_a, logits_b)[1]
        p_a, p_b = (_probabilities(logits, self.choice.activation) for logits in (logits_a, logits_b))
        if rule == "coranet":
            return _dissent(p_a, p_b, *cost_thresholds(self.choice.parameters["cost"]))
        if rule == "dual":
            return 1.0 - _agreement(p_a, p_b)
        return _entropy((p_a + p_b) / 2)


def _dempster(logits_a: Tensor, logits_b: Tensor) -> tuple[Tensor, Tensor]:
    """Probabilities and uncertainty of the reduced combination."""
    classes = logits_a.shape[1]
    u_a, u_b = _evidential(logits_a), _evidential(logits_b)
    belief_a, belief_b = F.softplus(logits_a) * u_a / classes, F.softplus(logits_b) * u_b / classes
    q = belief_a * belief_b + belief_a * u_b + belief_b * u_a
    w = u_a * u_b
    total = q.sum(dim=1, keepdim=True) + w
    return (q + w / classes) / total, w / total


def _dissent(p_a: Tensor, p_b: Tensor, low: float, high: float) -> Tensor:
    """Twice the share of the four masks in the minority, largest of the classes; 1 where one has no class."""
    votes = _exceeds(p_a, low) + _exceeds(p_a, high) + _exceeds(p_b, low) + _exceeds(p_b, high)
    dissent = torch.minimum(votes, 4.0 - votes).amax(dim=1, keepdim=True) / 2
    decided_a, decided_b = (_exceeds(p.amax(dim=1, keepdim=True), low) for p in (p_a, p_b))
    return torch.maximum(dissent, 1.0 - decided_a * decided_b)


def _agreement(p_a: Tensor, p_b: Tensor) -> Tensor:
    """exp(-symmetric KL divergence)."""
    return torch.exp(-0.5 * ((p_a - p_b) * (_log(p_a) - _log(p_b))).sum(dim=1, keepdim=True))


def _fallen_back(share: Tensor, rest: Tensor, of_a: Tensor, of_b: Tensor) -> tuple[Tensor, Tensor]:
    """Weights of both subnets: to a share the one whose figure is the smaller one, for the rest both alike."""
    smaller_a, smaller_b = _exceeds(of_b - of_a, 0.0), _exceeds(of_a - of_b, 0.0)
    return rest / 2 + share * smaller_a, rest / 2 + share * smaller_b


def _exceeds(values: Tensor, threshold: float) -> Tensor:
    return ((values - threshold) * (0.5 / RAMP) + 0.5).clamp(0.0, 1.0)


def _evidential(logits: Tensor) -> Tensor:
    classes = logits.shape[1]
    return classes / (F.softplus(logits).sum(dim=1, keepdim=True) + classes)


def _entropy(p: Tensor) -> Tensor:
    return (p * _log(p)).sum(dim=1, keepdim=True) * (-1.0 / math.log(p.shape[1]))


def _log(p: Tensor) -> Tensor:
    return torch.log(p.clamp(min=LEAST_PROBABILITY))


def _probabilities(logits: Tensor, activation: str) -> Tensor:
    """Of all classes; for sigmoid 1 - p and p of the foreground."""
    if activation == "sigmoid":
        foreground = logits[:, 1:2]
        logits = torch.cat((torch.zeros_like(foreground), foreground), dim=1)
    return torch.softmax(logits, dim=1)
