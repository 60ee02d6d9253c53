"""The UPG: cross-attention over the uncertainty of both subnets scales their logits, and a pointwise head fuses them.

Source: behaviour of taozh2017/UCSeg 7251be6.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F  # noqa: N812  (torch's own convention)
from torch import Tensor, nn

from ucseg_training.nets.config import TrioConfig

_DROPOUT = 0.1
_CONV: dict[int, type[nn.Conv2d] | type[nn.Conv3d]] = {2: nn.Conv2d, 3: nn.Conv3d}
_NORM: dict[int, type[nn.BatchNorm2d] | type[nn.BatchNorm3d]] = {2: nn.BatchNorm2d, 3: nn.BatchNorm3d}


def uncertainty(logits: Tensor) -> Tensor:
    """K / S with S = sum over classes of softplus(logit) + 1: the share of the evidence that is missing.

    Args:
        logits: (tiles, K, *spatial), any floating type.

    Returns:
        (tiles, 1, *spatial) in (0, 1), float32 (float64 for float64 logits); towards 1 = no evidence. Not
        calibrated.

    Source: behaviour of taozh2017/UCSeg 7251be6.
    """
    # Half precision has too few digits for a sum of K values near one, and the sum decides the result.
    exact = logits.to(torch.promote_types(logits.dtype, torch.float32))
    strength = (F.softplus(exact) + 1.0).sum(dim=1, keepdim=True)  # S, (tiles, 1, *spatial)
    return logits.shape[1] / strength


def tokens_from_map(values: Tensor, token_side: int) -> Tensor:
    """The map cut into non-overlapping cubes (squares in 2D), each one flattened.

    Args:
        values: (tiles, channels, *spatial), sides multiples of token_side.
        token_side: Side of a token in voxels.

    Returns:
        (tiles, tokens, token_side**dim * channels). Tokens are in row-major order over the grid, voxels of a token in
        row-major order, channels fastest.
    """
    dim = values.ndim - 2
    split = [values.shape[0], values.shape[1]]
    for side in values.shape[2:]:
        split += [side // token_side, token_side]
    cells = values.reshape(split)  # (tiles, channels, grid 1, side, grid 2, side, ...)
    grid_axes = [2 + 2 * axis for axis in range(dim)]
    voxel_axes = [3 + 2 * axis for axis in range(dim)]
    ordered = cells.permute(0, *grid_axes, *voxel_axes, 1)
    return ordered.flatten(1 + dim).flatten(1, dim)


def map_from_tokens(tokens: Tensor, token_grid: Sequence[int], token_side: int) -> Tensor:
    """The inverse of `tokens_from_map`.

    Args:
        tokens: (tiles, tokens, token_side**dim * channels).
        token_grid: Tokens along each spatial axis.
        token_side: Side of a token in voxels.

    Returns:
        (tiles, channels, *spatial).
    """
    dim = len(token_grid)
    channels = tokens.shape[2] // token_side**dim
    cells = tokens.reshape(tokens.shape[0], *token_grid, *[token_side] * dim, channels)
    interleaved = [axis for pair in zip(range(1, 1 + dim), range(1 + dim, 1 + 2 * dim), strict=True) for axis in pair]
    ordered = cells.permute(0, 1 + 2 * dim, *interleaved)  # (tiles, channels, grid 1, side, grid 2, side, ...)
    return ordered.reshape(tokens.shape[0], channels, *(cells_along * token_side for cells_along in token_grid))


class Upg(nn.Module):
    """Fuses the logits of subnet A and subnet B into one set of logits.

    The last stage of the head ends in batch norm and leaky ReLU, so a fused logit is positive exactly where the norm's
    output is, and negative ones are compressed fivefold.

    Args:
        config: Sizes; the position table fits `config.tile_shape` only.
    """

    def __init__(self, config: TrioConfig) -> None:
        super().__init__()
        self.config = config
        self.cross_attn = _UncertaintyAttention(config)
        self.final_head = _FusionHead(config)

    def forward(self, logits_a: Tensor, logits_b: Tensor) -> Tensor:
        """Fused logits. The order of the arguments matters: A asks, B answers.

        Args:
            logits_a: (tiles, K, *tile_shape), raw, of subnet A.
            logits_b: The same of subnet B.

        Returns:
            (tiles, K, *tile_shape).

        Raises:
            ValueError: A shape differs from (tiles, K, *tile_shape).
        """
        scale = self.scale(logits_a, logits_b)
        fused: Tensor = self.final_head(torch.cat((scale * logits_a, scale * logits_b), dim=1))
        return fused

    def scale(self, logits_a: Tensor, logits_b: Tensor) -> Tensor:
        """The factor per voxel that the attention gives to both subnets' logits: (tiles, 1, *tile_shape), any sign.

        Raises:
            ValueError: A shape differs from (tiles, K, *tile_shape).
        """
        self._check("logits_a", logits_a)
        self._check("logits_b", logits_b)
        scale: Tensor = self.cross_attn(uncertainty(logits_a), uncertainty(logits_b))
        return scale

    def _check(self, name: str, logits: Tensor) -> None:
        expected = (self.config.num_classes, *self.config.tile_shape)
        if tuple(logits.shape[1:]) != expected:
            raise ValueError(
                f"Upg: {name} has shape {tuple(logits.shape)}; expected (tiles, {', '.join(map(str, expected))}). "
                "The position table belongs to this tile shape: cut larger volumes into tiles."
            )


class _UncertaintyAttention(nn.Module):
    """Scale map from two uncertainty maps; one embedding and one position table serve both."""

    def __init__(self, config: TrioConfig) -> None:
        super().__init__()
        width = config.attention_width
        self.token_grid = config.token_grid
        self.token_side = config.token_side
        self.pos_embed = nn.Parameter(torch.randn(1, config.token_count, width))
        self.to_patch_embedding = nn.Sequential(_Tokens(config.token_side), nn.Linear(config.token_length, width))
        self.dropout = nn.Dropout(_DROPOUT)
        self.attn = _CrossAttention(width, config.heads, config.head_dim)
        self.MLP = _Perceptron(width, config.mlp_hidden)
        self.to_out = nn.Sequential(nn.Linear(width, config.token_length), nn.Dropout(_DROPOUT))

    def forward(self, uncertainty_a: Tensor, uncertainty_b: Tensor) -> Tensor:
        tokens_a = self.dropout(self.to_patch_embedding(uncertainty_a) + self.pos_embed)  # (tiles, N, D)
        tokens_b = self.dropout(self.to_patch_embedding(uncertainty_b) + self.pos_embed)
        attended = self.attn(tokens_a, tokens_b)
        attended = attended + self.MLP(attended)
        return map_from_tokens(self.to_out(attended), self.token_grid, self.token_side)  # (tiles, 1, *tile_shape)


class _Tokens(nn.Module):
    """`tokens_from_map` as a layer; it takes index 0 so that the embedding has upstream's index 1."""

    def __init__(self, token_side: int) -> None:
        super().__init__()
        self.token_side = token_side

    def forward(self, values: Tensor) -> Tensor:
        return tokens_from_map(values, self.token_side)


