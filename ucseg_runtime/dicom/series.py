"""Scanning a folder for the series in it; headers are read once, pixels not at all."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter

from ucseg_runtime.dicom.content import Origin, contents_of
from ucseg_runtime.dicom.files import MAX_FILE_BYTES, FoundFile, find_files
from ucseg_runtime.dicom.grouping import series_from_instances
from ucseg_runtime.dicom.headers import RefusedFileError, quiet_pydicom, read_instances
from ucseg_runtime.dicom.instances import Instance, Series
from ucseg_runtime.errors import InputError, NotDicomError, PixelDataError

__all__ = ["Scan", "Series", "SkippedFile", "scan", "scan_files"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class SkippedFile:
    """An entry of the input that no series contains.

    Attributes:
        ordinal: Place in the scan, from 1.
        total: Number of entries in the scan.
        code: Stable identifier of the reason.
        reason: What was found, for people; starts with a verb.
    """

    ordinal: int
    total: int
    code: str
    reason: str


@dataclass(frozen=True)
class Scan:
    """What an input holds.

    Attributes:
        series: At least one, in an order that depends on their content alone.
        skipped: Entries that were left out, by ordinal.
        contents: Digest of what all readable files of a series hold, see `SeriesContent`.
    """

    series: tuple[Series, ...]
    skipped: tuple[SkippedFile, ...]
    contents: Mapping[Origin, str] = field(default_factory=dict)


def scan(input: Path, max_file_bytes: int = MAX_FILE_BYTES, allow_gaps: int = 0) -> Scan:
    """Read the headers of all files below a folder, or of one DICOM file, and group them into series.

    Archives and directory records have to be opened first: see `sources.opened_input` and `scan_files`.

    Args:
        input: Folder, searched with all its subfolders, or file.
        max_file_bytes: Larger files are skipped.
        allow_gaps: Most missing slices in a row of a series that may be bridged.

    Raises:
        InputError: The input cannot be read; or see `scan_files`.
    """
    return scan_files(find_files(input, max_file_bytes), allow_gaps)


def scan_files(files: Sequence[FoundFile], allow_gaps: int = 0) -> Scan:
    """Read the headers of files and group them into series.

    Damaged, foreign and special files are skipped and reported; they never hide the good ones.

    Args:
        files: Everything that an input holds.
        allow_gaps: Most missing slices in a row of a series that may be bridged.

    Raises:
        InputError: None of the files can be read.
        NotDicomError: No file is DICOM.
        PixelDataError: Every file is in a transfer syntax that is not read.
    """
    start = perf_counter()
    instances: list[Instance] = []
    number = 0
    skipped: list[SkippedFile] = []
    with quiet_pydicom() as caught:
        for found in files:
            try:
                if found.refusal:
                    raise RefusedFileError(found.refusal_code, found.refusal)
                instances.extend(read_instances(found, caught))
                number += 1
            except RefusedFileError as refusal:
                skipped.append(_skipped(found, refusal))
    if not instances:
        raise _nothing_left(skipped)
    series = series_from_instances(instances, allow_gaps)
    logger.info(
        "scan: %d files, %d series, %d skipped, %.2f s",
        number + len(skipped),
        len(series),
        len(skipped),
        perf_counter() - start,
    )
    return Scan(series, tuple(skipped), contents_of(instances))


def _skipped(found: FoundFile, refusal: RefusedFileError) -> SkippedFile:
    return SkippedFile(found.ordinal, found.total, refusal.code, refusal.reason)


def _nothing_left(skipped: Sequence[SkippedFile]) -> InputError:
    """The error for an input without a single readable file: the commonest reason decides."""
    if not skipped:
        return NotDicomError("the input holds no files.", hint="Give a folder with DICOM files.")
    counts = Counter((item.code, item.reason) for item in skipped)
    reasons = "; ".join(f"{count} × {reason}" for (_, reason), count in counts.most_common(5))
    code = counts.most_common(1)[0][0][0]
    message = f"none of the {len(skipped)} files can be read: {reasons}."
    hint = "Give a folder with DICOM images of one patient."
    if code == "UCSEG-E105":
        return PixelDataError(message, hint="Export the images uncompressed (Explicit VR Little Endian).", code=code)
    if code == "UCSEG-E101":
        return NotDicomError(message, hint=hint)
    return InputError(message, hint=hint, code=code)
