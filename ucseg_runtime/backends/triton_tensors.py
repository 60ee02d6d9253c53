"""Every tensor of the Triton models in one table: the server's configuration is written from it, clients follow it.

Shapes are those of one tile, without the batch axis that stage models have in front. Sides are in the order of the
network's own axes, as in `graphs`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Literal

import numpy as np

from ucseg_runtime.backends.graphs import (
    FUSED_LOGITS,
    GRAPHS,
    IMAGE,
    LOGITS_A,
    LOGITS_B,
    PROBABILITIES,
    UNCERTAINTY,
    AnyShape,
    channels_of,
    engine_tile_shape,
)
from ucseg_runtime.manifest import ModelSpec

DataType = Literal["FP32", "FP64", "INT16", "UINT8", "UINT16"]

NUMPY_TYPES: Mapping[DataType, np.dtype[np.generic]] = MappingProxyType(
    {
        "FP32": np.dtype(np.float32),
        "FP64": np.dtype(np.float64),
        "INT16": np.dtype(np.int16),
        "UINT8": np.dtype(np.uint8),
        "UINT16": np.dtype(np.uint16),
    }
)

TILES_MODEL = "ucseg_tiles"
LOGITS_MODEL = "ucseg_logits"
MERGED_MODEL = "ucseg_merged"
CHECK_MODEL = "ucseg_check"
VOLUME_MODEL = "ucseg_volume"

FINITE_IMAGE = "FINITE_IMAGE"
"""The image of a tile after the first step of the ensembles."""

VOLUME = "VOLUME"
VOLUME_FLOAT = "VOLUME_FLOAT"
AFFINE = "AFFINE"
LABELS = "LABELS"

UNCERTAINTY_STEPS = 65535
"""An uncertainty of 1 on the wire of the volume model; float32 keeps 24 bits of a value in [0, 1], this keeps 16."""

MODEL_DIGEST = "ucseg_model_digest"
ENGINE = "ucseg_engine"
ENGINE_VERSION = "ucseg_engine_version"
PRECISION = "ucseg_precision"
DEVICE = "ucseg_device"
PROVEN = "ucseg_proven"
IDENTITY = (MODEL_DIGEST, ENGINE, ENGINE_VERSION, PRECISION, DEVICE, PROVEN)
"""Parameters of every model's configuration that say what computes; a client refuses a server without them."""


@dataclass(frozen=True)
class TritonTensor:
    """One tensor of a Triton model.

    Attributes:
        name: As clients write it.
        data_type: Triton's name of the element type.
        shape: Sides without the batch axis; None for one that varies.
        optional: Whether a request may leave it out.
    """

    name: str
    data_type: DataType
    shape: AnyShape
    optional: bool = False


@dataclass(frozen=True)
class TritonModel:
    """One model of the repository.

    Attributes:
        name: Of the model, as clients write it.
        inputs: In order.
        outputs: In order; clients ask for those that they need.
        batched: Whether tensors have a batch axis in front.
    """

    name: str
    inputs: tuple[TritonTensor, ...]
    outputs: tuple[TritonTensor, ...]
    batched: bool = True


def stage_model_name(key: str) -> str:
    """Name of the Triton model that runs the graph of this artifact key, such as ``ucseg_upg``."""
    return f"ucseg_{key}"


def tile_tensor(name: str, spec: ModelSpec) -> TritonTensor:
    """A tensor of the graphs as Triton sees it: float32, channels first."""
    return TritonTensor(name, "FP32", (channels_of(name, spec), *engine_tile_shape(spec.tiling)))


def graph_model(key: str, spec: ModelSpec) -> TritonModel:
    """The Triton model of one graph."""
    graph = GRAPHS[key]
    inputs = tuple(tile_tensor(name, spec) for name in graph.inputs)
    return TritonModel(stage_model_name(key), inputs, tuple(tile_tensor(name, spec) for name in graph.outputs))


def check_model(spec: ModelSpec) -> TritonModel:
    """The first step of the ensembles: refuses tiles that are not finite, and passes the others on as they are.

    The subnets start together, and Triton 2.51 crashes when one of two steps that start together fails before the other
    has started; so what a client can do wrong has to be refused in a step of its own.
    """
    image = tile_tensor(IMAGE, spec)
    return TritonModel(CHECK_MODEL, (image,), (replace(image, name=FINITE_IMAGE),))


def tiles_model(spec: ModelSpec) -> TritonModel:
    """The ensemble of the four stages: what a segmentation needs of a tile."""
    return _ensemble(TILES_MODEL, (PROBABILITIES, UNCERTAINTY), spec)


def logits_model(spec: ModelSpec) -> TritonModel:
    """The same ensemble with everything that can be known of a tile.

    It is a model of its own, since Triton 2.51 stops a request that leaves out an output which a later step reads
    ("unexpected deadlock"): every request must ask for all of them.
    """
    return _ensemble(LOGITS_MODEL, (PROBABILITIES, UNCERTAINTY, FUSED_LOGITS, LOGITS_A, LOGITS_B), spec)


def _ensemble(name: str, outputs: tuple[str, ...], spec: ModelSpec) -> TritonModel:
    return TritonModel(name, (tile_tensor(IMAGE, spec),), tuple(tile_tensor(item, spec) for item in outputs))


def volume_model() -> TritonModel:
    """A whole volume in modality units, with its place in the patient.

    Exactly one of ``VOLUME`` and ``VOLUME_FLOAT`` is sent: a Triton tensor has one type, and volumes come in two.
    ``AFFINE`` maps the index (z, y, x, 1) to LPS coordinates in mm. ``UNCERTAINTY`` is scaled by 65535.
    """
    grid: AnyShape = (None, None, None)
    return TritonModel(
        VOLUME_MODEL,
        (
            TritonTensor(VOLUME, "INT16", grid, optional=True),
            TritonTensor(VOLUME_FLOAT, "FP32", grid, optional=True),
            TritonTensor(AFFINE, "FP64", (4, 4)),
        ),
        (TritonTensor(LABELS, "UINT8", grid), TritonTensor(UNCERTAINTY, "UINT16", grid)),
        batched=False,
    )