class _CrossAttention(nn.Module):
    """Multi-head attention without norm or residual: queries from the first tokens, keys and values from the second."""

    def __init__(self, width: int, heads: int, head_dim: int) -> None:
        super().__init__()
        inner = heads * head_dim
        self.heads = heads
        self.head_dim = head_dim
        # Never used. It is in upstream's checkpoints, so it is kept for a lossless round trip.
        self.temperature = nn.Parameter(torch.ones(heads, 1, 1))
        self.w_q = nn.Linear(width, inner)
        self.w_k = nn.Linear(width, inner)
        self.w_v = nn.Linear(width, inner)
        self.to_out = nn.Sequential(nn.Linear(inner, width), nn.Dropout(_DROPOUT))

    def forward(self, asking: Tensor, answering: Tensor) -> Tensor:
        query = self._split(self.w_q(asking))  # (tiles, heads, N, head_dim)
        key = self._split(self.w_k(answering))
        value = self._split(self.w_v(answering))
        weights = torch.softmax(query @ key.transpose(-2, -1) * self.head_dim**-0.5, dim=-1)  # (tiles, heads, N, N)
        merged = (weights @ value).transpose(1, 2).flatten(2)  # (tiles, N, heads * head_dim)
        out: Tensor = self.to_out(merged)
        return out

    def _split(self, projected: Tensor) -> Tensor:
        return projected.reshape(*projected.shape[:2], self.heads, self.head_dim).transpose(1, 2)


class _Perceptron(nn.Module):
    """Linear -> exact GELU -> linear."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        # The identity stands where upstream has a dropout of rate 0, so that the second linear layer has index 3.
        self.net = nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Identity(), nn.Linear(hidden, width))

    def forward(self, tokens: Tensor) -> Tensor:
        out: Tensor = self.net(tokens)
        return out


class _FusionHead(nn.Module):
    """Six stages of [conv 1 without bias -> batch norm -> leaky ReLU 0.2], the last one included."""

    def __init__(self, config: TrioConfig) -> None:
        super().__init__()
        w1, w2, w3, w4, w5 = config.head_widths
        self.conv1 = _head_stage(config.dim, 2 * config.num_classes, w1)
        self.conv2 = _head_stage(config.dim, w1, w2)
        self.conv3 = _head_stage(config.dim, w2, w3)
        self.conv4 = _head_stage(config.dim, w3, w4)
        self.conv5 = _head_stage(config.dim, w4, w5)
        self.conv6 = _head_stage(config.dim, w5, config.num_classes)

    def forward(self, scaled_logits: Tensor) -> Tensor:
        x = self.conv1(scaled_logits)  # (tiles, w1, *tile_shape) from (tiles, 2K, *tile_shape)
        x = self.conv5(self.conv4(self.conv3(self.conv2(x))))
        fused: Tensor = self.conv6(x)
        return fused


def _head_stage(dim: int, in_channels: int, out_channels: int) -> nn.Sequential:
    return nn.Sequential(
        _CONV[dim](in_channels, out_channels, kernel_size=1, bias=False),
        _NORM[dim](out_channels),
        nn.LeakyReLU(0.2, inplace=True),
    )
