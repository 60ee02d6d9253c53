"""An archive by DIMSE: C-FIND to find, C-GET to fetch, C-STORE to store."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import pydicom
from pydicom import uid as classes
from pydicom.dataset import Dataset
from pydicom.uid import UID

from ucseg_runtime.dicom.headers import quiet_pydicom
from ucseg_runtime.dicom.object_classes import FRAME_CLASSES, MULTI_FRAME_CLASSES, SECONDARY_CAPTURES, SLICE_CLASSES
from ucseg_runtime.errors import ArchiveRefusedError, ArchiveUnreachableError
from ucseg_runtime.pacs.addresses import DicomNode
from ucseg_runtime.pacs.archives import Connection, FoundSeries, SeriesFilter, Stored
from ucseg_runtime.pacs.dicomweb import instance_name
from ucseg_runtime.pacs.dimse import STORED_SYNTAXES, UNCOMPRESSED, association, lost
from ucseg_runtime.pacs.objects import LABEL_MAP_CLASS, DicomObject, classes_of
from ucseg_runtime.pacs.packages import require_pacs_extra

if TYPE_CHECKING:
    from pynetdicom.association import Association
    from pynetdicom.dimse_primitives import C_STORE
    from pynetdicom.events import Event
    from pynetdicom.presentation import PresentationContext

_SUCCESS = 0x0000
_PENDING = (0xFF00, 0xFF01)
_WARNINGS = (0xB000, 0xB006, 0xB007)
_CLASS_NOT_SUPPORTED = 0x0122
_MOST_CONTEXTS = 127  # 128, of which one is for verification

_FETCHED_CLASSES = (
    *SLICE_CLASSES.values(),
    *sorted(MULTI_FRAME_CLASSES),
    *sorted(itertools.chain(*FRAME_CLASSES.values())),
    *sorted(SECONDARY_CAPTURES),
    classes.SegmentationStorage,
    LABEL_MAP_CLASS,
    classes.ParametricMapStorage,
    classes.Comprehensive3DSRStorage,
    classes.RTStructureSetStorage,
)


class DimseArchive:
    """See `Archive`.

    Args:
        node: Of the archive.
        connection: Titles, time limits, certificates.

    Raises:
        BackendUnavailableError: The extra is not installed.
    """

    def __init__(self, node: DicomNode, connection: Connection) -> None:
        require_pacs_extra("pynetdicom")
        self._node = node
        self._connection = connection

    def store(self, objects: Sequence[DicomObject], report: Callable[[Stored], None]) -> None:
        """See `Archive.store`.

        Where an archive takes an object uncompressed only, it is decompressed. A label map that is not taken keeps the
        other objects back, since the report refers to it.
        """
        with self._associated(_contexts_for(classes_of(objects))) as opened:
            accepted = _accepted(opened)
            refused = [item for item in objects if not _ways(item, accepted)]
            for item in refused:
                report(Stored(item, f"{self._node} does not take {_name(item.sop_class_uid)}.", class_refused=True))
            if any(item.sop_class_uid == LABEL_MAP_CLASS for item in refused):
                return
            for item in objects:
                if ways := _ways(item, accepted):
                    report(self._sent(opened, item, ways[0]))

    def find(self, wanted: SeriesFilter) -> tuple[FoundSeries, ...]:
        """See `Archive.find`."""
        from pynetdicom import build_context
        from pynetdicom.sop_class import StudyRootQueryRetrieveInformationModelFind  # type: ignore[attr-defined]

        model = StudyRootQueryRetrieveInformationModelFind
        with self._associated([build_context(model)]) as opened, quiet_pydicom():
            self._require(opened, model, "queries (C-FIND)")
            studies = [wanted.study_uid] if wanted.study_uid else self._studies(opened, model, wanted)
            return tuple(item for study in studies for item in self._series(opened, model, study, wanted))

    def fetch(self, study_uid: str, series_uid: str, folder: Path) -> int:
        """See `Archive.fetch`."""
        from pynetdicom import build_context, build_role, evt
        from pynetdicom.sop_class import StudyRootQueryRetrieveInformationModelGet  # type: ignore[attr-defined]

        model = StudyRootQueryRetrieveInformationModelGet
        written: set[str] = set()

        def on_store(event: Event) -> int:
            name = instance_name(str(cast("C_STORE", event.request).AffectedSOPInstanceUID))
            draft = (folder / name).with_suffix(".part")
            draft.write_bytes(event.encoded_dataset())
            os.replace(draft, folder / name)
            written.add(name)
            return _SUCCESS

        contexts = [build_context(model), *(build_context(each, list(STORED_SYNTAXES)) for each in _FETCHED_CLASSES)]
        roles = [build_role(each, scp_role=True) for each in _FETCHED_CLASSES]
        query = _query("SERIES" if series_uid else "STUDY", StudyInstanceUID=study_uid)
        if series_uid:
            query.SeriesInstanceUID = series_uid
        with self._associated(contexts, roles=roles, handlers=[(evt.EVT_C_STORE, on_store)]) as opened:
            self._require(opened, model, "retrieval by C-GET")
            failed = 0
            for status, _ in opened.send_c_get(query, model):
                if self._is_last(status):
                    failed = int(status.get("NumberOfFailedSuboperations", 0) or 0)
        if failed:
            raise ArchiveUnreachableError(f"{self._node} could not give {failed} instances.", hint="See its log.")
        return len(written)

    def refused_classes(self, classes: frozenset[tuple[str, str]]) -> Mapping[str, str]:
        """See `Archive.refused_classes`."""
        with self._associated(_contexts_for(classes)) as opened:
            accepted = {kind for kind, _ in _accepted(opened)}
        return {kind: _name(kind) for kind, _ in sorted(classes) if kind not in accepted}

    def _associated(
        self, contexts: Sequence[PresentationContext], roles: Sequence[Any] = (), handlers: Sequence[Any] = ()
    ) -> AbstractContextManager[Association]:
        return association(self._node, self._connection, contexts, roles=roles, handlers=handlers)

    def _sent(self, opened: Association, item: DicomObject, syntax: str) -> Stored:
        from pynetdicom import _config

        _config.STORE_SEND_CHUNKED_DATASET = True
        what = item.path if syntax == item.transfer_syntax else _uncompressed(item)
        try:
            answer = opened.send_c_store(what)
        except (RuntimeError, OSError) as error:
            raise lost(self._node) from error
        if "Status" not in answer:
            raise lost(self._node)
        status = int(answer.Status)
        if status == _SUCCESS or status in _WARNINGS:
            return Stored(item)
        return Stored(item, f"{self._node} refuses an object (status {status:04X}).", status == _CLASS_NOT_SUPPORTED)

    def _studies(self, opened: Association, model: str, wanted: SeriesFilter) -> list[str]:
        query = _query("STUDY", StudyInstanceUID="", StudyDate=wanted.study_date, ModalitiesInStudy=wanted.modality)
        return [str(item.StudyInstanceUID) for item in self._matches(opened, model, query)]

    def _series(self, opened: Association, model: str, study: str, wanted: SeriesFilter) -> Iterator[FoundSeries]:
        query = _query(
            "SERIES",
            StudyInstanceUID=study,
            SeriesInstanceUID=wanted.series_uid,
            Modality=wanted.modality,
            StudyDate="",
            NumberOfSeriesRelatedInstances="",
        )
        for item in self._matches(opened, model, query):
            yield FoundSeries(
                study_uid=study,
                series_uid=str(item.get("SeriesInstanceUID", "")),
                modality=str(item.get("Modality", "")),
                study_date=str(item.get("StudyDate", "")),
                instances=int(item.get("NumberOfSeriesRelatedInstances") or 0),
            )

    def _matches(self, opened: Association, model: str, query: Dataset) -> Iterable[Dataset]:
        found = []
        for status, item in opened.send_c_find(query, model):
            if not self._is_last(status) and item is not None:
                found.append(item)
        return found

    def _is_last(self, status: Dataset) -> bool:
        """Whether this is the end of the answers.

        Raises:
            ArchiveUnreachableError: The association was lost.
            ArchiveRefusedError: The archive failed to do what was asked.
        """
        if "Status" not in status:
            raise lost(self._node)
        code = int(status.Status)
        if code not in _PENDING and code not in _WARNINGS and code != _SUCCESS:
            raise ArchiveRefusedError(f"{self._node} refuses (status {code:04X}).", hint="See its log.")
        return code not in _PENDING

    def _require(self, opened: Association, model: str, what: str) -> None:
        if model not in {kind for kind, _ in _accepted(opened)}:
            raise ArchiveRefusedError(f"{self._node} offers no {what}.", hint="Use its DICOMweb interface.")


def _contexts_for(classes: Iterable[tuple[str, str]]) -> list[PresentationContext]:
    """Each class in its own encoding and uncompressed, one context each, so that one can tell which is taken."""
    from pynetdicom import build_context

    pairs = {(kind, syntax) for kind, own in classes for syntax in (own, *UNCOMPRESSED)}
    own_first = sorted(pairs, key=lambda pair: (pair not in classes, pair))
    return [build_context(kind, syntax) for kind, syntax in own_first[:_MOST_CONTEXTS]]


def _accepted(opened: Association) -> frozenset[tuple[str, str]]:
    return frozenset((str(item.abstract_syntax), str(item.transfer_syntax[0])) for item in opened.accepted_contexts)


def _ways(item: DicomObject, accepted: frozenset[tuple[str, str]]) -> list[str]:
    """In which transfer syntaxes an object can be sent, the best first."""
    return [syntax for syntax in (item.transfer_syntax, *UNCOMPRESSED) if (item.sop_class_uid, syntax) in accepted]


def _uncompressed(item: DicomObject) -> Dataset:
    dataset = pydicom.dcmread(item.path)
    if UID(item.transfer_syntax).is_compressed:
        dataset.decompress(generate_instance_uid=False)
    return dataset


def _query(level: str, **keys: str) -> Dataset:
    query = Dataset()
    query.QueryRetrieveLevel = level
    for keyword, value in keys.items():
        setattr(query, keyword, value)
    return query


def _name(kind: str) -> str:
    return "Label Map Segmentation Storage" if kind == LABEL_MAP_CLASS else UID(kind).name
