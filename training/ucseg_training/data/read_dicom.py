"""DICOM series, and labels in DICOM SEG or RTSTRUCT."""

from __future__ import annotations

from pathlib import Path

import highdicom
import numpy as np
import pydicom
from pydicom.uid import RTStructureSetStorage, SegmentationStorage

from ucseg_runtime.arrays import UInt8Array
from ucseg_runtime.dicom.elements import UNREADABLE
from ucseg_runtime.dicom.headers import quiet_pydicom
from ucseg_runtime.dicom.reader import read_volume
from ucseg_runtime.dicom.selection import select_series
from ucseg_runtime.dicom.series import scan
from ucseg_runtime.errors import InputError
from ucseg_runtime.geometry import VolumeGeometry
from ucseg_training.data.dataset_spec import DatasetSpec
from ucseg_training.data.label_grid import onto_image_grid
from ucseg_training.data.rtstruct import labels_from_rtstruct, require_every_class
from ucseg_training.data.source import SourceImage, reading

_LABEL = "its label"
# Label Map Segmentation Storage, younger than pydicom 3.0's names.
_LABEL_MAP_SEGMENTATION_STORAGE = "1.2.840.10008.5.1.4.1.1.66.7"


def read_dicom_image(path: Path, modality: str) -> SourceImage:
    """The series of a modality with the most slices, as the runtime reads it.

    Raises:
        InputError: No series of the folder is a usable volume of that modality.
    """
    series = select_series(scan(path), modality).chosen
    volume = read_volume(series)
    return SourceImage(volume.voxels.astype(np.float32)[None], volume.geometry, series.frame_of_reference_uid)


def read_dicom_label(path: Path, image: SourceImage, spec: DatasetSpec) -> UInt8Array:
    """Labels of the classes on the grid of the image, uint8, shape (z, y, x).

    Segments or regions are found by name; others than those of the data set are not read. Where two overlap, the class
    with the greater label has the voxel.

    Args:
        path: File, or folder with one file.
        image: What the label belongs to.
        spec: Names of the segments or regions.

    Raises:
        InputError: Not one readable SEG or RTSTRUCT file, in another frame of reference, or without one of the classes.
        GeometryError: It does not lie on the grid of the image.
    """
    path = _only_file(path)
    with quiet_pydicom(), reading(_LABEL, *UNREADABLE):
        header = pydicom.dcmread(path, stop_before_pixels=True)
        sop_class = str(header.get("SOPClassUID", ""))
        if sop_class == RTStructureSetStorage:
            return labels_from_rtstruct(header, image, spec.labels_by_structure)
        if sop_class in (SegmentationStorage, _LABEL_MAP_SEGMENTATION_STORAGE):
            if image.frame_of_reference_uid not in ("", str(header.get("FrameOfReferenceUID", ""))):
                raise InputError("the segmentation belongs to another frame of reference than the image.")
            return _labels_from_seg(path, image.geometry, spec.labels_by_structure)
    raise InputError("its label is neither a DICOM segmentation nor an RT structure set.")


def _only_file(path: Path) -> Path:
    if not path.is_dir():
        return path
    files = [entry for entry in path.iterdir() if entry.is_file() and not entry.name.startswith(".")]
    if len(files) != 1:
        raise InputError(f"the folder of its label holds {len(files)} files; expected one.")
    return files[0]


def _labels_from_seg(path: Path, grid: VolumeGeometry, labels: dict[str, int]) -> UInt8Array:
    segmentation = highdicom.seg.segread(path)
    if segmentation.segmentation_type.value == "FRACTIONAL":
        raise InputError("its label is a segmentation of fractions; expected one of labels.")
    label_of = {
        number: labels[name]
        for number in segmentation.segment_numbers
        if (name := str(segmentation.get_segment_description(number).segment_label).strip().lower()) in labels
    }
    require_every_class(set(label_of.values()), labels)
    numbers = sorted(label_of, key=lambda number: label_of[number])
    volume = segmentation.get_volume(segment_numbers=numbers)
    label_map = np.zeros(volume.spatial_shape, dtype=np.uint8)
    for position, number in enumerate(numbers):
        label_map[volume.array[..., position] > 0] = label_of[number]
    z, y, x = label_map.shape
    return onto_image_grid(label_map, VolumeGeometry(volume.affine, (z, y, x)), grid, part=True)
