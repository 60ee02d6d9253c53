"""Reading the header of one file: tolerant of everything that can be told apart, refusing the rest with a reason."""

from __future__ import annotations

import hashlib
import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BufferedReader
from typing import BinaryIO

from pydicom.config import disable_value_validation
from pydicom.dataset import Dataset
from pydicom.filereader import read_dataset, read_partial
from pydicom.tag import BaseTag, Tag
from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ImplicitVRLittleEndian,
    MediaStorageDirectoryStorage,
)

from ucseg_runtime.dicom.elements import UNREADABLE, code_of, integer_of, sequence_of, text_of, texts_of, uid_of
from ucseg_runtime.dicom.files import FoundFile
from ucseg_runtime.dicom.functional_groups import DIMENSIONS, PER_FRAME, SHARED, frames_of
from ucseg_runtime.dicom.instances import (
    UNDEFINED_LENGTH,
    Acquisition,
    Instance,
    PixelFormat,
    PixelLocation,
    stand_in_uid,
)
from ucseg_runtime.dicom.object_classes import MULTI_FRAME_CLASSES
from ucseg_runtime.dicom.placement import placement_of, rescale_of
from ucseg_runtime.dicom.transfer_syntaxes import syntax_name
from ucseg_runtime.dicom.wording import wording_of
from ucseg_runtime.regular_files import open_regular

_PREAMBLE_BYTES = 132
_LONGEST_HEADER_VALUE = 64 * 1024
_LONGEST_MULTI_FRAME_HEADER = 64 * 1024**2
_PIXEL_TAGS = frozenset({Tag("PixelData"), Tag("FloatPixelData"), Tag("DoubleFloatPixelData")})
_WRONG_ENCODING_WARNINGS = ("Expected implicit VR", "Expected explicit VR")
_KEYWORDS = (
    "ImageType",
    "SOPClassUID",
    "SOPInstanceUID",
    "Modality",
    "PatientName",
    "PatientID",
    "IssuerOfPatientID",
    "PatientBirthDate",
    "EchoNumbers",
    "StudyInstanceUID",
    "SeriesInstanceUID",
    "SeriesNumber",
    "AcquisitionNumber",
    "InstanceNumber",
    "ImagePositionPatient",
    "ImageOrientationPatient",
    "FrameOfReferenceUID",
    "TemporalPositionIdentifier",
    "SamplesPerPixel",
    "PhotometricInterpretation",
    "PlanarConfiguration",
    "NumberOfFrames",
    "NumberOfSeriesRelatedInstances",
    "Rows",
    "Columns",
    "PixelSpacing",
    "BitsAllocated",
    "BitsStored",
    "HighBit",
    "PixelRepresentation",
    "RescaleIntercept",
    "RescaleSlope",
    "RescaleType",
    "BodyPartExamined",
    "SeriesDescription",
    "ProtocolName",
    "SliceThickness",
    "ContrastBolusAgent",
)
_TAGS: list[BaseTag | int] = [Tag(keyword) for keyword in _KEYWORDS]


class RefusedFileError(Exception):
    """A file that is left out of the scan.

    Args:
        code: Stable identifier of the class of damage.
        reason: What was found against what was expected, free of values from the file.
    """

    def __init__(self, code: str, reason: str) -> None:
        super().__init__(reason)
        self.code = code
        self.reason = reason


@contextmanager
def quiet_pydicom() -> Iterator[list[warnings.WarningMessage]]:
    """Keep pydicom's warnings and log records, which quote values and file names, away from everybody else.

    Yields:
        The warnings so far; the caller may look at the kind of a warning and empty the list.
    """
    logger = logging.getLogger("pydicom")
    was_disabled = logger.disabled
    with warnings.catch_warnings(record=True) as caught, disable_value_validation():
        warnings.simplefilter("always")
        logger.disabled = True
        try:
            yield caught
        finally:
            logger.disabled = was_disabled


def read_instances(found: FoundFile, caught: list[warnings.WarningMessage]) -> list[Instance]:
    """The header of a file, without its pixels: one instance, or one for each frame of an enhanced multi-frame image.

    Args:
        found: A file that may be opened.
        caught: The list that `quiet_pydicom` yields; emptied before the file is read.

    Raises:
        RefusedFileError: The file is not DICOM, is damaged, or is encoded in a way that is not read.
    """
    caught.clear()
    try:
        with open_regular(found.path) as stream:
            header = _read_header(stream, found.size)
            _refuse_wrong_encoding(caught)
            whole = _instance(found, header, stream)
            return list(_frames(whole, stream)) if whole.sop_class_uid in MULTI_FRAME_CLASSES else [whole]
    except UNREADABLE as error:
        if isinstance(error, OSError) and error.errno:
            raise RefusedFileError("UCSEG-E102", "cannot be opened or read") from error
        raise RefusedFileError("UCSEG-E108", f"has a damaged header ({type(error).__name__})") from error


