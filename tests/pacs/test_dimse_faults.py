"""Archives that take a part, refuse, break off or hang: negotiated before anything is sent, and told clearly."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pydicom
import pytest
import trustme
from pydicom.dataset import Dataset
from pydicom.uid import (
    Comprehensive3DSRStorage,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    ParametricMapStorage,
    RLELossless,
    SegmentationStorage,
)
from pynetdicom import AE, evt
from pynetdicom.events import Event
from pynetdicom.sop_class import Verification  # type: ignore[attr-defined]  # made when it is imported
from pynetdicom.transport import AssociationSocket

from tests.pacs.forgotten_sockets import FORGOTTEN_SOCKETS
from tests.phantoms import CtPhantom
from tests.processes import LOOPBACK
from tests.results import segmentation_of, sources_of, write_objects
from ucseg_runtime.errors import ArchiveRefusedError, ArchiveUnreachableError
from ucseg_runtime.pacs.addresses import DicomNode
from ucseg_runtime.pacs.archives import Connection, SeriesFilter, Stored
from ucseg_runtime.pacs.dimse import server_tls
from ucseg_runtime.pacs.dimse_archive import DimseArchive
from ucseg_runtime.pacs.objects import LABEL_MAP_CLASS, DicomObject, dicom_object
from ucseg_runtime.server_options import TlsFiles

pytestmark = [pytest.mark.usefixtures("forgotten_sockets"), FORGOTTEN_SOCKETS]

RESULT_CLASSES = (SegmentationStorage, ParametricMapStorage, Comprehensive3DSRStorage)
QUICK = Connection(connect_s=2.0, answer_s=2.0)
Handler = Callable[[Event], int]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, DicomObject]:
    phantom = CtPhantom(shape=(4, 24, 24))
    paths = write_objects(tmp_path_factory.mktemp("results"), segmentation_of(phantom), sources_of(phantom))
    return {kind: dicom_object(path) for kind, path in paths.items()}


@pytest.fixture(scope="module")
def three(results: dict[str, DicomObject]) -> list[DicomObject]:
    return [results[kind] for kind in ("binary", "uncertainty", "report")]


@contextmanager
def archive(
    on_store: Handler,
    classes: tuple[str, ...] = RESULT_CLASSES,
    syntaxes: tuple[str, ...] = (ExplicitVRLittleEndian,),
    titles: tuple[str, ...] = (),
    tls: object = None,
) -> Iterator[DicomNode]:
    entity = AE(ae_title="ARCHIVE")
    entity.require_calling_aet = list(titles)
    for kind in (*classes, Verification):
        entity.add_supported_context(kind, list(syntaxes))
    server = entity.start_server(
        (LOOPBACK, 0), block=False, evt_handlers=[(evt.EVT_C_STORE, on_store)], ssl_context=tls
    )
    try:
        yield DicomNode("ARCHIVE", LOOPBACK, server.server_address[1])
    finally:
        server.shutdown()


def taking(there: list[Dataset]) -> Handler:
    def on_store(event: Event) -> int:
        dataset = event.dataset
        dataset.file_meta = event.file_meta
        there.append(dataset)
        return 0x0000

    return on_store


def sent_to(node: DicomNode, objects: list[DicomObject], connection: Connection = QUICK) -> list[Stored]:
    told: list[Stored] = []
    DimseArchive(node, connection).store(objects, told.append)
    return told


def test_class_that_is_not_taken_is_named_and_the_others_are_sent(three: list[DicomObject]) -> None:
    there: list[Dataset] = []
    with archive(taking(there), (SegmentationStorage, Comprehensive3DSRStorage)) as node:
        told = sent_to(node, three)
        refused = DimseArchive(node, QUICK).refused_classes(
            frozenset((item.sop_class_uid, item.transfer_syntax) for item in three)
        )

    assert [item.SOPClassUID for item in there] == [SegmentationStorage, Comprehensive3DSRStorage]
    (missing,) = [item for item in told if not item.is_there]
    assert missing.reason == f"{node} does not take Parametric Map Storage."
    assert missing.class_refused
    assert refused == {ParametricMapStorage: "Parametric Map Storage"}


def test_label_map_that_is_not_taken_keeps_everything_back(results: dict[str, DicomObject]) -> None:
    there: list[Dataset] = []
    with archive(taking(there)) as node:
        told = sent_to(node, [results["labelmap"], results["uncertainty"], results["report"]])

    assert there == []
    assert [(item.item.sop_class_uid, item.class_refused) for item in told] == [(LABEL_MAP_CLASS, True)]


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian])
def test_object_is_decompressed_for_an_archive_that_takes_it_so_alone(
    results: dict[str, DicomObject], syntax: str
) -> None:
    item = results["labelmap"]
    assert item.transfer_syntax == RLELossless, "the premise"
    there: list[Dataset] = []
    with archive(taking(there), (LABEL_MAP_CLASS,), (syntax,)) as node:
        assert sent_to(node, [item])[0].is_there

    (found,) = there
    assert found.SOPInstanceUID == item.sop_uid
    assert found.file_meta.TransferSyntaxUID == syntax
    assert (found.pixel_array == pydicom.dcmread(item.path).pixel_array).all()


def test_object_that_is_taken_as_it_is_stays_as_it_is(results: dict[str, DicomObject]) -> None:
    there: list[Dataset] = []
    with archive(taking(there), (LABEL_MAP_CLASS,), (ExplicitVRLittleEndian, RLELossless)) as node:
        sent_to(node, [results["labelmap"]])

    assert there[0].file_meta.TransferSyntaxUID == RLELossless


def test_single_object_that_is_refused_has_its_status(three: list[DicomObject]) -> None:
    answers = [0xA700, 0xB000, 0x0000]
    with archive(lambda _: answers.pop(0)) as node:
        told = sent_to(node, three)

    assert [item.is_there for item in told] == [False, True, True]
    assert told[0].reason == f"{node} refuses an object (status A700)."


def test_association_that_breaks_off_leaves_what_was_taken(three: list[DicomObject]) -> None:
    def on_store(event: Event) -> int:
        if event.request.AffectedSOPClassUID != SegmentationStorage:
            event.assoc.abort()
        return 0x0000

    told: list[Stored] = []
    with archive(on_store) as node, pytest.raises(ArchiveUnreachableError, match="broke the association off"):
        DimseArchive(node, QUICK).store(three, told.append)
    assert [item.item.sop_class_uid for item in told if item.is_there] == [SegmentationStorage]


def test_archive_that_hangs_is_given_up_in_time(three: list[DicomObject]) -> None:
    def on_store(event: Event) -> int:
        time.sleep(4.0)
        return 0x0000

    with archive(on_store) as node:
        begun = time.monotonic()
        with pytest.raises(ArchiveUnreachableError, match="did not answer in time"):
            sent_to(node, three, Connection(answer_s=0.5))
        assert time.monotonic() - begun < 3.5


def test_own_title_that_is_not_known_there_is_named(three: list[DicomObject]) -> None:
    with (
        archive(lambda _: 0, titles=("OTHER",)) as node,
        pytest.raises(ArchiveRefusedError, match="does not know us as UCSEG"),
    ):
        sent_to(node, three)


def test_archive_without_queries_says_so() -> None:
    with archive(lambda _: 0) as node, pytest.raises(ArchiveRefusedError, match=r"no queries \(C-FIND\)"):
        DimseArchive(node, QUICK).find(SeriesFilter())


def test_name_that_nobody_has_is_unreachable(three: list[DicomObject]) -> None:
    with pytest.raises(ArchiveUnreachableError, match="cannot be reached"):
        sent_to(DicomNode("ARCHIVE", "nowhere.invalid", 104), three)


def test_encrypted_association_needs_an_authority_that_is_trusted(three: list[DicomObject], tmp_path: Path) -> None:
    authority = trustme.CA()
    issued = authority.issue_cert(LOOPBACK)
    certificate, key, ca = tmp_path / "cert.pem", tmp_path / "key.pem", tmp_path / "ca.pem"
    issued.cert_chain_pems[0].write_to_path(certificate)
    issued.private_key_pem.write_to_path(key)
    authority.cert_pem.write_to_path(ca)
    there: list[Dataset] = []
    with archive(taking(there), tls=server_tls(str(certificate), str(key), None)) as node:
        trusting = Connection(connect_s=2.0, answer_s=5.0, use_tls=True, tls=TlsFiles(authorities=ca))
        assert all(item.is_there for item in sent_to(node, three, trusting))
        for connection in (Connection(answer_s=1.0, use_tls=True), Connection(answer_s=1.0)):
            with pytest.raises(ArchiveUnreachableError):
                sent_to(node, three, connection)
    assert len(there) == 3


class _LateEvent(threading.Event):
    """What waits for it goes on a little late, as on a machine that has other things to do."""

    def wait(self, timeout: float | None = None) -> bool:
        found = super().wait(timeout)
        time.sleep(0.5)
        return found


def test_rejection_that_came_before_anybody_looked_is_still_one(
    three: list[DicomObject], monkeypatch: pytest.MonkeyPatch
) -> None:
    begin = AssociationSocket.__init__

    def begin_late(self: AssociationSocket, *arguments: object, **options: object) -> None:
        begin(self, *arguments, **options)  # type: ignore[arg-type]
        self._ready = _LateEvent()

    monkeypatch.setattr(AssociationSocket, "__init__", begin_late)
    with archive(taking([]), titles=("ANOTHER",)) as node, pytest.raises(ArchiveRefusedError, match="does not know us"):
        sent_to(node, three)
