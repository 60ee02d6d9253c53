"""The picture of a result as a DICOM Secondary Capture, for archives that take nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import highdicom as hd
import numpy as np
import pydicom
from pydicom.dataset import Dataset, FileDataset
from pydicom.uid import ExplicitVRLittleEndian

from ucseg_runtime.arrays import UInt8Array
from ucseg_runtime.dicom.derived_object import add_body_part, building, finish, reading_back, save
from ucseg_runtime.dicom.equipment import equipment
from ucseg_runtime.dicom.source_study import SourceStudy, source_study
from ucseg_runtime.errors import SegWriteError
from ucseg_runtime.identity import RunIdentity
from ucseg_runtime.slice_stack import AcquiredGrid

SERIES_NUMBER = 905

_KIND = "preview"


def write_preview(
    path: Path, picture_rgb: UInt8Array, geometry: AcquiredGrid, sources: Sequence[Dataset], identity: RunIdentity
) -> FileDataset:
    """Write a picture as an uncompressed RGB Secondary Capture and return it, after it was read back and compared.

    It has no place in the patient: no frame of reference, position or orientation. Nothing that identifies the patient
    is burned in: the picture has no text but titles, sides and names of classes.

    Args:
        path: File to write.
        picture_rgb: uint8, shape (rows, columns, 3), red-green-blue.
        geometry: Source grid.
        sources: Source headers without pixel data, one per slice in the order of the z axis.
        identity: What computed the result.

    Raises:
        OSError: The file cannot be written.
        SegWriteError: Headers and grid do not fit together, or the object differs when read back.

    Source: DICOM PS3.3 A.8.1 and C.8.6.
    """
    with building("the preview"):
        study = source_study(sources, geometry, identity)
        dataset = _secondary_capture(picture_rgb, study, identity)
        finish(dataset, study, _KIND)
        add_body_part(dataset, study.header)
    save(dataset, path)
    with reading_back():
        written = pydicom.dcmread(path)
        if not np.array_equal(written.pixel_array, picture_rgb):
            raise SegWriteError("the preview was read back with another picture than was written.")
    return written


def _secondary_capture(picture_rgb: UInt8Array, study: SourceStudy, identity: RunIdentity) -> Dataset:
    device, first = equipment(identity), study.frames[0]
    dataset: Dataset = hd.sc.SCImage(
        pixel_array=picture_rgb,
        photometric_interpretation="RGB",
        bits_allocated=8,
        coordinate_system="PATIENT",
        patient_orientation=("L", "P"),  # one is demanded
        study_instance_uid=first.StudyInstanceUID,
        series_instance_uid=study.uids.of_output(f"{_KIND} series"),
        series_number=SERIES_NUMBER,
        sop_instance_uid=study.uids.of_output(f"{_KIND} instance"),
        instance_number=1,
        manufacturer=device.manufacturer,
        manufacturer_model_name=device.model_name,
        software_versions=device.software_versions,
        device_serial_number=device.serial_number,
        transfer_syntax_uid=ExplicitVRLittleEndian,
    )
    dataset.PatientOrientation = None  # views in several directions
    dataset.ImageType = ["DERIVED", "SECONDARY"]
    dataset.SeriesDescription = "ucseg preview"
    dataset.DateOfSecondaryCapture, dataset.TimeOfSecondaryCapture = study.date, study.time
    dataset.DerivationDescription = "Outlines of an automatic segmentation and its uncertainty, for research"
    dataset.BurnedInAnnotation = "NO"
    return dataset
