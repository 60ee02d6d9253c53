"""A volume whose segmentation is known, run through the whole flow on every engine of this machine.

The packaged self-test model sorts voxels by intensity: what it must find is arithmetic, not learning. So a wrong answer
means a broken engine, driver or installation.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import numpy as np

from ucseg_runtime.arrays import BoolArray, UInt8Array
from ucseg_runtime.backends.engines import engine_status, load_engine
from ucseg_runtime.backends.opening import open_backend
from ucseg_runtime.config import EngineName, InferenceOptions
from ucseg_runtime.errors import UcsegError
from ucseg_runtime.geometry import VolumeGeometry
from ucseg_runtime.manifest import Precision
from ucseg_runtime.model_folder import Model, load_model
from ucseg_runtime.pipeline import segment_volume
from ucseg_runtime.volume import Volume

_BACKGROUND_HU, _FIRST_HU, _SECOND_HU = 0, 50, 100
_BORDER_VOXELS = 4


@dataclass(frozen=True)
class SelfTestResult:
    """What one engine answered.

    Attributes:
        engine: Name of the engine.
        precision: Arithmetic.
        passed: Whether every voxel away from the borders of the boxes had its known label.
        detail: Wrong voxels, or why the engine could not run.
    """

    engine: EngineName
    precision: Precision
    passed: bool
    detail: str


def phantom() -> tuple[Volume, UInt8Array]:
    """A CT-like volume on an anisotropic, flipped grid, and its labels; 255 marks borders, where either is right.

    Returns:
        int16 voxels in HU, shape (40, 64, 56), spacing (2.5, 1, 1) mm; uint8 labels of the same shape.
    """
    labels = np.zeros((40, 64, 56), dtype=np.uint8)
    labels[8:24, 10:34, 8:30] = 1
    labels[14:36, 38:60, 24:50] = 2
    intensities = np.array([_BACKGROUND_HU, _FIRST_HU, _SECOND_HU], dtype=np.int16)
    affine = np.array([[0.0, 0.0, -1.0, 30.0], [0.0, 1.0, 0.0, -40.0], [2.5, 0.0, 0.0, 100.0], [0.0, 0.0, 0.0, 1.0]])
    volume = Volume(intensities[labels], VolumeGeometry(affine, labels.shape), "CT")
    labels[_near_border(labels)] = 255
    return volume, labels


def run_self_test() -> tuple[SelfTestResult, ...]:
    """Segment the phantom on every usable engine, in every precision that it has here."""
    model = load_model(Path(str(resources.files("ucseg_runtime"))) / "selftest_model", whoever_made_it=True)
    return tuple(
        _run(model, status.name, precision)
        for status in engine_status()
        if not status.reason
        for precision in load_engine(status.name).offers(model)
    )


def _run(model: Model, engine: EngineName, precision: Precision) -> SelfTestResult:
    volume, expected = phantom()
    # The known answer is this model's gate.
    options = InferenceOptions(engine=engine, precision=precision, gate=False)
    try:
        with open_backend(model, options) as backend:
            found = segment_volume(volume, model.manifest, backend, options).label_map
    except UcsegError as error:
        return SelfTestResult(engine, precision, False, str(error))
    wrong = int(((found != expected) & (expected != 255)).sum())
    return SelfTestResult(engine, precision, wrong == 0, f"{wrong} voxels with a wrong label")


def _near_border(labels: UInt8Array) -> BoolArray:
    """Voxels within four of another label along any axis."""
    near = np.zeros(labels.shape, dtype=np.bool_)
    for axis in range(3):
        for shift in range(1, _BORDER_VOXELS + 1):
            ahead = np.moveaxis(labels, axis, 0)
            differs = ahead[shift:] != ahead[:-shift]
            view = np.moveaxis(near, axis, 0)
            view[shift:] |= differs
            view[:-shift] |= differs
    return near
