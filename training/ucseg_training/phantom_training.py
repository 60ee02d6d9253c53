"""Small models for planes, taught on made-up images, for tests of colour, ultrasound, endoscopy and MR."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ucseg_training.data.dataset_spec import DatasetSpec
from ucseg_training.data.phantom_planes import PhantomPlanes
from ucseg_training.method.config import MethodConfig
from ucseg_training.observers import Observer
from ucseg_training.optimisation import Optimisation
from ucseg_training.run_training import trio_for
from ucseg_training.trainer import train
from ucseg_training.training_plan import TrainingPlan

SIDE = 96
_MODALITY = {3: "ES", 1: "US"}


def phantom_spec(channels: int, side: int = SIDE) -> DatasetSpec:
    """What a model taught on phantoms is, in the words of data sets.

    Args:
        channels: 3 for colour, 1 for grey.
        side: Pixels along y and x.
    """
    abnormal = {"value": "49755003", "scheme": "SCT", "meaning": "Morphologically Altered Structure"}
    return DatasetSpec.model_validate(
        {
            "name": f"phantom-{'colour' if channels == 3 else 'grey'}",
            "title": "made-up images of one ellipse each; phantom-trained, for software tests alone",
            "modality": _MODALITY[channels],
            "dim": 2,
            "channels": channels,
            "classes": [
                {"label": 1, "name": "object", "category": abnormal, "type": abnormal, "colour_rgb": (240, 200, 60)}
            ],
            "activation": "sigmoid",
            "preprocessing": {
                "plane_shape": (side, side),
                "orientation": "acquired",
                "intensity": {"kind": "divide_by_255", "channel_order": "bgr"},
                "padding_value": 0.0,
            },
            "tiling": {"tile_shape": (1, side, side), "overlap": 0.0, "weighting": "uniform"},
        }
    )


def phantom_plan(channels: int, steps: int, seed: int, side: int = SIDE) -> TrainingPlan:
    """The whole method on slim networks.

    Args:
        channels: 3 for colour, 1 for grey.
        steps: Optimiser steps.
        seed: Of everything random.
        side: Pixels along y and x.
    """
    spec = phantom_spec(channels, side)
    return TrainingPlan(
        trio=trio_for(spec, "slim"),
        method=MethodConfig(total_steps=steps),
        optimisation=Optimisation(
            kind="adamw",
            learning_rate=2e-3,
            schedule="cosine",
            warm_up=max(1, steps // 10),
            weight_decay=1e-4,
            gradient_norm=1.0,
        ),
        steps=steps,
        seed=seed,
        model_spec=spec.model_fields_of()
        | {
            "name": spec.name,
            "version": "0.1.0",
            "licence": "Apache-2.0",
            "intended_use": "Phantom-trained, for software tests alone. Not for clinical use.",
            "default_precision": "f32",
            "quality": [],
        },
    )


def train_phantom(
    folder: Path, channels: int, steps: int = 300, seed: int = 42, observers: Sequence[Observer] = ()
) -> Path:
    """Train and return the checkpoint. Continues a run that was interrupted.

    Raises:
        TrainingError: See `train`.
        OutputError: A file cannot be written.
    """
    batches = PhantomPlanes(SIDE, channels, seed=seed)
    return train(batches, phantom_plan(channels, steps, seed), folder, observers=observers)
