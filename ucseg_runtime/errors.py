"""Every error that ucseg raises on purpose, with its exit code, Triton code and stable identifier.

A message says what is wrong, where, what was found against what was expected; the hint says what to do. Messages never
hold patient data, file names or pixel values: a file is named by its ordinal in the scan ("file 41 of 133").
"""

from __future__ import annotations

import os
import traceback
from typing import ClassVar, Literal

TritonCode = Literal["INVALID_ARG", "INTERNAL", "UNAVAILABLE", "CANCELLED"]

EXIT_OK = 0
EXIT_DEFECT = 1
EXIT_USAGE = 2
EXIT_SOME_FAILED = 7
EXIT_REVIEW = 8
EXIT_REJECT = 9
EXIT_INTERRUPTED = 130


class UcsegError(Exception):
    """Root of all errors that a caller can act upon.

    Args:
        message: What, where, found against expected; one line.
        hint: What the reader can do about it; one line, may be empty.
        code: Stable identifier such as ``UCSEG-E114``; the class's default when not given.
    """

    exit_code: ClassVar[int] = EXIT_DEFECT
    triton_code: ClassVar[TritonCode] = "INTERNAL"
    default_code: ClassVar[str] = "UCSEG-E100"

    def __init__(self, message: str, *, hint: str = "", code: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.code = code or self.default_code

    def __str__(self) -> str:
        return f"{self.message} {self.hint}".strip()

    def as_json(self) -> dict[str, str | int]:
        """The machine-readable twin of the message, as ``--json`` prints it."""
        return {
            "code": self.code,
            "error": type(self).__name__,
            "message": self.message,
            "hint": self.hint,
            "exit_code": self.exit_code,
        }


class InputError(UcsegError, ValueError):
    """The input cannot be segmented as it is."""

    exit_code = 3
    triton_code = "INVALID_ARG"
    default_code = "UCSEG-E101"


class NotDicomError(InputError):
    """Nothing readable as DICOM was found, or a file that must be DICOM is not."""


class SeriesSelectionError(InputError):
    """No series fits the model; the reasons are in the message."""

    default_code = "UCSEG-E121"


class GeometryError(InputError):
    """Positions or orientations do not describe one volume."""

    default_code = "UCSEG-E118"


class SpacingError(GeometryError):
    """Slices are missing, duplicated or unevenly spaced."""

    default_code = "UCSEG-E114"


class PixelDataError(InputError):
    """Pixel data is missing, truncated, too large, or cannot be decoded."""

    default_code = "UCSEG-E104"


class TileShapeError(InputError):
    """An array given to a backend has another shape, type or layout than the model's tiles."""

    default_code = "UCSEG-E126"


class MemoryBudgetError(InputError):
    """The volume needs more memory than the caller allows."""

    default_code = "UCSEG-E127"


class ModelError(UcsegError):
    """The model folder cannot be used."""

    exit_code = 4
    default_code = "UCSEG-E130"


class ManifestError(ModelError):
    """``manifest.json`` is missing, malformed, or of an unknown schema version."""


class ArtifactMismatchError(ModelError):
    """A file of the model folder is missing, refused, or not the one that the manifest names."""


class UntrustedModelError(ModelError):
    """Nobody whom the site trusts vouches for the model, or its signature is false."""

    default_code = "UCSEG-E134"


class EngineMismatchError(ModelError):
    """A built engine belongs to another model, engine version or device."""

    default_code = "UCSEG-E131"


class AccuracyGateError(ModelError):
    """An engine did not prove that it decides like the reference."""

    default_code = "UCSEG-E132"


class RepositoryError(ModelError):
    """A Triton model repository is incomplete, or its models do not fit each other."""

    default_code = "UCSEG-E133"


class BackendError(UcsegError):
    """An engine failed while it was opened or while it inferred."""

    exit_code = 5
    triton_code = "UNAVAILABLE"
    default_code = "UCSEG-E140"


class BackendUnavailableError(BackendError):
    """The engine is not installed or cannot run here; the message names the extra to install."""

    default_code = "UCSEG-E141"


class ServerTimeoutError(BackendError):
    """A server gave no answer within the time that the caller allows."""

    default_code = "UCSEG-E143"


class OutputError(UcsegError):
    """Results could not be written; nothing half-written is left."""

    exit_code = 6
    default_code = "UCSEG-E150"


class SegWriteError(OutputError):
    """A DICOM object did not survive its own read-back check."""

    default_code = "UCSEG-E151"


class OutputExistsError(OutputError):
    """The output folder already holds results."""

    default_code = "UCSEG-E152"


class VerificationError(OutputError):
    """Results are not what their record says, or do not come from what it says."""

    default_code = "UCSEG-E153"


class ArchiveError(UcsegError):
    """An archive (PACS) could not be worked with."""

    exit_code = 5
    triton_code = "UNAVAILABLE"
    default_code = "UCSEG-E170"


class ArchiveUnreachableError(ArchiveError):
    """An archive does not answer, or stopped answering; it may do so later."""


class ArchiveRefusedError(ArchiveError):
    """An archive answers, and refuses what it is asked: wrong AE title, no rights, a class that it does not take."""

    default_code = "UCSEG-E171"


class SpoolError(OutputError):
    """The spool of a listener cannot be used."""

    default_code = "UCSEG-E172"


def type_and_place(error: BaseException) -> str:
    """What may be told of a defect, as ``KeyError at reader.py:41``: its message can hold values of the headers."""
    place = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__} at {os.path.basename(place.filename)}:{place.lineno}"
