"""Trios that look trained, and their exports, made once for all workers."""

from __future__ import annotations

import fcntl
import functools
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import nn

from tests.training_phantom import TINY, tiny_model_spec
from ucseg_export.to_onnx import onnx_graphs
from ucseg_runtime.backends.graphs import GRAPHS
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


ExportedByName = Callable[[str], Exported]


@pytest.fixture(scope="session")
def exported_by_name(tmp_path_factory: pytest.TempPathFactory) -> ExportedByName:
    """Exports by their name in `CONFIGS`; each is made by the first worker that asks, since torch takes seconds."""
    folder = tmp_path_factory.getbasetemp()
    shared = (folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder) / "exported"
    shared.mkdir(exist_ok=True)

    @functools.cache
    def exported(name: str) -> Exported:
        net = trained_like(CONFIGS[name])
        with (shared / f"{name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            graphs = _graphs_in(shared / name) or _write_graphs(shared / name, onnx_graphs(net))
        return Exported(net, ModelSpec.model_validate(description(net.config)), graphs)

    return exported


def _graphs_in(folder: Path) -> dict[str, bytes]:
    return {key: (folder / key).read_bytes() for key in (*GRAPHS,) if (folder / "complete").exists()}


def _write_graphs(folder: Path, graphs: dict[str, bytes]) -> dict[str, bytes]:
    folder.mkdir(exist_ok=True)
    for key, graph in graphs.items():
        (folder / key).write_bytes(graph)
    (folder / "complete").touch()
    return graphs


@pytest.fixture(params=CONFIGS)
def exported(request: pytest.FixtureRequest, exported_by_name: ExportedByName) -> Exported:
    return exported_by_name(request.param)


@pytest.fixture
def softmax(exported_by_name: ExportedByName) -> Exported:
    return exported_by_name("softmax")


@pytest.fixture
def sigmoid(exported_by_name: ExportedByName) -> Exported:
    return exported_by_name("sigmoid")


@pytest.fixture
def planar(exported_by_name: ExportedByName) -> Exported:
    return exported_by_name("planar")


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("checkpoint") / "trio.safetensors")
