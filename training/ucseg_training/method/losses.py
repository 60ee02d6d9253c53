"""The elementary losses of one output: cross-entropy, Dice, accuracy versus uncertainty, differences of two outputs.

All of them take a `Readout`, which computes what they share once, and a target that may be partial.

Source of the formulas: behaviour of taozh2017/UCSeg 7251be6; for partial labels each is taken over what is known.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn.functional as F  # noqa: N812  (torch's own convention)
from torch import Tensor

from ucseg_training.method.config import AxisOrder, DiceRule
from ucseg_training.method.targets import PartialTarget
from ucseg_training.nets import Activation

_DICE_EPSILON = 1e-5
_AU_EPSILON = 1e-10
_SMALLEST_PROBABILITY = 1e-8
_GREATEST_PROBABILITY = 1.0 - 1e-7


@dataclass(frozen=True, eq=False)
class Readout:
    """Logits of one output with what the losses derive from them, each computed once.

    Attributes:
        logits: float32 or float64, contiguous, (tiles, K, *spatial).
        activation: How logits become probabilities.
    """

    logits: Tensor
    activation: Activation

    @classmethod
    def of(cls, logits: Tensor, activation: Activation) -> Readout:
        """The readout of logits of any floating type and memory format, computed with in float32 at least."""
        # Sums over space read the memory in steps of K otherwise, after channels-last convolutions.
        exact = logits.to(torch.promote_types(logits.dtype, torch.float32)).contiguous()
        return cls(exact, activation)

    # What is first asked for without gradient may be asked for again with it: the graph is made in any case.

    @cached_property
    def evidence(self) -> Tensor:
        """softplus(logits), (tiles, K, *spatial), at least 0."""
        with torch.set_grad_enabled(self.logits.requires_grad):
            return F.softplus(self.logits)

    @cached_property
    def log_probabilities(self) -> Tensor:
        """log_softmax(logits), (tiles, K, *spatial); for softmax alone."""
        with torch.set_grad_enabled(self.logits.requires_grad):
            return F.log_softmax(self.logits, dim=1)

    @cached_property
    def probabilities(self) -> Tensor:
        """(tiles, K, *spatial), in [0, 1]."""
        with torch.set_grad_enabled(self.logits.requires_grad):
            return self.logits.sigmoid() if self.activation == "sigmoid" else self.log_probabilities.exp()


def cross_entropy(readout: Readout, target: PartialTarget) -> Tensor:
    """Mean cross-entropy over what is known; 0 where nothing is.

    Args:
        readout: Sigmoid: binary cross-entropy, mean over known channels of all voxels. Softmax: −log of the probability
            of all allowed classes together, mean over the informative voxels.
        target: Same tiles.
    """
    if readout.activation == "sigmoid":
        # The same as −y log p − (1 − y) log(1 − p), without a logarithm of a rounded probability.
        return _mean(torch.addcmul(readout.evidence, readout.logits, target.values, value=-1.0), target)
    if target.complete:
        return -(readout.log_probabilities * target.values).sum() / _voxels(readout.logits)
    allowed = readout.log_probabilities.masked_fill(~target.allowed, -torch.inf)
    return _mean(-torch.logsumexp(allowed, dim=1), target)


def dice_loss(
    probabilities: Tensor, target: PartialTarget, rule: DiceRule = "tile", axis_order: AxisOrder = "zyx"
) -> Tensor:
    """1 − Dice, taken over the voxels where the presence of the channel is known, mean over what the rule separates.

    Args:
        probabilities: float32, (tiles, K, *spatial), in [0, 1].
        target: Same tiles. Without any known voxel the loss is 0.
        rule: `slice`: tile, channel and slice are separate, background included; in 2D the same as `tile`. `tile`:
            tile and channel. `batch`: foreground channels alone, summed over all tiles; a class that occurs nowhere is
            left to the cross-entropy, since its Dice would punish every stray voxel like a missed organ.
        axis_order: Order of the spatial axes in 3D.
    """
    present, known = target.values, None if target.complete else target.known
    if rule == "batch":
        probabilities, present = probabilities[:, 1:], present[:, 1:]
        known = None if known is None else known[:, 1:]
    axes = _summed_axes(probabilities.ndim, rule, axis_order)
    overlap = (probabilities * present).sum(dim=axes)
    predicted = (probabilities if known is None else probabilities * known).sum(dim=axes)
    true = present.sum(dim=axes)
    loss = 1.0 - (2.0 * overlap + _DICE_EPSILON) / (predicted + true + _DICE_EPSILON)
    if rule == "batch":
        return _masked_mean(loss, true > 0)
    return loss.mean() if known is None else _masked_mean(loss, known.sum(dim=axes) > 0)


def accuracy_versus_uncertainty(readout: Readout, target: PartialTarget, weight: float) -> Tensor:
    """Asks for little uncertainty where the prediction is right and much where it is wrong.

    Args:
        readout: The output to judge.
        target: A prediction is right where its class is allowed.
        weight: Of the rightly predicted voxels, in [0, 1]; the others have the rest.

    Returns:
        Mean over the informative voxels of −weight p ln(1 − u) where right, −(1 − weight)(1 − p) ln u where wrong, with
        p the greatest expected probability and u the uncertainty K / S.
    """
    alpha = readout.evidence + 1.0  # (tiles, K, *spatial)
    strength = alpha.sum(dim=1)  # S, (tiles, *spatial)
    greatest, predicted = alpha.max(dim=1)
    best = greatest / strength
    u = alpha.shape[1] / strength
    right = target.allowed.gather(1, predicted[:, None])[:, 0]
    factor = torch.where(right, weight * best, (1.0 - weight) * (1.0 - best))
    value = -factor * torch.log(torch.where(right, 1.0 - u, u) + _AU_EPSILON)
    return _mean(value, target)


def cross_subnet_difference(readout: Readout, other: Readout, compat: bool) -> Tensor:
    """Binary cross-entropy of one subnet's probabilities against the other's, which are constants.

    Args:
        readout: The subnet that is to follow. Its gradient is the only one.
        other: The subnet that is followed.
        compat: Whether to do as upstream: the last channel alone, and without any gradient, so that the value is a
            constant of the total. Otherwise the mean over all channels, and without upstream's limits on the
            probability, which would take the gradient from voxels that are sure and differ.
    """
    if compat:
        with torch.no_grad():
            p = readout.probabilities[:, -1].clamp(_SMALLEST_PROBABILITY, _GREATEST_PROBABILITY)
            return F.binary_cross_entropy(p, other.probabilities[:, -1])
    q = other.probabilities.detach()
    if readout.activation == "sigmoid":
        return torch.addcmul(readout.evidence, readout.logits, q, value=-1.0).mean()
    log_p = readout.log_probabilities
    log_rest = torch.log1p(-readout.probabilities.clamp(max=_GREATEST_PROBABILITY))  # log(1 − p) must stay finite
    # q log p + (1 − q) log(1 − p)
    return -torch.lerp(log_rest, log_p, q).mean()


def mean_squared_difference(readout: Readout, probabilities: Tensor) -> Tensor:
    """Mean over all elements of the squared difference from probabilities that are constants: the teacher's."""
    return F.mse_loss(readout.probabilities, probabilities.detach())


