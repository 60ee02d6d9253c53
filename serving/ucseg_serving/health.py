"""Whether a server really answers: a small volume goes through every path that clients use."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np

from ucseg_runtime.backends.opening import open_backend
from ucseg_runtime.backends.triton_tensors import TILES_MODEL, VOLUME_MODEL
from ucseg_runtime.backends.triton_volume import segment_on_server
from ucseg_runtime.config import InferenceOptions
from ucseg_runtime.geometry import VolumeGeometry
from ucseg_runtime.manifest import ModelSpec
from ucseg_runtime.model_folder import Model, load_model
from ucseg_runtime.pipeline import segment_volume
from ucseg_runtime.server_options import TritonServer
from ucseg_runtime.volume import Volume
from ucseg_serving.repository import CONFIG_NAME
from ucseg_serving.repository_model import repository_model
from ucseg_serving.server_models import MODEL_FOLDER

_CANARY_SIDE = 4


def served_model(folder: Path) -> Model:
    """The model of a model folder, or of a repository, of which the manifest is enough: the server has the graphs.

    Args:
        folder: Model folder, verified as a whole; or repository.

    Raises:
        ModelError: The model folder is refused.
        RepositoryError: The repository's manifest cannot be read.
    """
    if not (folder / VOLUME_MODEL / CONFIG_NAME).is_file():
        return load_model(folder)
    return repository_model(folder / VOLUME_MODEL / MODEL_FOLDER)


def check_server(model: Model, server: TritonServer, *, gate: bool) -> dict[str, float]:
    """Segment a few voxels in tile mode and in volume mode.

    Args:
        model: Model that the server must hold; see `served_model`.
        server: Addresses and limits.
        gate: Whether the server's engine must have passed the accuracy gate.

    Returns:
        Seconds that each model took, by its name.

    Raises:
        BackendError: A model does not answer.
        EngineMismatchError, AccuracyGateError: The server holds another model, or one whose engine is not proven.
    """
    volume = canary(model.manifest)
    options = InferenceOptions(gate=gate, server=server)
    started = time.perf_counter()
    with open_backend(model, options) as backend:
        segment_volume(volume, model.manifest, backend, options)
    tiles_done = time.perf_counter()
    segment_on_server(volume, model, server, gate=gate)
    return {TILES_MODEL: tiles_done - started, VOLUME_MODEL: time.perf_counter() - tiles_done}


def canary(spec: ModelSpec) -> Volume:
    """The smallest volume that makes the pipeline run: one tile of padding."""
    spacing_mm = spec.preprocessing.spacing_mm or (1.0, 1.0, 1.0)
    shape = (_CANARY_SIDE, _CANARY_SIDE, _CANARY_SIDE)
    voxels = np.full(shape, round(spec.preprocessing.padding_value), dtype=np.int16)
    return Volume(voxels, VolumeGeometry(np.diag([*spacing_mm, 1.0])[[2, 1, 0, 3]], shape), spec.modality)
