"""A tiny trio, the model that it belongs to, and a patient of two blocks of tissue, for tests of training."""

from __future__ import annotations

from typing import Any

import numpy as np

from tests.volume_phantom import STRAIGHT, centred_geometry
from ucseg_runtime.manifest import ModelSpec
from ucseg_training.data.case import Case
from ucseg_training.nets import TrioConfig

BLOCK_HU = {1: 400.0, 2: -400.0}
AIR_HU = -1000.0
ALL_KNOWN = np.uint8(0b11)
BLOCKS = {1: np.s_[4:18, 4:28, 2:20], 2: np.s_[8:20, 12:36, 24:38]}
"""Boxes of the two classes; no flip or exchange of axes leaves them in place."""

TINY = TrioConfig(
    dim=3,
    in_channels=1,
    num_classes=3,
    tile_shape=(32, 32, 32),
    unet_width=2,
    vnet_width=2,
    token_side=8,
    attention_width=8,
    heads=2,
    head_dim=4,
    mlp_hidden=8,
    head_widths=(2, 2, 2, 2, 2),
    activation="softmax",
)

_CODE = {"value": "91723000", "scheme": "SCT", "meaning": "Anatomical structure"}


def tiny_model_spec(foreground: int = 2, activation: str = "softmax") -> dict[str, Any]:
    """Description of a model around `TINY`, as JSON would hold it."""
    return {
        "name": "tiny",
        "version": "1.0.0",
        "licence": "Apache-2.0",
        "intended_use": "tests",
        "modality": "CT",
        "dim": 3,
        "channels": 1,
        "classes": [
            {"label": label, "name": f"block {label}", "category": _CODE, "type": _CODE, "colour_rgb": [label, 0, 0]}
            for label in range(1, foreground + 1)
        ],
        "activation": activation,
        "fusion": "upg",
        "default_precision": "f32",
        "preprocessing": {
            "spacing_mm": [3.0, 3.0, 3.0],
            "intensity": {"kind": "piecewise_linear", "knots": [[-1000.0, -1.0], [1000.0, 1.0]]},
            "padding_value": AIR_HU,
        },
        "tiling": {"tile_shape": list(TINY.tile_shape)},
        "postprocessing": {},
        "provenance": {"made by": "tests"},
    }


def tiny_spec(foreground: int = 2, activation: str = "softmax") -> ModelSpec:
    """`tiny_model_spec`, parsed."""
    return ModelSpec.model_validate(tiny_model_spec(foreground, activation))


def block_case(name: str = "P", shape: tuple[int, int, int] = (24, 40, 42)) -> Case:
    """Two blocks in air on the model grid, every class known."""
    voxels = np.full(shape, AIR_HU, dtype=np.float32)
    label_map = np.zeros(shape, dtype=np.uint8)
    for label, box in BLOCKS.items():
        voxels[box], label_map[box] = BLOCK_HU[label], label
    geometry = centred_geometry(shape, (3.0, 3.0, 3.0), STRAIGHT[:, ::-1])
    return Case(name, voxels, label_map, np.full(shape, ALL_KNOWN), geometry)
