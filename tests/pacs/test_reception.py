"""The storage service: who may send, what is refused and why, and that nothing half-received is kept."""

from __future__ import annotations

import errno
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import trustme
from pydicom.dataset import Dataset
from pydicom.uid import CTImageStorage, DeflatedExplicitVRLittleEndian, ExplicitVRLittleEndian
from pynetdicom import AE

from tests.batch.exports import TINY
from tests.pacs.forgotten_sockets import FORGOTTEN_SOCKETS
from tests.pacs.made_up import Clock
from tests.phantoms import write_ct_series
from tests.processes import LOOPBACK
from ucseg_runtime.errors import ArchiveUnreachableError, SpoolError
from ucseg_runtime.pacs.access import access_from_texts
from ucseg_runtime.pacs.addresses import DicomNode
from ucseg_runtime.pacs.archives import Connection, Stored
from ucseg_runtime.pacs.arrivals import Arrivals, Patience
from ucseg_runtime.pacs.dimse import server_tls
from ucseg_runtime.pacs.dimse_archive import DimseArchive
from ucseg_runtime.pacs.leftovers import Leftovers
from ucseg_runtime.pacs.monitoring import Metrics
from ucseg_runtime.pacs.objects import objects_below, quiet_process
from ucseg_runtime.pacs.reception import Receiver, ReceptionOptions, reception
from ucseg_runtime.pacs.spool import Spool, SpoolLimit, opened_spool
from ucseg_runtime.server_options import TlsFiles

pytestmark = [pytest.mark.usefixtures("forgotten_sockets"), FORGOTTEN_SOCKETS]


@dataclass
class Service:
    """A running service and what it has."""

    node: DicomNode
    spool: Spool
    told: list[str]

    @property
    def instances(self) -> int:
        """Number that it has kept."""
        return sum(len(self.spool.files("arriving", key)) for key in self.spool.keys("arriving"))

    @property
    def partial(self) -> list[Path]:
        """What is on the way."""
        return list(self.spool.partial.iterdir())


@contextmanager
def service(root: Path, options: ReceptionOptions | None = None, limit_bytes: int = 10**9) -> Iterator[Service]:
    told: list[str] = []
    with quiet_process(), opened_spool(root, b"secret") as spool:
        arrivals = Arrivals(spool, Patience(), lambda study, series: None)
        receiver = Receiver(arrivals, SpoolLimit(spool, limit_bytes, 0), Metrics(), told.append)
        wanted = replace(options or ReceptionOptions(), host=LOOPBACK, port=0)
        with reception(spool, receiver, wanted) as door:
            yield Service(DicomNode("UCSEG", LOOPBACK, door.port), spool, told)


def send(node: DicomNode, files: list[Path], connection: Connection | None = None) -> list[Stored]:
    told: list[Stored] = []
    quick = Connection(connect_s=2.0, answer_s=3.0)
    DimseArchive(node, connection or quick).store(objects_below(files, pytest.fail), told.append)
    return told


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    return write_ct_series(tmp_path / "series", replace(TINY, study="received"))


def test_received_instances_are_those_that_were_sent(tmp_path: Path, files: list[Path]) -> None:
    with service(tmp_path / "spool") as running:
        assert all(item.is_there for item in send(running.node, files))
        kept = objects_below([running.spool.folder("arriving")], pytest.fail)

        assert {item.sop_uid for item in kept} == {item.sop_uid for item in objects_below(files, pytest.fail)}
        assert running.partial == []


def test_address_that_is_not_allowed_has_no_answer(tmp_path: Path, files: list[Path]) -> None:
    elsewhere = ReceptionOptions(access=access_from_texts([], ["192.0.2.0/24"]))
    with service(tmp_path / "spool", elsewhere) as running:
        with pytest.raises(ArchiveUnreachableError):
            send(running.node, files)
        assert running.instances == 0


def test_instance_beyond_the_limit_is_refused_with_out_of_resources(tmp_path: Path, files: list[Path]) -> None:
    size = files[0].stat().st_size
    with service(tmp_path / "spool", limit_bytes=int(2.5 * size)) as running:
        told = send(running.node, files)

        assert [item.is_there for item in told] == [True, True, False, False, False, False]
        assert all("A700" in item.reason for item in told[2:])
        assert running.instances == 2
        assert running.partial == []
        assert len(running.told) == 1, "it is said once"
        assert "the spool is full" in running.told[0]