def read_whole_header(instance: Instance) -> Dataset:
    """All attributes of a file up to its pixel data, file meta information included.

    Raises:
        OSError: The file cannot be read any more, or is not the one that was scanned.
    """
    with open_unchanged(instance) as stream:
        return read_partial(stream, stop_when=lambda tag, _vr, _length: tag in _PIXEL_TAGS)


def open_unchanged(instance: Instance) -> BufferedReader:
    """Open the file of an instance.

    Raises:
        OSError: The file cannot be opened, or its size or time is not the one seen in the scan.
    """
    stream = open_regular(instance.path)
    status = os.fstat(stream.fileno())
    if (status.st_size, status.st_mtime_ns) != (instance.file_size, instance.modified_ns):
        stream.close()
        raise OSError("changed since the scan")
    return stream


@dataclass(frozen=True)
class _Header:
    meta: Dataset
    dataset: Dataset
    dataset_offset: int
    pixels: PixelLocation | None


class _ElementWatch:
    """Notes where elements end while pydicom walks over them, which pydicom itself does not check.

    Attributes:
        pixels: Location of the pixel data, once reached.
        is_cut_off: Whether an element claims more bytes than the file has.
    """

    def __init__(self, stream: BinaryIO, file_size: int) -> None:
        self._stream = stream
        self._file_size = file_size
        self.pixels: PixelLocation | None = None
        self.is_cut_off = False

    def stop_at(self, tag: BaseTag, _vr: str | None, length: int) -> bool:
        """Whether reading ends before this element; the stream stands at its value."""
        offset = self._stream.tell()
        if tag in _PIXEL_TAGS:
            self.pixels = PixelLocation(offset, length)
            return True
        self.is_cut_off = length != UNDEFINED_LENGTH and offset + length > self._file_size
        return self.is_cut_off


def _read_header(stream: BinaryIO, file_size: int) -> _Header:
    meta = _read_file_meta(stream)
    dataset_offset = stream.tell()
    _refuse_by_meta(meta)
    watch = _ElementWatch(stream, file_size)
    syntax = text_of(meta, "TransferSyntaxUID")
    dataset = read_dataset(
        stream,
        is_implicit_VR=syntax == ImplicitVRLittleEndian,
        is_little_endian=syntax != ExplicitVRBigEndian,
        stop_when=watch.stop_at,
        defer_size=_LONGEST_HEADER_VALUE,
        specific_tags=_TAGS,
    )
    if watch.is_cut_off:
        raise RefusedFileError("UCSEG-E103", "ends in the middle of its header")
    return _Header(meta, dataset, dataset_offset, watch.pixels)


def _read_file_meta(stream: BinaryIO) -> Dataset:
    """Group 0002 alone, so that the transfer syntax is known before anything is inflated."""
    start = stream.read(_PREAMBLE_BYTES)
    if start[-4:] != b"DICM":
        advice = "; it is a zip archive, to be given as an input of its own" if start.startswith(b"PK\3\4") else ""
        raise RefusedFileError("UCSEG-E101", f"is not a DICOM file (no DICM prefix){advice}")
    meta = read_dataset(
        stream,
        is_implicit_VR=False,
        is_little_endian=True,
        stop_when=lambda tag, _vr, _length: tag >> 16 != 0x0002,
        defer_size=_LONGEST_HEADER_VALUE,
    )
    if not text_of(meta, "TransferSyntaxUID"):
        raise RefusedFileError("UCSEG-E103", "names no transfer syntax in its file meta information")
    return meta


def _refuse_by_meta(meta: Dataset) -> None:
    if text_of(meta, "MediaStorageSOPClassUID") == MediaStorageDirectoryStorage:
        raise RefusedFileError("UCSEG-E121", "is a DICOMDIR; the files themselves are read, not their directory")
    syntax = text_of(meta, "TransferSyntaxUID")
    if not UID(syntax).is_valid:
        raise RefusedFileError("UCSEG-E105", "names a transfer syntax that is not a valid UID")
    if syntax == DeflatedExplicitVRLittleEndian:
        raise RefusedFileError(
            "UCSEG-E105", f"is stored in {syntax_name(syntax)}, which is not read because its inflated size is unknown"
        )


