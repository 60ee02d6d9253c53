"""Hard labels from probabilities, without gradient: targets of unlabelled tiles and masks of the prototypes.

Source: behaviour of taozh2017/UCSeg 7251be6.
"""

from __future__ import annotations

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

from ucseg_runtime.arrays import BoolArray
from ucseg_training.method.config import Method
from ucseg_training.method.targets import PartialTarget, complete_target


def pseudo_labels(probabilities: Tensor, method: Method) -> PartialTarget:
    """What unlabelled tiles are taken to show.

    Sigmoid: foreground decides (largest component of p ≥ 0.5, or p > 0.5 where components are kept), and background is
    the rest. Softmax: the greatest, largest component of each class if asked for, and background is the rest. In compat
    without components every channel decides for itself, so that a voxel can have both channels or none.

    Args:
        probabilities: (tiles, K, *spatial), in [0, 1].
        method: Says the activation, the mode and whether the largest component alone is kept.

    Returns:
        A complete target, one-hot but for compat without components.
    """
    probabilities = probabilities.detach()
    if method.largest_component:
        return complete_target(_largest_component_labels(probabilities, method))
    if method.compat:
        return complete_target(probabilities > 0.5)
    if method.sigmoid:
        return complete_target(_with_background(probabilities[:, 1:] > 0.5))
    return complete_target(_greatest(probabilities))


def prototype_masks(probabilities: Tensor, method: Method) -> Tensor:
    """Which voxels a subnet's prediction gives to each class, before it is brought to the size of the features.

    Args:
        probabilities: (tiles, K, *spatial), in [0, 1].
        method: As for `pseudo_labels`.

    Returns:
        float32, (tiles, K, *spatial), in [0, 1]: largest components, or without them the probabilities themselves;
        outside compat, sigmoid background is then what foreground leaves.
    """
    probabilities = probabilities.detach().float()
    if method.largest_component:
        return _largest_component_labels(probabilities, method).float()
    if method.sigmoid and not method.compat:
        foreground = probabilities[:, 1:]
        return torch.cat((1.0 - foreground, foreground), dim=1)
    return probabilities


def largest_components(masks: Tensor) -> Tensor:
    """The largest component of every mask; of equally large ones the first in index order.

    Args:
        masks: bool, (masks, *spatial). Voxels that share a corner belong together: 26 neighbours in 3D, 8 in 2D.

    Returns:
        bool, the same shape and device. An empty mask stays empty.
    """
    kept = _largest_components(masks.cpu().numpy())
    return torch.from_numpy(kept).to(masks.device)


def _largest_components(masks: BoolArray) -> BoolArray:
    # All masks at once, as one array in which neighbours along the first axis do not touch. Components are numbered in
    # index order, so those of one mask are a range.
    structure = np.zeros((3,) * masks.ndim, dtype=bool)
    structure[1] = True
    components, _ = ndimage.label(np.ascontiguousarray(masks), structure=structure)
    voxels = np.bincount(components.ravel())
    last = np.maximum.accumulate(components.reshape(len(masks), -1).max(axis=1))
    first = np.concatenate(([0], last[:-1])) + 1
    # −1 is the number of no component: an empty mask keeps nothing.
    largest = [a + voxels[a : b + 1].argmax() if b >= a else -1 for a, b in zip(first, last, strict=True)]
    kept: BoolArray = components == np.asarray(largest).reshape(-1, *[1] * (masks.ndim - 1))
    return kept


def _largest_component_labels(probabilities: Tensor, method: Method) -> Tensor:
    foreground = probabilities[:, 1:] >= 0.5 if method.sigmoid else _greatest(probabilities)[:, 1:]
    return _with_background(largest_components(foreground.flatten(0, 1)).reshape(foreground.shape))


def _with_background(foreground: Tensor) -> Tensor:
    return torch.cat((~foreground.any(dim=1, keepdim=True), foreground), dim=1)


def _greatest(probabilities: Tensor) -> Tensor:
    """bool, one-hot; the first of equal channels wins."""
    best = probabilities.max(dim=1, keepdim=True).indices  # argmax is ten times slower over this axis on a CPU
    return torch.zeros_like(probabilities, dtype=torch.bool).scatter_(1, best, True)
