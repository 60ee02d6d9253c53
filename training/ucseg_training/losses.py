"""Losses of one set of logits against labels that may be partial.

A voxel's target is the set of classes that it may have: one class where it is labelled, several where only some classes
are known to be absent. With complete labels every formula is the ordinary one.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812  (torch's own convention)
from torch import Tensor

_DICE_EPSILON = 1e-5
_AU_EPSILON = 1e-10


@dataclass(frozen=True)
class PartialTarget:
    """What is known of each voxel.

    Attributes:
        label_map: int64, (tiles, z, y, x).
        allowed: bool, (tiles, K, z, y, x): the classes that the voxel may have.
    """

    label_map: Tensor
    allowed: Tensor

    @property
    def informative(self) -> Tensor:
        """bool, (tiles, z, y, x): voxels about which anything is known."""
        return ~self.allowed.all(dim=1)


def partial_target(label_map: Tensor, known: Tensor, num_classes: int) -> PartialTarget:
    """Allowed classes of every voxel.

    Args:
        label_map: int64, (tiles, z, y, x), 0 … num_classes − 1.
        known: int64, (tiles, z, y, x); bit k − 1 set where the presence of class k is known.
        num_classes: K, background included.
    """
    classes = torch.arange(num_classes).reshape(1, -1, 1, 1, 1)
    unknown = ((known[:, None] >> (classes - 1).clamp(min=0)) & 1) == 0
    unlabelled = (label_map == 0)[:, None]
    allowed = (unlabelled & (unknown | (classes == 0))) | (classes == label_map[:, None])
    return PartialTarget(label_map, allowed)


def partial_cross_entropy(logits: Tensor, target: PartialTarget) -> Tensor:
    """−log of the probability of all allowed classes together, mean over the informative voxels.

    Args:
        logits: float32, (tiles, K, z, y, x).
        target: Same tiles. Without a single informative voxel the loss is 0.
    """
    log_probabilities = F.log_softmax(logits, dim=1)
    allowed = log_probabilities.masked_fill(~target.allowed, -torch.inf)
    nll = -torch.logsumexp(allowed, dim=1)
    informative = target.informative
    return (nll * informative).sum() / informative.sum().clamp(min=1)


def partial_dice_loss(probabilities: Tensor, target: PartialTarget) -> Tensor:
    """1 − Dice of each foreground class over the voxels where its presence is known, mean over the classes present.

    Dice sums over all spatial axes. A class that occurs nowhere in the batch is left to the cross-entropy, since its
    Dice would punish every stray voxel like a missed organ.

    Args:
        probabilities: float32, (tiles, K, z, y, x), in [0, 1].
        target: Same tiles. Without a single labelled voxel the loss is 0.
    """
    classes = torch.arange(1, probabilities.shape[1]).reshape(1, -1, 1, 1, 1)
    truth = target.label_map[:, None] == classes  # (tiles, K - 1, z, y, x)
    decided = ~target.allowed[:, 1:] | truth
    space = (0, 2, 3, 4)
    foreground = probabilities[:, 1:]
    overlap = (foreground * truth).sum(dim=space)
    total = (foreground * decided).sum(dim=space) + truth.sum(dim=space)
    loss = 1.0 - (2.0 * overlap + _DICE_EPSILON) / (total + _DICE_EPSILON)  # (K - 1,)
    present = truth.sum(dim=space) > 0
    return (loss * present).sum() / present.sum().clamp(min=1)


def accuracy_versus_uncertainty(logits: Tensor, target: PartialTarget, progress: float) -> Tensor:
    """Asks for little uncertainty where the prediction is right and much where it is wrong.

    Args:
        logits: float32, (tiles, K, z, y, x).
        target: A prediction is right where its class is allowed.
        progress: Iteration / all iterations, in [0, 1].

    Source: behaviour of taozh2017/UCSeg 7251be6; mean over informative voxels only.
    """
    weight = 0.01 ** (1.0 - progress)
    alpha = F.softplus(logits) + 1.0  # (tiles, K, z, y, x)
    strength = alpha.sum(dim=1)  # (tiles, z, y, x)
    best, predicted = (alpha / strength[:, None]).max(dim=1)
    u = logits.shape[1] / strength
    right = target.allowed.gather(1, predicted[:, None])[:, 0]
    when_right = -best * torch.log(1.0 - u + _AU_EPSILON)
    when_wrong = -(1.0 - best) * torch.log(u + _AU_EPSILON)
    value = torch.where(right, weight * when_right, (1.0 - weight) * when_wrong)
    informative = target.informative
    return (value * informative).sum() / informative.sum().clamp(min=1)


def supervised_loss(logits: Tensor, target: PartialTarget, progress: float) -> Tensor:
    """Cross-entropy + Dice + accuracy-versus-uncertainty of one output.

    Args:
        logits: (tiles, K, z, y, x), any floating type; computed with in float32.
        target: Same tiles.
        progress: Iteration / all iterations, in [0, 1].
    """
    exact = logits.float()
    return (
        partial_cross_entropy(exact, target)
        + partial_dice_loss(F.softmax(exact, dim=1), target)
        + accuracy_versus_uncertainty(exact, target, progress)
    )
