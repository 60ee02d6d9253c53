"""Trios that look trained, and their exports, made once."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import nn

from tests.training_phantom import TINY, tiny_model_spec
from ucseg_export.to_onnx import onnx_graphs
from ucseg_runtime.manifest import ModelSpec
from ucseg_training.checkpoint import save_checkpoint
from ucseg_training.nets import DualNet, TrioConfig

SIGMOID = TrioConfig(
    dim=3,
    in_channels=1,
    num_classes=2,
    tile_shape=(32, 16, 48),
    unet_width=2,
    vnet_width=2,
    attention_width=8,
    heads=2,
    head_dim=4,
    mlp_hidden=8,
    head_widths=(2, 3, 4, 3, 2),
)
PLANAR = TrioConfig(
    dim=2,
    in_channels=3,
    num_classes=3,
    tile_shape=(48, 48),
    unet_width=2,
    vnet_width=2,
    token_side=8,
    attention_width=8,
    heads=2,
    head_dim=4,
    mlp_hidden=8,
    head_widths=(2, 3, 4, 3, 2),
    activation="softmax",
)
CONFIGS = {"softmax": TINY, "sigmoid": SIGMOID, "planar": PLANAR}


@dataclass(frozen=True)
class Exported:
    """A trio, what the model is, and its graphs by artifact key."""

    net: DualNet
    spec: ModelSpec
    graphs: dict[str, bytes]


def trained_like(config: TrioConfig) -> DualNet:
    """A trio whose norms hold statistics far from the identity, so that a norm folded wrongly shows."""
    torch.manual_seed(3)
    net = DualNet(config)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d | nn.BatchNorm3d):
            nn.init.uniform_(module.running_mean, -1, 1)
            nn.init.uniform_(module.running_var, 0.5, 2)
            nn.init.uniform_(module.weight, 0.5, 2)
            nn.init.uniform_(module.bias, 0, 1)
    return net.eval()


def description(config: TrioConfig) -> dict[str, object]:
    """What a model around these networks is, as JSON would hold it."""
    sides = (1, *config.tile_shape) if config.dim == 2 else config.tile_shape
    return {
        **tiny_model_spec(config.num_classes - 1, config.activation),
        "dim": config.dim,
        "channels": config.in_channels,
        "tiling": {"tile_shape": list(sides)},
    }


def write_checkpoint(path: Path, config: TrioConfig = TINY) -> Path:
    """A checkpoint of `trained_like(config)`."""
    save_checkpoint(path, trained_like(config).state_dict(), config, 7, description(config))
    return path


@pytest.fixture(scope="session")
def all_exported() -> dict[str, Exported]:
    nets = {name: trained_like(config) for name, config in CONFIGS.items()}
    return {
        name: Exported(net, ModelSpec.model_validate(description(net.config)), onnx_graphs(net))
        for name, net in nets.items()
    }


@pytest.fixture(params=CONFIGS)
def exported(request: pytest.FixtureRequest, all_exported: dict[str, Exported]) -> Exported:
    return all_exported[request.param]


@pytest.fixture
def softmax(all_exported: dict[str, Exported]) -> Exported:
    return all_exported["softmax"]


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("checkpoint") / "trio.safetensors")
