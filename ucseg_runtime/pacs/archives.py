"""What an archive can be asked, whichever protocol it speaks."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from ucseg_runtime.pacs.addresses import Address, DicomNode
from ucseg_runtime.pacs.credentials import CredentialFiles
from ucseg_runtime.pacs.objects import DicomObject
from ucseg_runtime.server_options import TlsFiles


@dataclass(frozen=True)
class Connection:
    """How archives are spoken to.

    Attributes:
        own_title: Our application entity title.
        connect_s: Within which a connection must be made, in s.
        answer_s: Within which something must come of an answer, in s.
        use_tls: Whether DIMSE is encrypted; DICOMweb is by its URL.
        tls: Certificates.
        credentials: For DICOMweb.
    """

    own_title: str = "UCSEG"
    connect_s: float = 10.0
    answer_s: float = 60.0
    use_tls: bool = False
    tls: TlsFiles = TlsFiles()
    credentials: CredentialFiles = field(default_factory=CredentialFiles)


@dataclass(frozen=True)
class Stored:
    """What an archive said of one object.

    Attributes:
        item: Which one.
        reason: Why the archive does not take it; empty where it has it now.
        class_refused: Whether it takes no objects of this kind, as far as it says.
    """

    item: DicomObject
    reason: str = ""
    class_refused: bool = False

    @property
    def is_there(self) -> bool:
        """Whether the archive has it."""
        return not self.reason


@dataclass(frozen=True)
class SeriesFilter:
    """What is looked for; empty fields stand for anything.

    Attributes:
        study_uid: Of the study.
        series_uid: Of the series.
        modality: Such as CT.
        study_date: A day ``YYYYMMDD`` or a range ``YYYYMMDD-YYYYMMDD``, either end of which may be left out.
    """

    study_uid: str = ""
    series_uid: str = ""
    modality: str = ""
    study_date: str = ""


@dataclass(frozen=True)
class FoundSeries:
    """A series of an archive, without anything that tells who the patient is.

    Attributes:
        study_uid: (0020,000D).
        series_uid: (0020,000E).
        modality: (0008,0060).
        study_date: (0008,0020).
        instances: How many it has; 0 where the archive does not say.
    """

    study_uid: str
    series_uid: str
    modality: str
    study_date: str
    instances: int


class Archive(Protocol):
    """One archive. Every method opens a connection and closes it.

    Every method raises `ArchiveUnreachableError` where the archive does not answer, and `ArchiveRefusedError` where it
    refuses.
    """

    def store(self, objects: Sequence[DicomObject], report: Callable[[Stored], None]) -> None:
        """Store objects; `report` is told of each that the archive took or refused, as soon as it is known.

        What the archive takes is negotiated before anything is sent.
        """

    def find(self, wanted: SeriesFilter) -> tuple[FoundSeries, ...]:
        """Series that fit."""

    def fetch(self, study_uid: str, series_uid: str, folder: Path) -> int:
        """Write all instances of a series, or of a study without series, into a folder; their number."""

    def refused_classes(self, classes: frozenset[tuple[str, str]]) -> Mapping[str, str]:
        """Which of some SOP classes with transfer syntaxes the archive does not take, and their names.

        Empty also where an archive cannot be asked beforehand.
        """


def archive_at(address: Address, connection: Connection) -> Archive:
    """The archive at an address; nothing is sent yet.

    Raises:
        BackendUnavailableError: The extra is not installed.
        ArchiveRefusedError: Credentials or certificates cannot be used.
    """
    if isinstance(address, DicomNode):
        from ucseg_runtime.pacs.dimse_archive import DimseArchive

        return DimseArchive(address, connection)
    from ucseg_runtime.pacs.dicomweb import WebArchiveClient

    return WebArchiveClient(address, connection)
