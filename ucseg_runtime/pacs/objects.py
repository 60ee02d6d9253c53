"""DICOM files as something to send: what kind of object, under which UIDs, encoded how."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from ucseg_runtime.dicom.files import UNREADABLE_INPUT, entries_below, found_file
from ucseg_runtime.dicom.headers import RefusedFileError, quiet_pydicom, read_instances
from ucseg_runtime.dicom.instances import Instance
from ucseg_runtime.errors import NotDicomError

LABEL_MAP_CLASS = "1.2.840.10008.5.1.4.1.1.66.7"
"""Label Map Segmentation Storage, for which pydicom 3.0 has no name."""

_NO_DICOM = "UCSEG-E101"


@dataclass(frozen=True)
class DicomObject:
    """One file.

    Attributes:
        path: Where it lies; never shown.
        sop_class_uid: (0008,0016).
        sop_uid: (0008,0018).
        study_uid: (0020,000D).
        transfer_syntax: Of the file.
    """

    path: Path = field(repr=False)
    sop_class_uid: str
    sop_uid: str
    study_uid: str
    transfer_syntax: str


def read_header(path: Path) -> Instance:
    """The header of one DICOM file, or of its first frame.

    Raises:
        RefusedFileError: It is damaged, no DICOM file, or in an encoding that is not read.
        OSError: It cannot be looked at.
    """
    caught: list[warnings.WarningMessage] = []
    return read_instances(found_file(path, 1, 1, path.lstat(), path.name), caught)[0]


def dicom_object(path: Path) -> DicomObject:
    """What is to be known of a file in order to send it.

    Raises:
        RefusedFileError: See `read_header`.
        OSError: See `read_header`.
    """
    header = read_header(path)
    return DicomObject(path, header.sop_class_uid, header.sop_instance_uid, header.study_uid, header.transfer_syntax)


def objects_below(paths: Iterable[Path], unusable: Callable[[str], None]) -> tuple[DicomObject, ...]:
    """Every DICOM object in some files and folders, each UID once; files of other kinds are left out.

    Args:
        paths: Files and folders.
        unusable: Told of every file that cannot be read or is damaged, by its place among all, and why.

    Raises:
        InputError: A path cannot be read.
        NotDicomError: There is none.
    """
    found: dict[str, DicomObject] = {}
    with quiet_pydicom():
        for place, path in enumerate(_files(paths), start=1):
            try:
                item = dicom_object(path)
            except RefusedFileError as refusal:
                if refusal.code != _NO_DICOM:
                    unusable(f"file {place} {refusal.reason} ({refusal.code})")
            except OSError as error:
                reason = os.strerror(error.errno) if error.errno else type(error).__name__
                unusable(f"file {place} cannot be read: {reason} ({UNREADABLE_INPUT})")
            else:
                found.setdefault(item.sop_uid, item)
    if not found:
        raise NotDicomError("no DICOM objects were found to send.", hint="Give a folder of results, or DICOM files.")
    return tuple(found.values())


def _files(paths: Iterable[Path]) -> Iterator[Path]:
    for path in paths:
        for entry, _ in entries_below(path):
            yield entry


def classes_of(objects: Sequence[DicomObject]) -> frozenset[tuple[str, str]]:
    """SOP class and transfer syntax of each, every pair once."""
    return frozenset((item.sop_class_uid, item.transfer_syntax) for item in objects)


@contextmanager
def quiet_process() -> Iterator[None]:
    """Nothing that pydicom or pynetdicom say of values and names leaves the process, whichever thread they run in.

    `quiet_pydicom` collects the warnings; a process that runs for months must not. It is to be entered before the
    first thread is started, since these settings belong to the whole process.
    """
    with quiet_pydicom() as caught, warnings.catch_warnings():
        caught.clear()
        warnings.simplefilter("ignore")
        yield
