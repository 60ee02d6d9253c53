"""An archive by DICOMweb: QIDO-RS to find, WADO-RS to fetch, STOW-RS to store."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pydicom
from pydicom.dataset import Dataset

from ucseg_runtime.dicom.elements import UNREADABLE
from ucseg_runtime.dicom.headers import quiet_pydicom
from ucseg_runtime.errors import ArchiveRefusedError, ArchiveUnreachableError
from ucseg_runtime.pacs.addresses import WebArchive
from ucseg_runtime.pacs.archives import Connection, FoundSeries, SeriesFilter, Stored
from ucseg_runtime.pacs.objects import DicomObject
from ucseg_runtime.pacs.packages import require_pacs_extra
from ucseg_runtime.pacs.web_session import reported_as_archive_error, web_session

if TYPE_CHECKING:
    from dicomweb_client.web import DICOMwebClient

_STUDY, _SERIES, _MODALITY, _DATE, _INSTANCES = "0020000D", "0020000E", "00080060", "00080020", "00201209"
_FIELDS = ("StudyInstanceUID", "StudyDate", "NumberOfSeriesRelatedInstances")
_AS_STORED = (("application/dicom", "*"),)
_CHUNK_BYTES = 1 << 20
_REQUEST_BYTES = 64 << 20
_REQUEST_OBJECTS = 64
_CLASS_NOT_SUPPORTED = 0x0122
_ALL_REFUSED = 409


class WebArchiveClient:
    """See `Archive`.

    Args:
        address: Of the archive.
        connection: Time limits, credentials, certificates.

    Raises:
        BackendUnavailableError: The extra is not installed.
        ArchiveRefusedError: Credentials or certificates cannot be used.
    """

    def __init__(self, address: WebArchive, connection: Connection) -> None:
        require_pacs_extra("requests", "dicomweb_client")
        self._address = address
        self._connection = connection

    def store(self, objects: Sequence[DicomObject], report: Callable[[Stored], None]) -> None:
        """See `Archive.store`; what is refused among others is tried once more alone."""
        for group in _groups(objects):
            again = []
            for stored in self._stored(group):
                if stored.is_there:
                    report(stored)
                else:
                    again.append(stored)
            for stored in again:
                report(self._stored([stored.item])[0] if len(group) > 1 else stored)

    def find(self, wanted: SeriesFilter) -> tuple[FoundSeries, ...]:
        """See `Archive.find`."""
        filters = {
            "SeriesInstanceUID": wanted.series_uid,
            "Modality": wanted.modality,
            "StudyDate": wanted.study_date,
        }
        with reported_as_archive_error(self._address), quiet_pydicom(), self._client() as client:
            found = client.search_for_series(
                study_instance_uid=wanted.study_uid or None,
                fields=list(_FIELDS),
                search_filters={name: value for name, value in filters.items() if value},
            )
            return tuple(_found_series(item, wanted) for item in found)

    def fetch(self, study_uid: str, series_uid: str, folder: Path) -> int:
        """See `Archive.fetch`."""
        expected = sum(item.instances for item in self.find(SeriesFilter(study_uid, series_uid)))
        written = set()
        with reported_as_archive_error(self._address), quiet_pydicom() as caught, self._client() as client:
            for dataset in _instances(client, study_uid, series_uid):
                name = instance_name(str(dataset.SOPInstanceUID))
                _write(dataset, folder / name)
                written.add(name)
                caught.clear()
        if len(written) < expected:
            raise ArchiveUnreachableError(
                f"{self._address} gave {len(written)} of {expected} instances.", hint="Try again; see its log."
            )
        return len(written)

    def refused_classes(self, classes: frozenset[tuple[str, str]]) -> Mapping[str, str]:
        """See `Archive.refused_classes`: DICOMweb has no way to ask."""
        return {}

    def _stored(self, group: Sequence[DicomObject]) -> list[Stored]:
        """One request. An archive that is gone is gone for all; whatever else it says is about single objects.

        Raises:
            ArchiveUnreachableError: It did not answer, or has trouble.
        """
        try:
            with reported_as_archive_error(self._address), quiet_pydicom(), self._client() as client:
                answer = client.store_instances([pydicom.dcmread(item.path) for item in group])
                return [_outcome(item, answer) for item in group]
        except ArchiveRefusedError as error:
            answer = _answer_of(error.__cause__)
            return [_outcome(item, answer) if answer else Stored(item, error.message) for item in group]

    @contextmanager
    def _client(self) -> Iterator[DICOMwebClient]:
        from dicomweb_client.web import DICOMwebClient

        with web_session(self._address, self._connection) as session:
            timeouts = (self._connection.connect_s, self._connection.answer_s)
            client = DICOMwebClient(self._address.url, session=session, chunk_size=_CHUNK_BYTES, timeout=timeouts)
            client.set_http_retry_params(retry=False)  # the session repeats what may be repeated
            yield client


def _instances(client: DICOMwebClient, study_uid: str, series_uid: str) -> Iterator[Dataset]:
    if series_uid:
        return client.iter_series(study_uid, series_uid, media_types=_AS_STORED)
    return client.iter_study(study_uid, media_types=_AS_STORED)


def instance_name(sop_uid: str) -> str:
    """Name of the file of a fetched instance: the same each time, and nothing of the UID becomes part of a path."""
    return f"{hashlib.sha256(sop_uid.encode()).hexdigest()[:32]}.dcm"


def _write(dataset: Dataset, path: Path) -> None:
    draft = path.with_suffix(".part")
    dataset.save_as(draft, enforce_file_format=True)
    os.replace(draft, path)


def _groups(objects: Sequence[DicomObject]) -> Iterator[list[DicomObject]]:
    group: list[DicomObject] = []
    size = 0
    for item in objects:
        bytes_here = item.path.stat().st_size
        if group and (size + bytes_here > _REQUEST_BYTES or len(group) == _REQUEST_OBJECTS):
            yield group
            group, size = [], 0
        group.append(item)
        size += bytes_here
    if group:
        yield group


def _answer_of(failure: BaseException | None) -> Dataset:
    """What a STOW-RS answer to a request of which everything was refused says; empty where it says nothing."""
    response = getattr(failure, "response", None)
    if response is None or response.status_code != _ALL_REFUSED:
        return Dataset()
    try:
        return Dataset.from_json(response.text)
    except UNREADABLE:
        return Dataset()


def _outcome(item: DicomObject, answer: Dataset) -> Stored:
    """What a STOW-RS answer says of an object; what it does not mention was not stored. Source: DICOM PS3.18 10.5.3."""
    for failed in answer.get("FailedSOPSequence", ()):
        if failed.get("ReferencedSOPInstanceUID") == item.sop_uid:
            code = int(failed.get("FailureReason", 0))
            return Stored(
                item, f"the archive refuses an object (failure reason {code:04X}).", code == _CLASS_NOT_SUPPORTED
            )
    if any(there.get("ReferencedSOPInstanceUID") == item.sop_uid for there in answer.get("ReferencedSOPSequence", ())):
        return Stored(item)
    return Stored(item, "the archive does not say that it has stored an object.")


def _found_series(item: Mapping[str, Any], wanted: SeriesFilter) -> FoundSeries:
    return FoundSeries(
        study_uid=_text(item, _STUDY) or wanted.study_uid,
        series_uid=_text(item, _SERIES),
        modality=_text(item, _MODALITY),
        study_date=_text(item, _DATE),
        instances=int(_text(item, _INSTANCES) or 0),
    )


def _text(item: Mapping[str, Any], tag: str) -> str:
    values = item.get(tag, {}).get("Value", [])
    return str(values[0]) if values else ""
