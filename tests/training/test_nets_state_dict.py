"""The state dict has upstream's keys, shapes and sizes, by a table written by hand and not from the classes."""

import pytest
import torch
from torch import nn

from ucseg_training.nets import DualNet, TrioConfig

Shape = tuple[int, ...]
Table = dict[str, Shape]

PRESETS = {
    "3d-96": TrioConfig.upstream_3d(),
    "3d-112": TrioConfig.upstream_3d((112, 112, 80)),
    "3d-128": TrioConfig.upstream_3d((128, 128, 80)),
    "2d-binary": TrioConfig.upstream_2d_binary(),
    "acdc": TrioConfig.upstream_acdc(),
}

# Subnet A, subnet B, attention of the UPG, head of the UPG, all together.
PARAMETERS = {
    "3d-96": (5_884_050, 9_443_266, 13_601_160, 5_540, 28_934_016),
    "3d-112": (5_884_050, 9_443_266, 13_630_856, 5_540, 28_963_712),
    "3d-128": (5_884_050, 9_443_266, 13_707_656, 5_540, 29_040_512),
    "2d-binary": (1_813_762, 3_265_986, 334_956, 5_540, 5_420_244),
    "acdc": (1_814_052, 3_266_020, 346_536, 5_640, 5_432_248),
}

STATE_ELEMENTS = {"3d-96": 28_934_346, "2d-binary": 5_423_536, "acdc": 5_435_544}

KEYS_PER_PREFIX = {
    2: {"net_1": 136, "net_2": 60, "generate_pseudo_simple": 54},
    3: {"net_1": 38, "net_2": 60, "generate_pseudo_simple": 54},
}


def _conv(key: str, weight: Shape, bias: int) -> Table:
    return {f"{key}.weight": weight, f"{key}.bias": (bias,)}


def _batch_norm(key: str, channels: int) -> Table:
    vectors = {f"{key}.{name}": (channels,) for name in ("weight", "bias", "running_mean", "running_var")}
    return vectors | {f"{key}.num_batches_tracked": ()}


def _unet_3d(in_channels: int, classes: int) -> Table:
    stages = [
        ("conv1", in_channels, 16),
        ("conv2", 16, 32),
        ("conv3", 32, 64),
        ("conv4", 64, 128),
        ("center", 128, 256),
        ("up_concat4.conv", 384, 128),
        ("up_concat3.conv", 192, 64),
        ("up_concat2.conv", 96, 32),
        ("up_concat1.conv", 48, 16),
    ]
    table: Table = {}
    for name, source, target in stages:
        table |= _conv(f"net_1.{name}.conv1.0", (target, source, 3, 3, 3), target)
        table |= _conv(f"net_1.{name}.conv2.0", (target, target, 3, 3, 3), target)
    return table | _conv("net_1.final", (classes, 16, 1, 1, 1), classes)


def _conv_block(prefix: str, source: int, target: int) -> Table:
    return (
        _conv(f"{prefix}.conv_conv.0", (target, source, 3, 3), target)
        | _batch_norm(f"{prefix}.conv_conv.1", target)
        | _conv(f"{prefix}.conv_conv.4", (target, target, 3, 3), target)
        | _batch_norm(f"{prefix}.conv_conv.5", target)
    )


def _unet_2d(in_channels: int, classes: int) -> Table:
    table = _conv_block("net_1.encoder.in_conv", in_channels, 16)
    for number, source, target in ((1, 16, 32), (2, 32, 64), (3, 64, 128), (4, 128, 256)):
        table |= _conv_block(f"net_1.encoder.down{number}.maxpool_conv.1", source, target)
    for number, source, target in ((1, 256, 128), (2, 128, 64), (3, 64, 32), (4, 32, 16)):
        table |= _conv(f"net_1.decoder.up{number}.conv1x1", (target, source, 1, 1), target)
        table |= _conv_block(f"net_1.decoder.up{number}.conv", source, target)
    return table | _conv("net_1.decoder.out_conv", (classes, 16, 3, 3), classes)


def _vnet(dim: int, in_channels: int, classes: int) -> Table:
    three, two, one = (3,) * dim, (2,) * dim, (1,) * dim
    table = _conv("net_2.block_one.conv.0", (16, in_channels, *three), 16)
    table |= _conv("net_2.block_nine.conv.0", (16, 16, *three), 16)
    blocks = [("two", 32, 2), ("three", 64, 3), ("four", 128, 3), ("five", 256, 3)]
    blocks += [("six", 128, 3), ("seven", 64, 3), ("eight", 32, 2)]
    for name, width, convs in blocks:
        for index in range(convs):
            table |= _conv(f"net_2.block_{name}.conv.{2 * index}", (width, width, *three), width)
    for name, source, target in (("one", 16, 32), ("two", 32, 64), ("three", 64, 128), ("four", 128, 256)):
        table |= _conv(f"net_2.block_{name}_dw.conv.0", (target, source, *two), target)
    for name, source, target in (("five", 256, 128), ("six", 128, 64), ("seven", 64, 32), ("eight", 32, 16)):
        table |= _conv(f"net_2.block_{name}_up.conv.0", (source, target, *two), target)
    return table | _conv("net_2.out_conv", (classes, 16, *one), classes)


