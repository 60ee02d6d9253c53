"""Small state dicts of upstream in files, what tests expect of them, and descriptions to go with them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor

from tests.training_phantom import tiny_model_spec
from tests.upstream_state import ACDC, BINARY_2D, CUBE, small
from ucseg_runtime.errors import ModelError
from ucseg_training.nets import TrioConfig
from ucseg_training.upstream import read_upstream

State = dict[str, Tensor]

BOX = small(CUBE, tokens=18, token_side=16)  # 48 x 48 x 32
BOX_TILE = (48, 48, 32)
BOX_CONFIG = TrioConfig(
    dim=3,
    in_channels=1,
    num_classes=2,
    tile_shape=BOX_TILE,
    unet_width=2,
    vnet_width=3,
    token_side=16,
    attention_width=14,
    heads=2,
    head_dim=5,
    mlp_hidden=7,
    head_widths=(11, 12, 13, 15, 17),
    activation="sigmoid",
)
PLANE = small(BINARY_2D, tokens=4, token_side=16)
CHAMBERS = small(ACDC, tokens=16, token_side=8)
CHAMBERS_CONFIG = TrioConfig(
    dim=2,
    in_channels=3,
    num_classes=4,
    tile_shape=(32, 32),
    unet_width=2,
    vnet_width=3,
    token_side=8,
    attention_width=14,
    heads=2,
    head_dim=5,
    mlp_hidden=7,
    head_widths=(11, 12, 13, 15, 17),
    activation="softmax",
)
POSITIONS = "generate_pseudo_simple.cross_attn.pos_embed"
TEMPERATURE = "generate_pseudo_simple.cross_attn.attn.temperature"
COUNTER = "generate_pseudo_simple.final_head.conv6.1.num_batches_tracked"
WEIGHT = "net_2.block_five.conv.2.weight"


def saved(folder: Path, state: object, name: str = "canary_12.pth") -> Path:
    """A file whose folder and name must not turn up in messages."""
    path = folder / "canary" / name
    path.parent.mkdir(exist_ok=True)
    torch.save(state, path)
    return path


def refusal(path: Path, **arguments: Any) -> ModelError:
    """The error that names what is wrong in one line, says what to do, and tells no path."""
    with pytest.raises(ModelError) as caught:
        read_upstream(path, **arguments)
    assert caught.value.exit_code == 4
    assert "\n" not in str(caught.value)
    assert "canary" not in str(caught.value)
    return caught.value


def same(left: State, right: State) -> bool:
    """Equal in names, types, shapes and every bit."""
    return left.keys() == right.keys() and all(
        left[name].dtype == right[name].dtype
        and left[name].shape == right[name].shape
        and left[name].numpy().tobytes() == right[name].numpy().tobytes()
        for name in left
    )


def loaded(path: Path) -> State:
    state = torch.load(path, weights_only=True)
    assert type(state) is dict
    return state


def least_description(classes: int = 1) -> dict[str, Any]:
    """What no state dict says, and nothing else."""
    fields = tiny_model_spec(classes)
    for known in ("dim", "channels", "activation", "fusion", "default_precision", "tiling", "postprocessing"):
        del fields[known]
    del fields["provenance"]
    return fields


def described(folder: Path, fields: object, name: str = "canary.yaml") -> Path:
    path = folder / name
    path.write_text(json.dumps(fields) if name.lower().endswith(".json") else yaml.safe_dump(fields), encoding="utf-8")
    return path
