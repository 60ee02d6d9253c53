"""Made-up data sets: descriptions, and files of every format whose every voxel is known."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import h5py
import nibabel
import numpy as np
import numpy.typing as npt
from pydicom.dataset import Dataset

from tests.phantoms import CtPhantom
from ucseg_runtime.geometry import VolumeGeometry
from ucseg_training.data.dataset_spec import DatasetSpec

_CODE = {"value": "91723000", "scheme": "SCT", "meaning": "Anatomical structure"}

Array = npt.NDArray[np.generic]


def classes(*names: str) -> list[dict[str, Any]]:
    """Descriptions of foreground classes, as YAML would hold them."""
    return [
        {"label": label, "name": name, "category": _CODE, "type": _CODE, "colour_rgb": [label, 0, 0]}
        for label, name in enumerate(names, start=1)
    ]


def dataset_fields(**changes: Any) -> dict[str, Any]:  # noqa: ANN401  (whatever YAML may hold)
    """A data set of CT volumes with two classes, as YAML would hold it."""
    return {
        "name": "phantom",
        "modality": "CT",
        "dim": 3,
        "classes": classes("liver", "spleen"),
        "activation": "softmax",
        "preprocessing": {
            "spacing_mm": [2.0, 1.0, 1.0],
            "intensity": {"kind": "clip_min_max", "low": -100, "high": 300},
            "padding_value": -1000,
        },
        "tiling": {"tile_shape": [16, 16, 32]},
        **changes,
    }


def dataset(**changes: Any) -> DatasetSpec:  # noqa: ANN401
    """`dataset_fields`, parsed."""
    return DatasetSpec.model_validate(dataset_fields(**changes))


def plane_fields(**changes: Any) -> dict[str, Any]:  # noqa: ANN401
    """A data set of colour pictures with one class, seen at 32 x 32, as YAML would hold it."""
    return dataset_fields(
        **{
            "modality": "OT",
            "dim": 2,
            "channels": 3,
            "classes": classes("polyp"),
            "activation": "sigmoid",
            "preprocessing": {
                "plane_shape": [32, 32],
                "orientation": "acquired",
                "interpolation": "nearest",
                "intensity": {"kind": "divide_by_255", "channel_order": "bgr"},
                "padding_value": 0,
            },
            "tiling": {"tile_shape": [1, 32, 32], "overlap": 0},
            "labels": {"kind": "threshold", "above": 127},
            **changes,
        }
    )


def write_nifti(path: Path, voxels: Array, geometry: VolumeGeometry, *, turn: bool = False) -> Path:
    """From (z, y, x) and LPS to NIfTI's (x, y, z) and RAS; if asked for, with axes that run along those of RAS."""
    path.parent.mkdir(parents=True, exist_ok=True)
    affine = np.diag([-1.0, -1.0, 1.0, 1.0]) @ geometry.affine[:, [2, 1, 0, 3]]
    image = nibabel.Nifti1Image(voxels.transpose(2, 1, 0), affine)
    nibabel.save(nibabel.as_closest_canonical(image) if turn else image, path)
    return path


def write_hdf5(path: Path, image: Array, label: Array | None, *, order: str = "zyx", dtype: str = "u1") -> Path:
    """Arrays (z, y, x) or (y, x) in the wanted order of axes, compressed as upstream's scripts do."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        for name, array in (("image", image), ("label", label if label is None else label.astype(dtype))):
            if array is not None:
                file.create_dataset(name, data=array.T if order == "xyz" else array, compression="gzip")
    return path


def write_picture(path: Path, rgb_or_grey: npt.NDArray[np.uint8]) -> Path:
    """Rows × columns, with red, green, blue last if it is coloured."""
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), rgb_or_grey[..., ::-1] if rgb_or_grey.ndim == 3 else rgb_or_grey)
    return path


def random_volume(
    seed: int, shape: tuple[int, ...] = (6, 10, 12), low: float = -200.0, high: float = 400.0
) -> npt.NDArray[np.float32]:
    """Noise that no two seeds share."""
    return np.random.default_rng(seed).uniform(low, high, shape).astype(np.float32)


def block_labels(shape: tuple[int, ...], *boxes: tuple[slice, ...]) -> npt.NDArray[np.uint8]:
    """Label 1 in the first box, 2 in the second …"""
    labels = np.zeros(shape, dtype=np.uint8)
    for label, box in enumerate(boxes, start=1):
        labels[box] = label
    return labels


def structure_set(
    phantom: CtPhantom, regions: dict[str, Sequence[tuple[float, npt.NDArray[np.float64]]]], kind: str = "CLOSED_PLANAR"
) -> Dataset:
    """Regions by name: contours as slice index and corners (y, x) in pixels."""
    structures = Dataset()
    structures.StructureSetROISequence, structures.ROIContourSequence = [], []
    for number, (name, contours) in enumerate(regions.items(), start=11):
        region, drawn = Dataset(), Dataset()
        region.ROINumber, region.ROIName = number, name
        region.ReferencedFrameOfReferenceUID = phantom.frame_of_reference_uid
        drawn.ReferencedROINumber, drawn.ContourSequence = number, []
        for z, corners in contours:
            contour = Dataset()
            index = np.column_stack([np.full(len(corners), z), corners])
            contour.ContourGeometricType, contour.NumberOfContourPoints = kind, len(corners)
            contour.ContourData = [f"{value:.4f}" for value in phantom.geometry.lps_from_index(index).ravel()]
            drawn.ContourSequence.append(contour)
        structures.StructureSetROISequence.append(region)
        structures.ROIContourSequence.insert(0, drawn)  # the two sequences need not have the same order
    return structures