def _upg(dim: int, classes: int, tokens: int, token_length: int) -> Table:
    width, inner = {2: (96, 512), 3: (1024, 1024)}[dim]
    widths = (2 * classes, 16, 32, 64, 32, 16, classes)
    head = "generate_pseudo_simple.final_head"
    attention = "generate_pseudo_simple.cross_attn"
    table: Table = {}
    for stage in range(6):
        table[f"{head}.conv{stage + 1}.0.weight"] = (widths[stage + 1], widths[stage], *(1,) * dim)
        table |= _batch_norm(f"{head}.conv{stage + 1}.1", widths[stage + 1])
    table[f"{attention}.pos_embed"] = (1, tokens, width)
    table[f"{attention}.attn.temperature"] = (8, 1, 1)
    table |= _conv(f"{attention}.to_patch_embedding.1", (width, token_length), width)
    for name in ("w_q", "w_k", "w_v"):
        table |= _conv(f"{attention}.attn.{name}", (inner, width), inner)
    table |= _conv(f"{attention}.attn.to_out.0", (width, inner), width)
    table |= _conv(f"{attention}.MLP.net.0", (384, width), 384)
    table |= _conv(f"{attention}.MLP.net.3", (width, 384), width)
    return table | _conv(f"{attention}.to_out.0", (token_length, width), token_length)


def _table_3d(tokens: int) -> Table:
    return _unet_3d(1, 2) | _vnet(3, 1, 2) | _upg(3, 2, tokens, 4096)


TABLES = {
    "3d-96": _table_3d(216),
    "3d-112": _table_3d(245),
    "3d-128": _table_3d(320),
    "2d-binary": _unet_2d(3, 2) | _vnet(2, 3, 2) | _upg(2, 2, 256, 196),
    "acdc": _unet_2d(3, 4) | _vnet(2, 3, 4) | _upg(2, 4, 256, 256),
}


def _trio_without_storage(preset: str) -> DualNet:
    with torch.device("meta"):
        return DualNet(PRESETS[preset])


def _parameter_count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize("preset", PRESETS)
def test_state_dict_has_exactly_the_keys_and_shapes_of_an_upstream_checkpoint(preset: str) -> None:
    found = {key: tuple(value.shape) for key, value in _trio_without_storage(preset).state_dict().items()}
    assert found == TABLES[preset]


@pytest.mark.parametrize("preset", PRESETS)
def test_key_counts_per_network(preset: str) -> None:
    keys = _trio_without_storage(preset).state_dict().keys()
    expected = KEYS_PER_PREFIX[PRESETS[preset].dim]
    assert {prefix: sum(key.startswith(f"{prefix}.") for key in keys) for prefix in expected} == expected
    assert len(keys) == sum(expected.values())


@pytest.mark.parametrize("preset", PRESETS)
def test_parameter_counts_per_network(preset: str) -> None:
    trio = _trio_without_storage(preset)
    parts = (trio.subnet_a, trio.subnet_b, trio.upg.cross_attn, trio.upg.final_head, trio)
    assert tuple(_parameter_count(part) for part in parts) == PARAMETERS[preset]


@pytest.mark.parametrize("preset", STATE_ELEMENTS)
def test_state_elements_include_the_buffers_of_the_norms(preset: str) -> None:
    state = _trio_without_storage(preset).state_dict()
    assert sum(value.numel() for value in state.values()) == STATE_ELEMENTS[preset]


def test_widths_and_head_sizes_follow_the_configuration() -> None:
    config = TrioConfig(
        dim=2,
        in_channels=1,
        num_classes=3,
        tile_shape=(32, 32),
        unet_width=4,
        vnet_width=6,
        token_side=8,
        attention_width=20,
        heads=2,
        head_dim=5,
        mlp_hidden=7,
        head_widths=(3, 4, 5, 6, 7),
    )
    state = {key: tuple(value.shape) for key, value in DualNet(config).state_dict().items()}
    assert state["net_1.decoder.out_conv.weight"] == (3, 4, 3, 3)
    assert state["net_1.encoder.down4.maxpool_conv.1.conv_conv.4.weight"] == (64, 64, 3, 3)
    assert state["net_2.block_five.conv.4.weight"] == (96, 96, 3, 3)
    assert state["generate_pseudo_simple.cross_attn.pos_embed"] == (1, 16, 20)
    assert state["generate_pseudo_simple.cross_attn.attn.temperature"] == (2, 1, 1)
    assert state["generate_pseudo_simple.cross_attn.attn.to_out.0.weight"] == (20, 10)
    assert state["generate_pseudo_simple.cross_attn.MLP.net.3.weight"] == (20, 7)
    assert [state[f"generate_pseudo_simple.final_head.conv{n}.0.weight"][0] for n in range(1, 7)] == [3, 4, 5, 6, 7, 3]
