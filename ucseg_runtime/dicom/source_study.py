"""The source images as outputs need them: who and which study they belong to, and the frames that results lie on.

highdicom checks, interprets and logs what it reads from source images, patient names included. It is therefore given
`SourceStudy.frames`, which hold positions and references alone; the attributes of patient and study are copied into the
finished object afterwards, exactly as they are.
"""

from __future__ import annotations

import logging
import re
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from functools import cached_property

from pydicom.dataset import Dataset
from pydicom.errors import BytesLengthException
from pydicom.uid import CTImageStorage

from ucseg_runtime.dicom.instances import stand_in_uid
from ucseg_runtime.dicom.object_classes import SLICE_CLASSES
from ucseg_runtime.dicom.uids import UidSource
from ucseg_runtime.errors import SegWriteError
from ucseg_runtime.identity import RunIdentity
from ucseg_runtime.slice_stack import AcquiredGrid

logger = logging.getLogger(__name__)

UNUSABLE = (
    ValueError,
    TypeError,
    AttributeError,
    LookupError,
    ArithmeticError,
    NotImplementedError,
    AssertionError,
    RecursionError,
    BytesLengthException,
    struct.error,
)
"""What pydicom and highdicom raise on headers that hold what DICOM does not allow."""

NEVER_ABSENT = (
    "PatientID",
    "PatientName",
    "PatientBirthDate",
    "PatientSex",
    "AccessionNumber",
    "StudyID",
    "StudyDate",
    "StudyTime",
    "ReferringPhysicianName",
)
"""Attributes of patient and study that objects must have, be it empty (type 2)."""

_LOSSY = ("LossyImageCompression", "LossyImageCompressionRatio", "LossyImageCompressionMethod")

_PATIENT_AND_STUDY = (
    "SpecificCharacterSet",
    "TimezoneOffsetFromUTC",
    # Patient, PS3.3 C.7.1.1
    "PatientName",
    "PatientID",
    "IssuerOfPatientID",
    "IssuerOfPatientIDQualifiersSequence",
    "TypeOfPatientID",
    "PatientBirthDate",
    "PatientBirthTime",
    "PatientSex",
    "QualityControlSubject",
    "OtherPatientIDsSequence",
    "OtherPatientNames",
    "EthnicGroup",
    "PatientComments",
    "PatientSpeciesDescription",
    "PatientSpeciesCodeSequence",
    "PatientBreedDescription",
    "PatientBreedCodeSequence",
    "BreedRegistrationSequence",
    "ResponsiblePerson",
    "ResponsiblePersonRole",
    "ResponsibleOrganization",
    "PatientIdentityRemoved",
    "DeidentificationMethod",
    "DeidentificationMethodCodeSequence",
    # Clinical Trial Subject and Study, C.7.1.3 and C.7.2.3
    "ClinicalTrialSponsorName",
    "ClinicalTrialProtocolID",
    "ClinicalTrialProtocolName",
    "ClinicalTrialSiteID",
    "ClinicalTrialSiteName",
    "ClinicalTrialSubjectID",
    "ClinicalTrialSubjectReadingID",
    "ClinicalTrialTimePointID",
    "ClinicalTrialTimePointDescription",
    # General Study, C.7.2.1
    "StudyDate",
    "StudyTime",
    "ReferringPhysicianName",
    "ReferringPhysicianIdentificationSequence",
    "ConsultingPhysicianName",
    "StudyID",
    "AccessionNumber",
    "IssuerOfAccessionNumberSequence",
    "StudyDescription",
    "PhysiciansOfRecord",
    "NameOfPhysiciansReadingStudy",
    "ReferencedStudySequence",
    "ProcedureCodeSequence",
    # Patient Study, C.7.2.2
    "AdmittingDiagnosesDescription",
    "PatientAge",
    "PatientSize",
    "PatientWeight",
    "PatientSexNeutered",
    "MedicalAlerts",
    "Allergies",
    "PregnancyStatus",
    "AdditionalPatientHistory",
    "AdmissionID",
    "ServiceEpisodeID",
)

_DATED = ("Study", "Series", "Acquisition", "Content")
_UNDATED = ("19000101", "000000")


@dataclass(frozen=True)
class FrameReference:
    """A frame of a multi-frame file.

    Attributes:
        sop_class_uid: Of the file.
        sop_instance_uid: Of the file.
        number: Of the frame, from 1.
    """

    sop_class_uid: str
    sop_instance_uid: str
    number: int


@dataclass(frozen=True, eq=False)
class SourceStudy:
    """What every output of one series is built from.

    Attributes:
        header: First source header as it was read; the only place here that knows the patient.
        frames: One dataset per slice in the order of the label map's z axis: references and position, no patient.
            Frames of multi-frame files stand as images of their own, under stand-in UIDs.
        references: By stand-in UID, the frame that it stands for.
        uids: UIDs of the outputs.
        date: Date that outputs carry as their own, DICOM DA; of the source images, so that running again changes
            nothing. The study's, else the series', acquisition's or content's; 19000101 where no date is readable.
        time: Time that belongs to `date`, DICOM TM.
    """

    header: Dataset
    frames: tuple[Dataset, ...]
    references: Mapping[str, FrameReference]
    uids: UidSource
    date: str
    time: str

    def with_frames_of_one_pixel(self) -> SourceStudy:
        """The same with frames of one pixel at the same positions: highdicom copies every pixel that it is given."""
        frames = []
        for frame in self.frames:
            small = Dataset()
            small.update(frame)
            small.Rows = small.Columns = 1
            frames.append(small)
        return replace(self, frames=tuple(frames))

    def slice_of(self, group: Dataset) -> int:
        """Z index of the frame that an item of the Per-Frame Functional Groups was derived from."""
        source = group.DerivationImageSequence[0].SourceImageSequence[0].ReferencedSOPInstanceUID
        return self._slices[source]

    @cached_property
    def _slices(self) -> dict[str, int]:
        return {frame.SOPInstanceUID: z for z, frame in enumerate(self.frames)}


