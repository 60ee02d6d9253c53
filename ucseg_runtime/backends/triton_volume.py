"""Whole volumes on a Triton server: intensities and geometry go there, labels and uncertainty come back."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from ucseg_runtime.arrays import UInt8Array
from ucseg_runtime.backends.base import BackendInfo
from ucseg_runtime.backends.graphs import UNCERTAINTY
from ucseg_runtime.backends.triton_calls import ServerGroup
from ucseg_runtime.backends.triton_client import checker, engine_of
from ucseg_runtime.backends.triton_connection import Call
from ucseg_runtime.backends.triton_tensors import (
    AFFINE,
    LABELS,
    UNCERTAINTY_STEPS,
    VOLUME,
    VOLUME_FLOAT,
    volume_model,
)
from ucseg_runtime.errors import BackendError, BackendUnavailableError
from ucseg_runtime.manifest import ModelSpec
from ucseg_runtime.model_folder import Model
from ucseg_runtime.preprocess import model_grid_of
from ucseg_runtime.segmentation import Segmentation
from ucseg_runtime.server_options import TritonServer
from ucseg_runtime.tiling import plan_tiles
from ucseg_runtime.volume import Volume


@dataclass(frozen=True)
class RemoteRun:
    """What computed a volume on a server.

    Attributes:
        info: As of a backend.
        tiles: Number of tiles that the network saw there.
    """

    info: BackendInfo
    tiles: int


def segment_on_server(
    volume: Volume,
    model: Model,
    server: TritonServer,
    *,
    gate: bool,
    skip_air: bool = True,
    keep_probabilities: bool = False,
    subnet_agreement: bool = False,
) -> tuple[Segmentation, RemoteRun]:
    """Let a server run the whole method on one volume.

    A server whose Python model died or hangs still calls itself ready, but fails the volume soon, and it goes to the
    next server.

    Args:
        volume: Any orientation and spacing; int16 or float32 voxels in modality units.
        model: Model folder here; the server must hold the same.
        server: Addresses and limits.
        gate: Whether the server's engine must have passed the accuracy gate.
        skip_air: Whether the air around the patient may be left out, which servers always do.
        keep_probabilities: Whether probabilities are wanted, which no server returns.
        subnet_agreement: Whether it is wanted how far the subnets agree, which a server tells its metrics alone.

    Returns:
        Labels as `pipeline.segment_volume` gives them; the uncertainty in steps of 1/65535.

    Raises:
        InputError: The server refuses the volume, or no message can carry it.
        BackendError: The server failed, or its answer is not what was asked for.
        EngineMismatchError, AccuracyGateError: The server holds another model, or one whose engine is not proven.
    """
    if keep_probabilities:
        raise BackendUnavailableError(
            "a server returns labels and uncertainty of a whole volume, no probabilities.",
            hint="Use --triton-mode tile, or another --seg-type.",
        )
    if subnet_agreement:
        raise BackendUnavailableError(
            "a server that takes whole volumes does not return how far the subnets agree.",
            hint="Use --triton-mode tile.",
        )
    if not skip_air:
        raise BackendUnavailableError(
            "a server that takes whole volumes leaves the air around the patient out.",
            hint="Use --triton-mode tile to look at everything.",
        )
    table = volume_model()
    check = checker(model, table, gate=gate)
    with ServerGroup(server, table.name, check) as servers:
        address, description = servers.describe()
        answer = servers.infer(volume_call(volume))
    engine = engine_of(description)
    reason = f"whole volume served by Triton at {address}"
    grid = model_grid_of(volume.geometry, model.manifest.preprocessing)
    tiles = len(plan_tiles(grid.shape, model.manifest.tiling).tiles)
    segmentation = Segmentation(
        label_map=_checked_labels(np.asarray(answer[LABELS], dtype=np.uint8), model.manifest),
        uncertainty=np.divide(answer[UNCERTAINTY], np.float32(UNCERTAINTY_STEPS), dtype=np.float32),
        probabilities=None,
        geometry=volume.geometry,
        classes=model.manifest.classes,
        engine=engine,
    )
    return segmentation, RemoteRun(BackendInfo(engine, batch_atol=0.0, reason=reason), tiles)


def check_volume_server(model: Model, server: TritonServer, *, gate: bool) -> None:
    """Ask whether a server for whole volumes is there and holds the model, before any volume is read for it.

    Raises:
        BackendError: None answers in time.
        EngineMismatchError, AccuracyGateError: See `segment_on_server`.
    """
    table = volume_model()
    with ServerGroup(server, table.name, checker(model, table, gate=gate)) as servers:
        servers.describe()


def volume_call(volume: Volume) -> Call:
    """The request for one volume."""
    name = VOLUME if volume.voxels.dtype == np.int16 else VOLUME_FLOAT
    outputs = tuple(replace(tensor, shape=volume.geometry.shape) for tensor in volume_model().outputs)
    inputs = {name: np.ascontiguousarray(volume.voxels), AFFINE: volume.geometry.affine}
    return Call(volume_model().name, inputs, outputs)


def _checked_labels(labels: UInt8Array, spec: ModelSpec) -> UInt8Array:
    greatest = int(labels.max())
    if greatest >= spec.num_classes:
        raise BackendError(f"the server answered with label {greatest}; the model has {spec.num_classes - 1}.")
    # The answer is a view of the message; the caller may write to what it gets.
    return labels.copy()
