"""What is known of each voxel: a class, a set of classes that it may have, or nothing.

Labels are known channel by channel: a channel is present, absent or unknown. Complete labels are the special case
without unknown channels, and cost no more than they would alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class PartialTarget:
    """What is known of each voxel.

    Attributes:
        present: bool, (tiles, K, *spatial): channels that are known to be 1.
        allowed: bool, the same shape: channels that may be 1; a channel that is not allowed is known to be 0. The very
            tensor `present` where the labels are complete.
    """

    present: Tensor
    allowed: Tensor

    @property
    def complete(self) -> bool:
        """Whether every channel of every voxel is known."""
        return self.allowed is self.present

    @cached_property
    def values(self) -> Tensor:
        """float32, (tiles, K, *spatial): 1 where a channel is known to be present."""
        return self.present.float()

    @cached_property
    def known(self) -> Tensor:
        """bool, (tiles, K, *spatial): channels that are known to be 0 or 1."""
        return self.present | ~self.allowed

    @cached_property
    def informative(self) -> Tensor:
        """bool, (tiles, *spatial): voxels about which anything is known."""
        return ~self.allowed.all(dim=1)

    @property
    def label_map(self) -> Tensor:
        """int64, (tiles, *spatial): the class of each voxel, 0 where it is not known."""
        return self.present.byte().max(dim=1).indices


def complete_target(channels: Tensor) -> PartialTarget:
    """A target of which every channel is known.

    Args:
        channels: bool, (tiles, K, *spatial). Not necessarily one-hot.
    """
    return PartialTarget(channels, channels)


def one_hot_target(label_map: Tensor, num_classes: int) -> PartialTarget:
    """A target with one known class per voxel.

    Args:
        label_map: Integers, (tiles, *spatial), 0 … num_classes − 1.
        num_classes: K, background included.
    """
    return complete_target(_one_hot(label_map, num_classes))


def partial_target(label_map: Tensor, known: Tensor, num_classes: int) -> PartialTarget:
    """A target where the absence of a class may be unknown.

    Args:
        label_map: int64, (tiles, *spatial), 0 … num_classes − 1.
        known: int64, (tiles, *spatial); bit k − 1 set where the presence of class k is known.
        num_classes: K, background included.

    Returns:
        A labelled voxel has its class; an unlabelled one may have background and every class that is not known there.
    """
    one_hot = _one_hot(label_map, num_classes)
    classes = _classes(label_map, num_classes)
    unknown = ((known[:, None] >> (classes - 1).clamp(min=0)) & 1) == 0
    unlabelled = one_hot[:, :1]
    allowed = (unlabelled & (unknown | (classes == 0))) | one_hot
    # An unlabelled voxel is background only where no class can be there.
    present = torch.cat((unlabelled & ~allowed[:, 1:].any(dim=1, keepdim=True), one_hot[:, 1:]), dim=1)
    return PartialTarget(present, allowed)


def _one_hot(label_map: Tensor, num_classes: int) -> Tensor:
    return label_map[:, None] == _classes(label_map, num_classes)


def _classes(label_map: Tensor, num_classes: int) -> Tensor:
    return torch.arange(num_classes, device=label_map.device).reshape(-1, *[1] * (label_map.ndim - 1))
