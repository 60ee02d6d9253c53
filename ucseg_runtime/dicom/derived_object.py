"""What all DICOM outputs share: building inside one error seam, finishing, saving."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pydicom
from pydicom.dataset import Dataset, FileDataset

from ucseg_runtime.dicom.elements import UNREADABLE
from ucseg_runtime.dicom.equipment import scanner
from ucseg_runtime.dicom.frame_references import refer_to_frames
from ucseg_runtime.dicom.headers import quiet_pydicom
from ucseg_runtime.dicom.source_study import UNUSABLE, SourceStudy, copy_patient_and_study
from ucseg_runtime.errors import SegWriteError
from ucseg_runtime.safe_files import checked_file

_UNPAIRED = frozenset(
    {"ABDOMEN", "ABDOMENPELVIS", "BRAIN", "CHEST", "CHESTABDOMEN", "CHESTABDPELVIS", "HEAD", "HEADNECK", "NECK"}
    | {"PELVIS", "SPINE", "WHOLEBODY"}
)


@contextmanager
def building(what: str) -> Iterator[None]:
    """Turn what highdicom or pydicom raise while `what` is built into a `SegWriteError`; warnings are dropped."""
    try:
        with quiet_pydicom():
            yield
    except UNUSABLE as error:
        raise SegWriteError(
            f"{what} could not be built from the source headers ({type(error).__name__}).",
            hint="A header holds a value that DICOM does not allow; the cause is chained to this error.",
        ) from error


@contextmanager
def reading_back() -> Iterator[None]:
    """Turn what pydicom raises for a damaged file into a `SegWriteError`; warnings are dropped."""
    try:
        with quiet_pydicom():
            yield
    except (*UNREADABLE, RuntimeError) as error:  # pydicom's decoders raise RuntimeError
        raise SegWriteError(
            f"the file that was written cannot be read back ({type(error).__name__}).", hint="Check the disk."
        ) from error


def finish(dataset: Dataset, study: SourceStudy, kind: str) -> None:
    """Put in what must not depend on the moment of writing, and what belongs to patient and study.

    Args:
        dataset: An object that was built from `study.frames`; changed in place.
        study: Where patient, study, dates and UIDs come from.
        kind: Distinguishes the derived UIDs of the objects of one run.
    """
    refer_to_frames(dataset, study.references)
    copy_patient_and_study(dataset, study.header)
    dataset.ContributingEquipmentSequence = scanner(study.header)
    if not dataset.ContributingEquipmentSequence:
        del dataset.ContributingEquipmentSequence
    for moment in ("InstanceCreation", "Content"):
        if f"{moment}Date" in dataset:
            setattr(dataset, f"{moment}Date", study.date)
            setattr(dataset, f"{moment}Time", study.time)
    if "ContentLabel" in dataset:
        dataset.ContentCreatorName = ""  # type 2, which highdicom 0.28 leaves out
    organisation = study.uids.of_output(f"{kind} dimensions")
    for item in (*dataset.get("DimensionOrganizationSequence", ()), *dataset.get("DimensionIndexSequence", ())):
        item.DimensionOrganizationUID = organisation


def add_body_part(dataset: Dataset, header: Dataset) -> None:
    """Name the body part where it is one without sides; else the side, empty where it is not known.

    Source: DICOM PS3.3 C.7.3.1: Laterality (0020,0060) is of type 2C, required where the body part may be a paired one.
    """
    body_part, side = str(header.get("BodyPartExamined")), str(header.get("Laterality"))
    if body_part in _UNPAIRED:
        dataset.BodyPartExamined = body_part
    else:
        dataset.Laterality = side if side in {"L", "R"} else ""


def save(dataset: Dataset, path: Path) -> None:
    """Write the object as a DICOM file.

    Raises:
        OSError: The file cannot be written.
        SegWriteError: An element cannot be encoded.
    """
    with building("the DICOM file"), checked_file(path) as stream:
        dataset.save_as(stream, enforce_file_format=True)


def read_header(path: Path) -> FileDataset:
    """The object at `path` without its pixel data."""
    return pydicom.dcmread(path, stop_before_pixels=True)


def segment_of(dataset: Dataset, group: Dataset) -> int:
    """Referenced segment number of an item of the Per-Frame Functional Groups; 0 where frames belong to no segment.

    highdicom puts it into the shared groups where there is one segment alone.
    """
    for item in (group, dataset.SharedFunctionalGroupsSequence[0]):
        if "SegmentIdentificationSequence" in item:
            return int(item.SegmentIdentificationSequence[0].ReferencedSegmentNumber)
    return 0
