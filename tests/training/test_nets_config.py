"""A trio's configuration is valid once constructed, and survives JSON."""

import dataclasses
import json
from typing import Any

import pytest

from ucseg_training.nets import TrioConfig

PRESETS = [
    pytest.param(TrioConfig.upstream_3d(), id="3d"),
    pytest.param(TrioConfig.upstream_3d((112, 112, 80)), id="3d-112"),
    pytest.param(TrioConfig.upstream_2d_binary(), id="2d-binary"),
    pytest.param(TrioConfig.upstream_acdc(), id="acdc"),
]

VALID_3D: dict[str, Any] = {"dim": 3, "in_channels": 1, "num_classes": 2, "tile_shape": (32, 32, 32)}

INVALID = [
    pytest.param({"dim": 4}, "dim", id="dim above 3"),
    pytest.param({"dim": 1}, "dim", id="dim below 2"),
    pytest.param({"dim": 3.0}, "dim", id="dim not an integer"),
    pytest.param({"in_channels": 0}, "in_channels", id="no channels"),
    pytest.param({"num_classes": 1}, "num_classes", id="background only"),
    pytest.param({"heads": True}, "heads", id="bool for integer"),
    pytest.param({"tile_shape": (32, 32)}, "tuple of 3", id="rank of the tile"),
    pytest.param({"tile_shape": [32, 32, 32]}, "tuple of 3", id="list for tuple"),
    pytest.param({"tile_shape": (32, 32, 0)}, r"tile_shape\[2\]", id="empty side"),
    pytest.param({"tile_shape": (32, 32, 24), "token_side": 8}, "multiple of 16", id="four halvings"),
    pytest.param({"token_side": 12}, "multiple of 12", id="token side"),
    pytest.param({"tile_shape": (16, 16, 16)}, "one voxel", id="deepest stage of one voxel"),
    pytest.param({"dim": 2, "tile_shape": (32, 48)}, "square", id="oblong 2D tile"),
    pytest.param({"head_widths": (16, 32, 64, 32)}, "head_widths", id="four head widths"),
    pytest.param({"activation": "relu"}, "activation", id="unknown activation"),
]


@pytest.mark.parametrize(("change", "message"), INVALID)
def test_config_refuses_sizes_that_cannot_work(change: dict[str, Any], message: str) -> None:
    assert TrioConfig(**VALID_3D)
    with pytest.raises(ValueError, match=message):
        TrioConfig(**(VALID_3D | change))


@pytest.mark.parametrize("config", PRESETS)
def test_config_survives_json(config: TrioConfig) -> None:
    assert TrioConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_from_dict_names_missing_and_unknown_keys() -> None:
    values = TrioConfig.upstream_3d().to_dict()
    del values["heads"]
    values["colour"] = 1
    with pytest.raises(ValueError, match=r"missing keys \['heads'\], unknown keys \['colour'\]"):
        TrioConfig.from_dict(values)


def test_from_dict_checks_values() -> None:
    with pytest.raises(ValueError, match="tile_shape"):
        TrioConfig.from_dict(TrioConfig.upstream_3d().to_dict() | {"tile_shape": [96, 96, 97]})


def test_config_cannot_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        TrioConfig.upstream_3d().dim = 2  # type: ignore[misc]  # the point of the test


@pytest.mark.parametrize(
    ("config", "grid", "count", "length"),
    [
        pytest.param(TrioConfig.upstream_3d(), (6, 6, 6), 216, 4096, id="96"),
        pytest.param(TrioConfig.upstream_3d((112, 112, 80)), (7, 7, 5), 245, 4096, id="112"),
        pytest.param(TrioConfig.upstream_3d((128, 128, 80)), (8, 8, 5), 320, 4096, id="128"),
        pytest.param(TrioConfig.upstream_2d_binary(), (16, 16), 256, 196, id="2d-binary"),
        pytest.param(TrioConfig.upstream_acdc(), (16, 16), 256, 256, id="acdc"),
    ],
)
def test_tokens_of_the_presets(config: TrioConfig, grid: tuple[int, ...], count: int, length: int) -> None:
    assert (config.token_grid, config.token_count, config.token_length) == (grid, count, length)


def test_presets_differ_in_activation() -> None:
    presets = (TrioConfig.upstream_3d(), TrioConfig.upstream_2d_binary(), TrioConfig.upstream_acdc())
    assert [preset.activation for preset in presets] == ["sigmoid", "sigmoid", "softmax"]
