"""The state dict has upstream's keys, shapes and sizes, by a table written by hand and not from the classes."""

import pytest
import torch
from torch import nn

from tests.upstream_state import ACDC, BINARY_2D, CUBE, LONG, WIDE, UpstreamSizes, upstream_table
from ucseg_training.nets import DualNet, TrioConfig

PRESETS = {
    "3d-96": TrioConfig.upstream_3d(),
    "3d-112": TrioConfig.upstream_3d((112, 112, 80)),
    "3d-128": TrioConfig.upstream_3d((128, 128, 80)),
    "2d-binary": TrioConfig.upstream_2d_binary(),
    "acdc": TrioConfig.upstream_acdc(),
}

SIZES = {"3d-96": CUBE, "3d-112": LONG, "3d-128": WIDE, "2d-binary": BINARY_2D, "acdc": ACDC}

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


def _trio_without_storage(preset: str) -> DualNet:
    with torch.device("meta"):
        return DualNet(PRESETS[preset])


def _parameter_count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize("preset", PRESETS)
def test_state_dict_has_exactly_the_keys_and_shapes_of_an_upstream_checkpoint(preset: str) -> None:
    found = {key: tuple(value.shape) for key, value in _trio_without_storage(preset).state_dict().items()}
    assert found == upstream_table(SIZES[preset])


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
    sizes = UpstreamSizes(
        dim=2,
        in_channels=1,
        classes=3,
        tokens=16,
        token_side=8,
        width_a=4,
        width_b=6,
        attention=20,
        heads=2,
        inner=10,
        hidden=7,
        head=(3, 4, 5, 6, 7),
    )
    found = {key: tuple(value.shape) for key, value in DualNet(config).state_dict().items()}
    assert found == upstream_table(sizes)