def _refuse_wrong_encoding(caught: list[warnings.WarningMessage]) -> None:
    if any(str(warning.message).startswith(_WRONG_ENCODING_WARNINGS) for warning in caught):
        raise RefusedFileError("UCSEG-E105", "is not encoded in the transfer syntax that it names")


def _instance(found: FoundFile, header: _Header, stream: BufferedReader) -> Instance:
    dataset, meta = header.dataset, header.meta
    uid = uid_of(dataset, "SOPInstanceUID") or uid_of(meta, "MediaStorageSOPInstanceUID")
    return Instance(
        path=found.path,
        ordinal=found.ordinal,
        total=found.total,
        file_size=found.size,
        modified_ns=found.modified_ns,
        dataset_offset=header.dataset_offset,
        transfer_syntax=text_of(meta, "TransferSyntaxUID"),
        sop_class_uid=uid_of(dataset, "SOPClassUID") or uid_of(meta, "MediaStorageSOPClassUID"),
        sop_instance_uid=uid or stand_in_uid("instance", content_digest(stream, header.dataset_offset)),
        study_uid=uid_of(dataset, "StudyInstanceUID"),
        series_uid=uid_of(dataset, "SeriesInstanceUID"),
        frame_of_reference_uid=uid_of(dataset, "FrameOfReferenceUID"),
        patient_key=_patient_key(dataset),
        modality=code_of(dataset, "Modality"),
        series_number=integer_of(dataset, "SeriesNumber"),
        instance_number=integer_of(dataset, "InstanceNumber"),
        image_type=tuple(part.strip().upper() for part in texts_of(dataset, "ImageType")),
        acquisition=Acquisition(
            integer_of(dataset, "AcquisitionNumber"),
            integer_of(dataset, "TemporalPositionIdentifier"),
            integer_of(dataset, "EchoNumbers"),
        ),
        placement=placement_of(dataset),
        pixel_format=_pixel_format(dataset),
        pixels=header.pixels,
        rescale=rescale_of(dataset),
        wording=wording_of(dataset),
        rescale_type=code_of(dataset, "RescaleType"),
        series_instances=integer_of(dataset, "NumberOfSeriesRelatedInstances"),
    )


def _frames(whole: Instance, stream: BufferedReader) -> Iterator[Instance]:
    end = whole.file_size if whole.pixels is None else whole.pixels.offset
    if end > _LONGEST_MULTI_FRAME_HEADER:
        raise RefusedFileError("UCSEG-E107", f"has a header of {end} bytes (at most {_LONGEST_MULTI_FRAME_HEADER})")
    stream.seek(0)
    tags: list[BaseTag | int] = [Tag(keyword) for keyword in (SHARED, PER_FRAME, DIMENSIONS)]
    groups = read_partial(stream, lambda tag, _vr, _length: tag in _PIXEL_TAGS, specific_tags=tags)
    frames, described = whole.pixel_format.frames, len(sequence_of(groups, PER_FRAME))
    if frames != described:
        raise RefusedFileError("UCSEG-E104", "has another number of frames than it describes")
    yield from frames_of(whole, groups)


def content_digest(stream: BufferedReader, offset: int) -> str:
    """SHA-256 of a file from `offset` on, in hexadecimal."""
    stream.seek(offset)
    return hashlib.file_digest(stream, "sha256").hexdigest()


def _patient_key(dataset: Dataset) -> str:
    keywords = ("PatientID", "IssuerOfPatientID", "PatientName", "PatientBirthDate")
    identity = "\n".join(text_of(dataset, keyword).upper().rstrip("^ ") for keyword in keywords)
    return hashlib.sha256(identity.encode()).hexdigest()


def _pixel_format(dataset: Dataset) -> PixelFormat:
    return PixelFormat(
        rows=integer_of(dataset, "Rows") or 0,
        columns=integer_of(dataset, "Columns") or 0,
        frames=integer_of(dataset, "NumberOfFrames") or 1,
        samples=integer_of(dataset, "SamplesPerPixel") or 1,
        photometric=code_of(dataset, "PhotometricInterpretation"),
        bits_allocated=integer_of(dataset, "BitsAllocated") or 0,
        bits_stored=integer_of(dataset, "BitsStored") or 0,
        high_bit=integer_of(dataset, "HighBit") or 0,
        signed=integer_of(dataset, "PixelRepresentation") == 1,
        by_plane=integer_of(dataset, "PlanarConfiguration") == 1,
    )