def supervised_parts(
    readout: Readout, target: PartialTarget, weight: float, rule: DiceRule, axis_order: AxisOrder
) -> dict[str, Tensor]:
    """The three losses of an output against labels, by name; their sum is the supervised loss.

    Args:
        readout: The output.
        target: The labels.
        weight: As for `accuracy_versus_uncertainty`.
        rule: As for `dice_loss`.
        axis_order: As for `dice_loss`.
    """
    parts = hard_parts(readout, target, rule, axis_order)
    return parts | {"accuracy_versus_uncertainty": accuracy_versus_uncertainty(readout, target, weight)}


def hard_parts(readout: Readout, target: PartialTarget, rule: DiceRule, axis_order: AxisOrder) -> dict[str, Tensor]:
    """The two losses of an output against pseudo-labels, by name."""
    return {
        "cross_entropy": cross_entropy(readout, target),
        "dice": dice_loss(readout.probabilities, target, rule, axis_order),
    }


def _summed_axes(ndim: int, rule: DiceRule, axis_order: AxisOrder) -> tuple[int, ...]:
    space = tuple(range(2, ndim))
    if rule == "batch":
        return (0, *space)
    if rule == "slice" and len(space) == 3:
        return space[1:] if axis_order == "zyx" else space[:2]
    return space


def _mean(values: Tensor, target: PartialTarget) -> Tensor:
    """Mean over the known channels of values per channel, and over the informative voxels of values per voxel."""
    if target.complete:
        return values.mean()
    return _masked_mean(values, target.known if values.ndim == target.present.ndim else target.informative)


def _masked_mean(values: Tensor, chosen: Tensor) -> Tensor:
    """Mean over the chosen elements; 0, with a gradient of 0, where there are none."""
    return (values * chosen).sum() / chosen.sum().clamp(min=1)


def _voxels(logits: Tensor) -> int:
    return logits.numel() // logits.shape[1]
