"""State dicts as upstream's programs write them, from a table of key patterns and shapes alone.

No network class has a part in this: the table is what an upstream checkpoint is known to hold, with the widths of
upstream's networks as parameters, so that small files have the same names.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

Shape = tuple[int, ...]

_BRACES = re.compile(r"\{([^}]*)\}")


@dataclass(frozen=True)
class UpstreamSizes:
    """What the shapes of an upstream state dict depend on; the defaults are upstream's own in 3D.

    Attributes:
        dim: Spatial dimensions.
        in_channels: Channels of the image.
        classes: Channels of the logits, K.
        tokens: Rows of the position table, N.
        token_side: Voxels along a side of a token, P.
        width_a: First width of `net_1`.
        width_b: First width of `net_2`.
        attention: Width of an embedded token, D.
        heads: Attention heads.
        inner: Channels of all attention heads together.
        hidden: Hidden width of the perceptron.
        head: Widths of the first five stages of the final head.
    """

    dim: int = 3
    in_channels: int = 1
    classes: int = 2
    tokens: int = 216
    token_side: int = 16
    width_a: int = 16
    width_b: int = 16
    attention: int = 1024
    heads: int = 8
    inner: int = 1024
    hidden: int = 384
    head: tuple[int, int, int, int, int] = (16, 32, 64, 32, 16)


CUBE = UpstreamSizes()
LONG = replace(CUBE, tokens=245)
WIDE = replace(CUBE, tokens=320)
BINARY_2D = UpstreamSizes(dim=2, in_channels=3, tokens=256, token_side=14, attention=96, inner=512)
ACDC = replace(BINARY_2D, classes=4, token_side=16)


def small(sizes: UpstreamSizes, **changes: int) -> UpstreamSizes:
    """The same networks with few channels, no two widths alike; tokens, classes and image channels stay."""
    narrow = replace(sizes, width_a=2, width_b=3, attention=14, heads=2, inner=10, hidden=7, head=(11, 12, 13, 15, 17))
    return replace(narrow, **changes)


def upstream_table(sizes: UpstreamSizes) -> dict[str, Shape]:
    """Name to shape of every tensor in a state dict of these sizes."""
    net_1 = _net_1_3d(sizes) if sizes.dim == 3 else _net_1_2d(sizes)
    table: dict[str, Shape] = {}
    for prefix, rows in (("net_1", net_1), ("net_2", _net_2(sizes)), ("generate_pseudo_simple", _upg(sizes))):
        for pattern, shape in rows:
            for name in _expanded(pattern):
                assert f"{prefix}.{name}" not in table, "a pattern of the table names a tensor twice"
                table[f"{prefix}.{name}"] = shape
    return table


def upstream_state(sizes: UpstreamSizes, seed: int = 0) -> dict[str, Tensor]:
    """A state dict of these sizes: random float32 values that keep a network's output moderate, int64 counters."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: _value(name, shape, index, generator) for index, (name, shape) in enumerate(upstream_table(sizes).items())
    }


def _value(name: str, shape: Shape, index: int, generator: torch.Generator) -> Tensor:
    if name.endswith("num_batches_tracked"):
        return torch.tensor(40_000 + index)
    noise = torch.randn(shape, generator=generator)
    if name.endswith("running_var"):
        return noise.abs() + 0.5
    if name.endswith("pos_embed"):
        return noise
    if name.endswith("temperature") or (noise.ndim == 1 and name.endswith("weight")):
        return 1.0 + 0.1 * noise
    return 0.1 * noise if noise.ndim == 1 else noise * (1.0 / noise[0].numel()) ** 0.5


Rows = Iterator[tuple[str, Shape]]


def _net_1_3d(sizes: UpstreamSizes) -> Rows:
    w = sizes.width_a
    encoder = [("conv1", sizes.in_channels, w), ("conv2", w, 2 * w), ("conv3", 2 * w, 4 * w), ("conv4", 4 * w, 8 * w)]
    center = [("center", 8 * w, 16 * w)]
    decoder = [("up_concat4.conv", 24 * w, 8 * w), ("up_concat3.conv", 12 * w, 4 * w)]
    decoder += [("up_concat2.conv", 6 * w, 2 * w), ("up_concat1.conv", 3 * w, w)]
    for stage, source, target in encoder + center + decoder:
        yield f"{stage}.conv1.0.weight", (target, source, 3, 3, 3)
        yield f"{stage}.conv2.0.weight", (target, target, 3, 3, 3)
        yield f"{stage}.conv{{1,2}}.0.bias", (target,)
    yield "final.weight", (sizes.classes, w, 1, 1, 1)
    yield "final.bias", (sizes.classes,)


