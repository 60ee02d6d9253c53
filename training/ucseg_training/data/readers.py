"""A case from its files, whatever their format; the suffix decides, and folders are DICOM."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np

from ucseg_runtime.arrays import UInt8Array
from ucseg_runtime.errors import InputError
from ucseg_training.data.case_list import CaseEntry
from ucseg_training.data.dataset_spec import DatasetSpec
from ucseg_training.data.label_grid import onto_image_grid, require_same_grid
from ucseg_training.data.label_values import labels_from_values
from ucseg_training.data.source import SourceCase, SourceImage, StoredLabel

Format = Literal["nifti", "hdf5", "picture", "dicom"]

_FORMATS: dict[str, Format] = {
    ".nii": "nifti",
    ".nii.gz": "nifti",
    ".h5": "hdf5",
    ".hdf5": "hdf5",
    ".png": "picture",
    ".jpg": "picture",
    ".jpeg": "picture",
    ".bmp": "picture",
    ".tif": "picture",
    ".tiff": "picture",
    ".dcm": "dicom",
}


def read_case(entry: CaseEntry, spec: DatasetSpec) -> SourceCase:
    """Image and label on the grid of the image, checked.

    Raises:
        InputError: A file is missing or cannot be read; voxels are not finite; the channels are not those of the data
            set; the label lies on another grid than the image or holds a value that belongs to no class. Messages name
            neither the case nor its files.
    """
    formats = {_format_of(path, "its image") for path in entry.images}
    image = _joined([_read_image(path, spec) for path in entry.images])
    if len(image.voxels) not in (1, spec.channels):
        raise InputError(f"its image has {len(image.voxels)} channels; expected {spec.channels}.")
    bad = int(image.voxels.size - np.isfinite(image.voxels).sum())
    if bad:
        raise InputError(f"{bad} voxels of its image are NaN or infinite.", hint="Export the image again.")
    label_map = None if entry.label is None else _read_label(entry.label, image, spec)
    return SourceCase(image, label_map, from_hdf5="hdf5" in formats)


def _format_of(path: Path, what: str) -> Format:
    if path.is_dir():
        return "dicom"
    if not path.is_file():
        raise InputError(f"{what} does not exist.", hint="Check the data set's folder and its lists.")
    for suffix, found in _FORMATS.items():
        if path.name.lower().endswith(suffix):
            return found
    raise InputError(f"{what} has an unknown suffix.", hint=f"Known are {', '.join(_FORMATS)}, and folders of DICOM.")


# Libraries are loaded by the first file that needs them: each format has its own, and few data sets have two.


def _read_image(path: Path, spec: DatasetSpec) -> SourceImage:
    match _format_of(path, "its image"):
        case "nifti":
            from ucseg_training.data.read_nifti import read_nifti_image

            return read_nifti_image(path)
        case "hdf5":
            from ucseg_training.data.read_hdf5 import read_hdf5_image

            return read_hdf5_image(path, spec)
        case "picture":
            from ucseg_training.data.read_picture import read_picture_image

            return read_picture_image(path, spec)
        case "dicom":
            from ucseg_training.data.read_dicom import read_dicom_image

            return read_dicom_image(path, spec.modality)


def _read_label(path: Path, image: SourceImage, spec: DatasetSpec) -> UInt8Array:
    stored: StoredLabel
    match _format_of(path, "its label"):
        case "nifti":
            from ucseg_training.data.read_nifti import read_nifti_label

            stored = read_nifti_label(path)
        case "hdf5":
            from ucseg_training.data.read_hdf5 import read_hdf5_label

            stored = read_hdf5_label(path, spec)
        case "picture":
            from ucseg_training.data.read_picture import read_picture_label

            stored = read_picture_label(path, spec)
        case "dicom":
            from ucseg_training.data.read_dicom import read_dicom_label

            return read_dicom_label(path, image, spec)
    return labels_from_values(onto_image_grid(stored.values, stored.geometry, image.geometry), spec)


def _joined(channels: list[SourceImage]) -> SourceImage:
    first = channels[0]
    if len(channels) == 1:
        return first
    for other in channels[1:]:
        require_same_grid(first.geometry, other.geometry, "its channels")
    voxels = np.concatenate([channel.voxels for channel in channels])
    return SourceImage(voxels, first.geometry, first.frame_of_reference_uid)