def test_full_disk_is_out_of_resources_too(tmp_path: Path, files: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with service(tmp_path / "spool") as running:
        with monkeypatch.context() as patched:
            patched.setattr("ucseg_runtime.pacs.arrivals.os.replace", full)
            told = send(running.node, files[:1])
        assert "A700" in told[0].reason
        assert send(running.node, files[:1])[0].is_there
        assert running.partial == []


def test_disk_that_fails_is_told_to_both_sides(
    tmp_path: Path, files: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    with service(tmp_path / "spool") as running:
        monkeypatch.setattr("ucseg_runtime.pacs.arrivals.os.replace", broken)
        told = send(running.node, files[:1])

        assert "status 0110" in told[0].reason
        assert running.told == ["UCSEG-E172 an instance could not be kept: Input/output error."]


def test_deflated_instances_are_not_negotiated(tmp_path: Path) -> None:
    with service(tmp_path / "spool") as running:
        entity = AE()
        entity.add_requested_context(CTImageStorage, DeflatedExplicitVRLittleEndian)
        opened = entity.associate(running.node.host, running.node.port, ae_title="UCSEG")
        assert opened.accepted_contexts == []
        opened.abort()


def test_association_that_breaks_off_in_an_instance_keeps_none_of_it(tmp_path: Path) -> None:
    large = Dataset()
    large.SOPClassUID, large.SOPInstanceUID = CTImageStorage, "1.2.3"
    large.StudyInstanceUID = large.SeriesInstanceUID = "1.2"
    large.PixelData = bytes(60_000_000)
    large["PixelData"].VR = "OW"
    large.file_meta = Dataset()
    large.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    with service(tmp_path / "spool") as running:
        entity = AE()
        entity.add_requested_context(CTImageStorage, ExplicitVRLittleEndian)
        opened = entity.associate(running.node.host, running.node.port, ae_title="UCSEG")
        raw = opened.dul.socket.socket
        sent = 0

        class Breaking:
            def __getattr__(self, name: str) -> object:
                return getattr(raw, name)

            def send(self, data: bytes) -> int:
                nonlocal sent
                sent += len(data)
                if sent > 5_000_000:
                    raw.shutdown(socket.SHUT_RDWR)
                return int(raw.send(data))

        opened.dul.socket.socket = Breaking()
        assert "Status" not in opened.send_c_store(large)
        raw.close()

        assert running.instances == 0
        assert len(running.partial) == 1, "for `Leftovers` to sweep"


def test_parts_that_do_not_grow_are_swept_and_those_that_grow_are_not(tmp_path: Path) -> None:
    clock = Clock()
    leftovers = Leftovers(tmp_path, 600.0, clock)
    for name in ("dead", "alive"):
        (tmp_path / name).write_bytes(b"x")
    for minute in range(10):
        assert leftovers.sweep() == 0
        (tmp_path / "alive").write_bytes(b"x" * (minute + 2))
        clock.now += 60.0

    assert leftovers.sweep() == 1
    assert [path.name for path in tmp_path.iterdir()] == ["alive"]


def test_encrypted_service_takes_callers_with_a_certificate_alone(tmp_path: Path, files: list[Path]) -> None:
    authority = trustme.CA()
    issued = authority.issue_cert(LOOPBACK)
    certificate, key, ca = tmp_path / "cert.pem", tmp_path / "key.pem", tmp_path / "ca.pem"
    issued.cert_chain_pems[0].write_to_path(certificate)
    issued.private_key_pem.write_to_path(key)
    authority.cert_pem.write_to_path(ca)
    options = ReceptionOptions(tls=server_tls(str(certificate), str(key), str(ca)))
    with service(tmp_path / "spool", options) as running:
        mute = socket.create_connection((running.node.host, running.node.port))  # shakes no hands, and holds nobody up
        with_certificate = Connection(answer_s=5.0, use_tls=True, tls=TlsFiles(ca, certificate, key))
        assert all(item.is_there for item in send(running.node, files, with_certificate))
        for connection in (
            Connection(answer_s=2.0, use_tls=True, tls=TlsFiles(authorities=ca)),
            Connection(answer_s=2.0),
        ):
            with pytest.raises(ArchiveUnreachableError):
                send(running.node, files, connection)
        mute.close()
        assert running.instances == 6


def test_port_that_is_taken_is_an_error(tmp_path: Path) -> None:
    with service(tmp_path / "one") as running:
        arrivals = Arrivals(running.spool, Patience(), lambda study, series: None)
        receiver = Receiver(arrivals, SpoolLimit(running.spool, 1, 0), Metrics(), lambda line: None)
        options = ReceptionOptions(host=LOOPBACK, port=running.node.port)
        with pytest.raises(SpoolError, match="cannot be had"), reception(running.spool, receiver, options):
            pass