def source_study(sources: Sequence[Dataset], geometry: AcquiredGrid, identity: RunIdentity) -> SourceStudy:
    """Collect what outputs take from the source images.

    Args:
        sources: Headers without pixel data, one per slice, in the order of the label map's z axis.
        geometry: Source grid.
        identity: What computed the result.

    Raises:
        SegWriteError: Headers and grid do not fit together.
    """
    _check_fit(sources, geometry)
    uids = UidSource(tuple(source_key(source) for source in sources), identity)
    date, time = _date_and_time(sources[0])
    references = dict(_references(sources))
    return SourceStudy(sources[0], tuple(_frames(sources, geometry)), references, uids, date, time)


def source_key(source: Dataset) -> str:
    """What identifies a source slice: its SOP Instance UID, and for a frame its number."""
    frame = f"#{source.ReferencedFrameNumber}" if "ReferencedFrameNumber" in source else ""
    return f"{source.SOPInstanceUID}{frame}"


def copy_patient_and_study(target: Dataset, header: Dataset) -> None:
    """Give `target` the patient and study attributes of `header`, unchanged; what is unreadable is left out."""
    for keyword in _PATIENT_AND_STUDY:
        if keyword not in header:
            continue
        try:
            target.add(header[keyword])
        except UNUSABLE:
            logger.warning("source attribute %s is unreadable and is not copied", keyword)


def _check_fit(sources: Sequence[Dataset], geometry: AcquiredGrid) -> None:
    slices, rows, columns = geometry.shape
    if len(sources) != slices:
        raise SegWriteError(f"there are {len(sources)} source headers for {slices} slices; expected one for each.")
    for index, source in enumerate(sources):
        found = (source.get("Rows"), source.get("Columns"))
        if found != (rows, columns):
            raise SegWriteError(
                f"the source image of slice {index + 1} of {slices} has {found[0]} x {found[1]} pixels; "
                f"the label map {rows} x {columns}"
            )


def _references(sources: Sequence[Dataset]) -> Iterator[tuple[str, FrameReference]]:
    for source in sources:
        if "ReferencedFrameNumber" in source:
            reference = FrameReference(source.SOPClassUID, source.SOPInstanceUID, int(source.ReferencedFrameNumber))
            yield stand_in_uid("frame", source_key(source)), reference


def _frames(sources: Sequence[Dataset], geometry: AcquiredGrid) -> Iterator[Dataset]:
    common = _common(sources[0], geometry)
    for source in sources:
        frame = Dataset()
        frame.update(common)
        frame.SOPClassUID = source.SOPClassUID
        frame.SOPInstanceUID = source.SOPInstanceUID
        if "ReferencedFrameNumber" in source:
            frame.SOPClassUID = SLICE_CLASSES.get(common.Modality, CTImageStorage)
            frame.SOPInstanceUID = stand_in_uid("frame", source_key(source))
        frame.ImagePositionPatient = source.ImagePositionPatient
        yield frame


def _common(first: Dataset, geometry: AcquiredGrid) -> Dataset:
    """What is the same in all slices. Orientations may differ in the last digit, which the reader has judged."""
    common = Dataset()
    common.StudyInstanceUID = first.StudyInstanceUID
    common.SeriesInstanceUID = first.SeriesInstanceUID
    common.FrameOfReferenceUID = first.FrameOfReferenceUID
    common.PositionReferenceIndicator = first.get("PositionReferenceIndicator")
    common.Modality = first.get("Modality", "OT")
    common.Rows, common.Columns = first.Rows, first.Columns
    common.ImageOrientationPatient = first.ImageOrientationPatient
    common.PixelSpacing = first.PixelSpacing
    common.SliceThickness = first.get("SliceThickness") or round(geometry.spacing_mm[0], 6)
    for keyword in NEVER_ABSENT:
        setattr(common, keyword, "")
    for keyword in _LOSSY:
        if keyword in first:
            setattr(common, keyword, first[keyword].value)
    return common


def _date_and_time(header: Dataset) -> tuple[str, str]:
    for prefix in _DATED:
        date = str(header.get(f"{prefix}Date") or "")
        if _is_date(date):
            time = str(header.get(f"{prefix}Time") or "")
            return date, time if _is_time(time) else "000000"
    return _UNDATED


def _is_date(text: str) -> bool:
    try:
        return bool(re.fullmatch(r"[0-9]{8}", text)) and bool(datetime.strptime(text, "%Y%m%d"))
    except ValueError:
        return False


def _is_time(text: str) -> bool:
    return bool(re.fullmatch(r"([01][0-9]|2[0-3])[0-5][0-9][0-5][0-9](\.[0-9]{1,6})?", text))
