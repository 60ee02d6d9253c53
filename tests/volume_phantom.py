"""Volumes on any grid that show the same patient: boxes of tissue given in millimetres, sampled voxel by voxel."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ucseg_runtime.geometry import VolumeGeometry
from ucseg_runtime.volume import Volume


@dataclass(frozen=True)
class Box:
    """A cuboid along the patient's axes.

    Attributes:
        label: What a perfect segmentation calls it.
        hu: Its CT number.
        centre_mm: LPS.
        half_sides_mm: Along LPS.
    """

    label: int
    hu: float
    centre_mm: tuple[float, float, float]
    half_sides_mm: tuple[float, float, float]


BOXES = (
    Box(1, 50.0, (-12.0, 6.0, 8.0), (10.0, 8.0, 12.0)),
    Box(2, 100.0, (14.0, -10.0, -9.0), (8.0, 12.0, 9.0)),
)
"""Two boxes that no flip, turn or exchange of axes leaves in place."""

_TURN = np.array([[0.8, -0.6, 0.0], [0.6, 0.8, 0.0], [0.0, 0.0, 1.0]])
_TILT = np.array([[1.0, 0.0, 0.0], [0.0, 0.96, -0.28], [0.0, 0.28, 0.96]])
STRAIGHT = np.eye(3)
OBLIQUE = _TURN @ _TILT
"""A rotation by 37 and 16 degrees; exact to double precision."""


def centred_geometry(
    shape: tuple[int, int, int], spacing_mm: tuple[float, float, float], direction: npt.NDArray[np.float64]
) -> VolumeGeometry:
    """A grid around the LPS point (0, 0, 0); columns of `direction` are the index axes z, y, x."""
    affine = np.eye(4)
    affine[:3, :3] = direction * spacing_mm
    affine[:3, 3] = -affine[:3, :3] @ ((np.array(shape) - 1) / 2)
    return VolumeGeometry(affine, shape)


def orientations(rotation: npt.NDArray[np.float64]) -> Iterator[npt.NDArray[np.float64]]:
    """All 48 ways, mirrored ones included, to name and direct three given perpendicular axes."""
    for order in itertools.permutations(range(3)):
        for signs in itertools.product((1.0, -1.0), repeat=3):
            yield rotation[:, list(order)] * np.array(signs)


def depth_mm(geometry: VolumeGeometry, box: Box) -> npt.NDArray[np.float64]:
    """How far each voxel centre lies inside a box, shape (z, y, x), in mm; negative outside."""
    index = np.stack(np.meshgrid(*map(np.arange, geometry.shape), indexing="ij"), axis=-1)
    distance = np.abs(geometry.lps_from_index(index) - box.centre_mm)
    depth: npt.NDArray[np.float64] = (np.array(box.half_sides_mm) - distance).min(axis=-1)
    return depth


def volume_of(geometry: VolumeGeometry, boxes: Sequence[Box] = BOXES, background_hu: float = -100.0) -> Volume:
    """Voxels that know only whether their centre lies in a box, int16."""
    voxels = np.full(geometry.shape, background_hu, dtype=np.int16)
    for box in boxes:
        voxels[depth_mm(geometry, box) >= 0] = box.hu
    return Volume(voxels, geometry, "CT")
