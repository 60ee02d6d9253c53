"""Exact rewrites of a trained trio for inference; each gives a copy, and the trained networks stay as they are.

Source: batch norm with fixed statistics is affine, so it folds into the convolution before it; a constant in front of
an instance norm has no effect; the first convolution of the fusion head has no bias, so it commutes with the scale.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterator
from typing import TypeVar, cast

import torch
import torch.nn.functional as F  # noqa: N812  (torch's own convention)
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from ucseg_training.nets import Upg

Net = TypeVar("Net", bound=nn.Module)
Conv = nn.Conv2d | nn.Conv3d

_LEAKY_SLOPE = 0.2
_BLOCK_SIDE = 2
_RANK_3D = 5


def without_dropouts(net: Net) -> Net:
    """A copy in eval mode in which every dropout is an identity."""
    result = copy.deepcopy(net).eval()
    for parent, name, child in _children(result):
        if isinstance(child, nn.Dropout | nn.Dropout2d | nn.Dropout3d):
            setattr(parent, name, nn.Identity())
    return result


def without_dead_biases(net: Net) -> Net:
    """A copy in which convolutions right before an instance norm without parameters have no bias: the norm removes it.

    The norm subtracts the mean over the tile, and a bias shifts every voxel of a channel alike; padding does not
    interfere, because the bias is added after it.
    """
    result = copy.deepcopy(net)
    for conv, norm in _neighbours(result):
        if isinstance(norm, nn.InstanceNorm2d | nn.InstanceNorm3d) and not norm.affine:
            conv.bias = None
    return result


def with_folded_norms(net: Net) -> Net:
    """A copy in which every batch norm right after a convolution is part of that convolution."""
    result = copy.deepcopy(net)
    for sequence in [module for module in result.modules() if isinstance(module, nn.Sequential)]:
        for index, (layer, following) in enumerate(itertools.pairwise(sequence)):
            if isinstance(layer, Conv) and isinstance(following, nn.BatchNorm2d | nn.BatchNorm3d):
                sequence[index], sequence[index + 1] = _folded(layer, following), nn.Identity()
    return result


def with_blocked_norms(net: Net) -> Net:
    """A copy in which every instance norm without parameters is a `BlockedInstanceNorm`."""
    result = copy.deepcopy(net)
    for parent, name, child in _children(result):
        if isinstance(child, nn.InstanceNorm2d | nn.InstanceNorm3d) and not child.affine:
            setattr(parent, name, BlockedInstanceNorm(child.eps))
    return result


class BlockedInstanceNorm(nn.Module):
    """Instance norm written out, with means taken over blocks, over blocks of those, and so on.

    Engines sum a whole channel in one float32. On real tiles, probabilities of the demo model then differ from those of
    float64 by up to 0.004 (ONNX Runtime 1.32) and 0.035 (OpenVINO 2026.4), most where a tile is nearly all air; with
    blocks by 6e-5. Means along one axis after the other would not do: OpenVINO joins them into one, and the whole into
    its own norm, but leaves average pooling as it is.

    Args:
        eps: Added to the variance.
    """

    def __init__(self, eps: float) -> None:
        super().__init__()
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """(x − mean) / sqrt(variance + eps) per tile and channel, same shape as x."""
        mean = _blocked_mean(x)
        centred = x - mean
        inverse = torch.rsqrt(_blocked_mean(centred * centred) + self.eps)
        # Not `centred * inverse`: a second use would make engines store it, which costs time and, in bfloat16, digits.
        return x * inverse - mean * inverse


class ScaledUpg(nn.Module):
    """The UPG with its scale applied after the first convolution of the head, and with the norms of the head folded.

    Scaling after the convolution is exact because that convolution has no bias, and saves the concatenation of scaled
    logits. The shift of the first norm is added after the scale, which must not reach it.

    Args:
        upg: Trained module; copied, not changed.
    """

    shift: Tensor

    def __init__(self, upg: Upg) -> None:
        super().__init__()
        self.upg = without_dropouts(upg)
        stages = [cast("nn.Sequential", stage) for stage in upg.final_head.children()]
        first, *rest = (_folded(cast("Conv", stage[0]), stage[1]) for stage in stages)
        self.register_buffer("shift", _bias(first).detach().reshape(1, -1, *[1] * upg.config.dim))
        first.bias = None
        self.first = first
        self.rest = nn.ModuleList(rest)

    def forward(self, logits_a: Tensor, logits_b: Tensor) -> Tensor:
        """Fused logits, as `Upg.forward` gives them."""
        return self.head(self.upg.scale(logits_a, logits_b), logits_a, logits_b)

    def head(self, scale: Tensor, logits_a: Tensor, logits_b: Tensor) -> Tensor:
        """Fused logits from the scale (tiles, 1, *spatial) and both logits (tiles, K, *spatial), voxel by voxel."""
        x: Tensor = self.first(torch.cat((logits_a, logits_b), dim=1))
        x = F.leaky_relu(scale * x + self.shift, _LEAKY_SLOPE)
        for conv in self.rest:
            x = F.leaky_relu(conv(x), _LEAKY_SLOPE)
        return x


def _blocked_mean(x: Tensor) -> Tensor:
    """Mean over the spatial axes, kept with length 1."""
    pool = F.avg_pool3d if x.ndim == _RANK_3D else F.avg_pool2d
    while all(side % _BLOCK_SIDE == 0 for side in x.shape[2:]):
        x = pool(x, _BLOCK_SIDE)
    return x.mean(dim=list(range(2, x.ndim)), keepdim=True)


def _folded(conv: Conv, norm: nn.Module) -> Conv:
    """In float64, because the quotient of a small variance would cost digits of every weight."""
    if not isinstance(norm, nn.BatchNorm2d | nn.BatchNorm3d):
        raise TypeError(f"cannot fold {type(norm).__name__} into a convolution")
    exact_conv, exact_norm = copy.deepcopy(conv).double().eval(), copy.deepcopy(norm).double().eval()
    return fuse_conv_bn_eval(exact_conv, exact_norm).to(conv.weight.dtype)


def _bias(conv: Conv) -> Tensor:
    if conv.bias is None:
        raise TypeError("a folded convolution has a bias")
    return conv.bias


def _children(net: nn.Module) -> Iterator[tuple[nn.Module, str, nn.Module]]:
    for parent in list(net.modules()):
        for name, child in list(parent.named_children()):
            yield parent, name, child


def _neighbours(net: nn.Module) -> Iterator[tuple[Conv, nn.Module]]:
    """Convolutions with the layer that follows them in a sequence."""
    for sequence in net.modules():
        if isinstance(sequence, nn.Sequential):
            for layer, following in itertools.pairwise(sequence):
                if isinstance(layer, Conv):
                    yield layer, following