def _net_1_2d(sizes: UpstreamSizes) -> Rows:
    w = sizes.width_a
    blocks = [("encoder.in_conv", sizes.in_channels, w)]
    blocks += [(f"encoder.down{n}.maxpool_conv.1", 2**n * w // 2, 2**n * w) for n in (1, 2, 3, 4)]
    blocks += [(f"decoder.up{n}.conv", 2 * 2 ** (4 - n) * w, 2 ** (4 - n) * w) for n in (1, 2, 3, 4)]
    for block, source, target in blocks:
        yield f"{block}.conv_conv.0.weight", (target, source, 3, 3)
        yield f"{block}.conv_conv.4.weight", (target, target, 3, 3)
        yield f"{block}.conv_conv.{{0,4}}.bias", (target,)
        yield f"{block}.conv_conv.{{1,5}}.{{weight,bias,running_mean,running_var}}", (target,)
        yield f"{block}.conv_conv.{{1,5}}.num_batches_tracked", ()
    for n, target in ((1, 8 * w), (2, 4 * w), (3, 2 * w), (4, w)):
        yield f"decoder.up{n}.conv1x1.weight", (target, 2 * target, 1, 1)
        yield f"decoder.up{n}.conv1x1.bias", (target,)
    yield "decoder.out_conv.weight", (sizes.classes, w, 3, 3)
    yield "decoder.out_conv.bias", (sizes.classes,)


def _net_2(sizes: UpstreamSizes) -> Rows:
    w, three, two, one = sizes.width_b, (3,) * sizes.dim, (2,) * sizes.dim, (1,) * sizes.dim
    yield "block_one.conv.0.weight", (w, sizes.in_channels, *three)
    yield "block_nine.conv.0.weight", (w, w, *three)
    yield "block_{one,nine}.conv.0.bias", (w,)
    blocks = [("block_{two,eight}.conv.{0,2}", 2 * w), ("block_{three,seven}.conv.{0,2,4}", 4 * w)]
    blocks += [("block_{four,six}.conv.{0,2,4}", 8 * w), ("block_five.conv.{0,2,4}", 16 * w)]
    for block, width in blocks:
        yield f"{block}.weight", (width, width, *three)
        yield f"{block}.bias", (width,)
    for name, source in (("one", w), ("two", 2 * w), ("three", 4 * w), ("four", 8 * w)):
        yield f"block_{name}_dw.conv.0.weight", (2 * source, source, *two)
        yield f"block_{name}_dw.conv.0.bias", (2 * source,)
    for name, source in (("five", 16 * w), ("six", 8 * w), ("seven", 4 * w), ("eight", 2 * w)):
        yield f"block_{name}_up.conv.0.weight", (source, source // 2, *two)
        yield f"block_{name}_up.conv.0.bias", (source // 2,)
    yield "out_conv.weight", (sizes.classes, w, *one)
    yield "out_conv.bias", (sizes.classes,)


def _upg(sizes: UpstreamSizes) -> Rows:
    widths = (2 * sizes.classes, *sizes.head, sizes.classes)
    for stage, (source, target) in enumerate(itertools.pairwise(widths), start=1):
        yield f"final_head.conv{stage}.0.weight", (target, source, *(1,) * sizes.dim)
        yield f"final_head.conv{stage}.1.{{weight,bias,running_mean,running_var}}", (target,)
        yield f"final_head.conv{stage}.1.num_batches_tracked", ()
    length, width, inner, hidden = sizes.token_side**sizes.dim, sizes.attention, sizes.inner, sizes.hidden
    yield "cross_attn.pos_embed", (1, sizes.tokens, width)
    yield "cross_attn.to_patch_embedding.1.weight", (width, length)
    yield "cross_attn.to_patch_embedding.1.bias", (width,)
    yield "cross_attn.attn.temperature", (sizes.heads, 1, 1)
    yield "cross_attn.attn.w_{q,k,v}.weight", (inner, width)
    yield "cross_attn.attn.w_{q,k,v}.bias", (inner,)
    yield "cross_attn.attn.to_out.0.weight", (width, inner)
    yield "cross_attn.attn.to_out.0.bias", (width,)
    yield "cross_attn.MLP.net.0.weight", (hidden, width)
    yield "cross_attn.MLP.net.0.bias", (hidden,)
    yield "cross_attn.MLP.net.3.weight", (width, hidden)
    yield "cross_attn.MLP.net.3.bias", (width,)
    yield "cross_attn.to_out.0.weight", (length, width)
    yield "cross_attn.to_out.0.bias", (length,)


def _expanded(pattern: str) -> list[str]:
    """The names that a pattern with braces stands for, as in a shell."""
    parts = _BRACES.split(pattern)
    choices = [part.split(",") if index % 2 else [part] for index, part in enumerate(parts)]
    return ["".join(chosen) for chosen in itertools.product(*choices)]
