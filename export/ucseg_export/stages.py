"""The four stages of a trio as torch modules that take and give the tensors of a model folder's graphs.

A stage sees tiles of three spatial axes whatever the networks have: the tile of a 2D network is one slice.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ucseg_export.rewrites import (
    ScaledUpg,
    with_blocked_norms,
    with_folded_norms,
    without_dead_biases,
    without_dropouts,
)
from ucseg_runtime.backends.graphs import IMAGE, PROBABILITIES, UNCERTAINTY, channels_of, engine_tile_shape
from ucseg_runtime.manifest import ModelSpec
from ucseg_training.nets import DualNet, TrioConfig, uncertainty

_SLICE_AXIS = 2


class SubnetStage(nn.Module):
    """IMAGE to the logits of one subnet.

    Args:
        subnet: Gives an object with `logits`.
        dim: Spatial axes of the subnet.
    """

    def __init__(self, subnet: nn.Module, dim: int) -> None:
        super().__init__()
        self.subnet = subnet
        self.dim = dim

    def forward(self, image: Tensor) -> Tensor:
        """(tiles, K, *tile) from (tiles, channels, *tile)."""
        return _from_network(self.subnet(_to_network(image, self.dim)).logits, self.dim)


class UpgStage(nn.Module):
    """LOGITS_A and LOGITS_B to FUSED_LOGITS."""

    def __init__(self, upg: nn.Module, dim: int) -> None:
        super().__init__()
        self.upg = upg
        self.dim = dim

    def forward(self, logits_a: Tensor, logits_b: Tensor) -> Tensor:
        """(tiles, K, *tile) from two of the same shape."""
        return _from_network(self.upg(_to_network(logits_a, self.dim), _to_network(logits_b, self.dim)), self.dim)


class DecodeStage(nn.Module):
    """FUSED_LOGITS, LOGITS_A and LOGITS_B to PROBABILITIES and UNCERTAINTY.

    The read-out of the UPG needs the fused logits alone; the other two belong to the stage because other fusion rules
    read them.
    """

    def __init__(self, activation: str) -> None:
        super().__init__()
        self.activation = activation

    def forward(self, fused_logits: Tensor, logits_a: Tensor, logits_b: Tensor) -> tuple[Tensor, Tensor]:
        """Probabilities (tiles, K, *tile), or (tiles, 1, *tile) of the foreground; uncertainty (tiles, 1, *tile)."""
        if self.activation == "sigmoid":
            return torch.sigmoid(fused_logits[:, 1:2]), uncertainty(fused_logits)
        return torch.softmax(fused_logits, dim=1), uncertainty(fused_logits)


def inference_stages(net: DualNet) -> dict[str, nn.Module]:
    """The stages of a trio, rewritten for inference, by artifact key in the order in which they run.

    Args:
        net: Trained trio; copied, not changed.
    """
    config = net.config
    stages: dict[str, nn.Module] = {
        **subnet_stages(net),
        "upg": UpgStage(ScaledUpg(net.upg), config.dim),
        "decode": DecodeStage(config.activation),
    }
    return {key: stage.eval().requires_grad_(False) for key, stage in stages.items()}


def subnet_stages(net: DualNet) -> dict[str, nn.Module]:
    """The two stages from IMAGE to logits, rewritten for inference; the UPG has no part in them.

    Args:
        net: Trained; copied, not changed.
    """
    subnet_a = with_blocked_norms(with_folded_norms(without_dead_biases(without_dropouts(net.subnet_a))))
    stages = {
        "subnet_a": SubnetStage(subnet_a, net.config.dim),
        "subnet_b": SubnetStage(without_dropouts(net.subnet_b), net.config.dim),
    }
    return {key: stage.eval().requires_grad_(False) for key, stage in stages.items()}


def tensor_shape(tensor: str, sizes: TrioConfig | ModelSpec) -> tuple[int, ...]:
    """Channels and three sides of one of the tensors that graphs take and give."""
    if isinstance(sizes, ModelSpec):
        return channels_of(tensor, sizes), *engine_tile_shape(sizes.tiling)
    probabilities = 1 if sizes.activation == "sigmoid" else sizes.num_classes
    special = {IMAGE: sizes.in_channels, PROBABILITIES: probabilities, UNCERTAINTY: 1}
    sides = (1, *sizes.tile_shape) if sizes.dim == 2 else sizes.tile_shape
    return special.get(tensor, sizes.num_classes), *sides


def _to_network(tile: Tensor, dim: int) -> Tensor:
    return tile.squeeze(_SLICE_AXIS) if dim == 2 else tile


def _from_network(tile: Tensor, dim: int) -> Tensor:
    return tile.unsqueeze(_SLICE_AXIS) if dim == 2 else tile
