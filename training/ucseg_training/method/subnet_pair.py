"""What both subnets make of the same tiles, and the terms that compare the two with each other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ucseg_training.method.config import Method
from ucseg_training.method.contrast import deepest, patch_term, prototype_term, prototypes
from ucseg_training.method.losses import Readout, cross_subnet_difference
from ucseg_training.method.pseudo_labels import prototype_masks
from ucseg_training.method.queues import LEVELS, PrototypeQueues
from ucseg_training.nets import Activation, SubnetOutput

SUBNETS = ("a", "b")


@dataclass(frozen=True, eq=False)
class SubnetPair:
    """Both subnets on one batch.

    Attributes:
        groups: Readouts of subnet A and B for every part of the batch that has a target of its own, in batch order.
        features: Contrasted features of subnet A and B for the whole batch, deepest first.
    """

    groups: tuple[tuple[Readout, Readout], ...]
    features: tuple[tuple[Tensor, ...], tuple[Tensor, ...]]

    @classmethod
    def of(cls, a: SubnetOutput, b: SubnetOutput, sizes: Sequence[int], activation: Activation) -> SubnetPair:
        """The pair of two outputs, taken apart into groups of so many tiles each."""
        split_a, split_b = (torch.split(output.logits, list(sizes)) for output in (a, b))
        groups = tuple(
            (Readout.of(logits_a, activation), Readout.of(logits_b, activation))
            for logits_a, logits_b in zip(split_a, split_b, strict=True)
        )
        return cls(groups, (deepest(a.features), deepest(b.features)))

    def probabilities(self, subnet: int) -> Tensor:
        """Of the whole batch, (tiles, K, *spatial), without gradient."""
        return torch.cat([group[subnet].probabilities.detach() for group in self.groups])


@dataclass(frozen=True, eq=False)
class ContrastTerms:
    """Means over the levels, scalars.

    Attributes:
        patch: Subnet A's cells against subnet B's.
        prototype: Prototypes of subnet A and B against their queues.
    """

    patch: Tensor
    prototype: tuple[Tensor, Tensor]


def difference_terms(pair: SubnetPair, compat: bool) -> tuple[Tensor, Tensor]:
    """Difference of subnet A from B and of B from A, mean over the whole batch."""
    tiles = torch.tensor([len(a.logits) for a, _ in pair.groups], dtype=torch.float32)
    shares = (tiles / tiles.sum()).tolist()
    of_a = [share * cross_subnet_difference(a, b, compat) for share, (a, b) in zip(shares, pair.groups, strict=True)]
    of_b = [share * cross_subnet_difference(b, a, compat) for share, (a, b) in zip(shares, pair.groups, strict=True)]
    return torch.stack(of_a).sum(), torch.stack(of_b).sum()


def contrast_terms(pair: SubnetPair, queues: PrototypeQueues, method: Method) -> ContrastTerms:
    """Both contrastive terms of a batch; the queues are read."""
    temperature, compat = method.config.temperature, method.compat
    patch = [patch_term(a, b, temperature, compat) for a, b in zip(*pair.features, strict=True)]
    return ContrastTerms(
        torch.stack(patch).mean(),
        (_prototype_term(pair, 0, queues, method), _prototype_term(pair, 1, queues, method)),
    )


def write_prototypes(pair: SubnetPair, subnet: int, labels: Tensor, queues: PrototypeQueues, compat: bool) -> None:
    """Put the prototypes of one subnet's features under labels into its queues.

    Args:
        pair: The batch.
        subnet: 0 for A, 1 for B.
        labels: bool, (tiles, K, *spatial): what each tile of the batch shows.
        queues: Written to.
        compat: As for `prototypes`.
    """
    masks = labels.float()
    for level in range(LEVELS):
        found = prototypes(pair.features[subnet][level].detach(), masks, compat)
        queues.of(subnet, level).write(found.vectors, found.occupied)


def _prototype_term(pair: SubnetPair, subnet: int, queues: PrototypeQueues, method: Method) -> Tensor:
    masks = prototype_masks(pair.probabilities(subnet), method)
    terms = [
        prototype_term(
            prototypes(features, masks, method.compat),
            queues.of(subnet, level),
            method.config.temperature,
            method.compat,
        )
        for level, features in enumerate(pair.features[subnet])
    ]
    return torch.stack(terms).mean()
