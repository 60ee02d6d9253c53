"""Contrast of the features of both subnets: cells of one against those of the other, and prototypes against queues.

Both terms are InfoNCE: a cross-entropy over similarities divided by a temperature, with one positive. In compat the
similarity is the plain dot product and a prototype grows with the area of its mask. In the fixed form prototypes are
means over their mask and of unit length. So are the cells of the patch term there: its dot products otherwise scale
with the activations of two networks of which one has no normalisation, so that the same temperature means something
else for either term, and both subnets could lower the loss by growing their features instead of agreeing.

Source: behaviour of taozh2017/UCSeg 7251be6.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812  (torch's own convention)
from torch import Tensor

from ucseg_training.method.queues import LEVELS, PrototypeQueue

_CELLS = 3
"""Cells of the patch term along every axis."""

_SHORTEST = 1e-4
"""Length below which a vector is not brought to length 1, since its gradient grows with the inverse of its length."""

_INTERPOLATION = {2: "bilinear", 3: "trilinear"}


def deepest(features: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """The features that are contrasted, deepest first, in float32.

    Args:
        features: Five maps of a subnet, full to 1/16 resolution.

    Returns:
        Three maps, at 1/16, 1/8 and 1/4 resolution.
    """
    return tuple(feature.float() for feature in features[: -LEVELS - 1 : -1])


def patch_term(features_a: Tensor, features_b: Tensor, temperature: float, compat: bool) -> Tensor:
    """How well a cell of subnet A's features picks the same cell of subnet B's out of all other places.

    Args:
        features_a: float32, (tiles, channels, *spatial).
        features_b: The same shape. Gradients reach both.
        temperature: Divides the similarities.
        compat: Whether similarities are plain dot products; otherwise cosines.

    Returns:
        Mean over tiles and cells. Negatives of a cell are subnet B's cells elsewhere, of every tile of the batch; the
        same place in another tile is neither.
    """
    asking, answering = _cells(features_a, compat), _cells(features_b, compat)  # (tiles, cells, channels)
    tiles, cells, _ = asking.shape
    similarity = asking.flatten(0, 1) @ answering.flatten(0, 1).T / temperature  # (tiles · cells, tiles · cells)
    place = torch.arange(cells, device=similarity.device).repeat(tiles)
    same_place = (place[:, None] == place).fill_diagonal_(False)
    own = torch.arange(tiles * cells, device=similarity.device)
    return F.cross_entropy(similarity.masked_fill(same_place, -torch.inf), own)


def masks_of_size(masks: Tensor, shape: Sequence[int]) -> Tensor:
    """Masks at the size of a feature map.

    Args:
        masks: float32, (tiles, K, *spatial), in [0, 1].
        shape: Spatial shape of the features.

    Returns:
        bool, (tiles, K, *shape): where the interpolated mask exceeds one half.
    """
    return F.interpolate(masks, size=tuple(shape), mode=_INTERPOLATION[len(shape)], align_corners=False) > 0.5


@dataclass(frozen=True, eq=False)
class Prototypes:
    """One vector per tile and class.

    Attributes:
        vectors: float32, (tiles, K, channels).
        occupied: bool, (tiles, K): whether the class has a voxel in the tile. The vector is 0 where it has none.
    """

    vectors: Tensor
    occupied: Tensor


def prototypes(features: Tensor, masks: Tensor, compat: bool) -> Prototypes:
    """The features of every class.

    Args:
        features: float32, (tiles, channels, *spatial).
        masks: float32, (tiles, K, *spatial of the tile), in [0, 1].
        compat: Whether vectors are the mean of feature × mask over all positions, so that they scale with the area;
            otherwise the mean over the mask, brought to unit length.
    """
    mask = masks_of_size(masks, features.shape[2:]).flatten(2).to(features.dtype)  # (tiles, K, positions)
    area = mask.sum(dim=2)
    sums = mask @ features.flatten(2).transpose(1, 2)  # (tiles, K, channels)
    if compat:
        vectors = sums / mask.shape[2]
    else:
        vectors = F.normalize(sums / area.clamp(min=1.0)[..., None], dim=2, eps=_SHORTEST)
    return Prototypes(vectors, area > 0)


def prototype_term(found: Prototypes, queue: PrototypeQueue, temperature: float, compat: bool) -> Tensor:
    """How well the prototypes of a batch pick the mean of their class's queue out of all entries of other classes.

    Args:
        found: Of the subnet's own prediction.
        queue: Its constants.
        temperature: Divides the similarities.
        compat: Whether every tile and class counts. Otherwise a class counts in the tiles that show it, once its own
            queue and one of another class hold something.

    Returns:
        Mean over the tiles and classes that count; 0, with a gradient of 0, where none does.
    """
    vectors, written = found.vectors, queue.written
    num_classes = vectors.shape[1]
    positive = (vectors * queue.means).sum(dim=2, keepdim=True)  # (tiles, K, 1)
    similarity = torch.einsum("bkc,jcs->bkjs", vectors, queue.vectors)
    other_class = ~torch.eye(num_classes, dtype=torch.bool, device=vectors.device)
    negative = other_class[:, :, None] & written  # (K, K, slots)
    logits = torch.cat((positive, similarity.masked_fill(~negative, -torch.inf).flatten(2)), dim=2) / temperature
    loss = torch.logsumexp(logits, dim=2) - logits[..., 0]  # (tiles, K)
    if compat:
        return loss.mean()
    counts = found.occupied & written.any(dim=1) & negative.any(dim=2).any(dim=1)
    return (loss * counts).sum() / counts.sum().clamp(min=1)


def _cells(features: Tensor, compat: bool) -> Tensor:
    """(tiles, cells, channels): means over a grid of cells."""
    dim = features.ndim - 2
    pooled = F.adaptive_avg_pool2d(features, _CELLS) if dim == 2 else F.adaptive_avg_pool3d(features, _CELLS)
    vectors = pooled.flatten(2).transpose(1, 2)
    return vectors if compat else F.normalize(vectors, dim=2, eps=_SHORTEST)
