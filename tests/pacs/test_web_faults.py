"""DICOMweb services that refuse, hang, lie or take a part: each with a clear error, and only the rest is sent again."""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tests.batch.exports import TINY
from tests.phantoms import write_ct_series
from tests.processes import LOOPBACK
from ucseg_runtime.errors import ArchiveRefusedError, ArchiveUnreachableError
from ucseg_runtime.pacs.addresses import WebArchive
from ucseg_runtime.pacs.archives import Connection, SeriesFilter, Stored
from ucseg_runtime.pacs.credentials import CredentialFiles
from ucseg_runtime.pacs.dicomweb import WebArchiveClient
from ucseg_runtime.pacs.objects import DicomObject, objects_below

QUICK = Connection(connect_s=2.0, answer_s=0.5)
CLASS_NOT_SUPPORTED = 0x0122


@dataclass
class Service:
    """A made-up service.

    Attributes:
        answer: Status and body for a request, given its body.
        requests: Their methods and paths.
        authorisations: What they said of who they are.
    """

    answer: Callable[[bytes], tuple[int, bytes]]
    requests: list[str] = field(default_factory=list)
    authorisations: list[str] = field(default_factory=list)
    url: str = ""


@contextmanager
def serving(answer: Callable[[bytes], tuple[int, bytes]]) -> Iterator[Service]:
    service = Service(answer)

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self._chunks() if self.headers.get("Transfer-Encoding") else self._sized()
            self._answer(body)

        def do_GET(self) -> None:
            self._answer(b"")

        def _sized(self) -> bytes:
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))

        def _chunks(self) -> bytes:
            body = b""
            while size := int(self.rfile.readline(), 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return body

        def _answer(self, body: bytes) -> None:
            service.requests.append(f"{self.command} {self.path.partition('?')[0]}")
            service.authorisations.append(self.headers.get("Authorization", ""))
            status, content = service.answer(body)
            self.send_response(status)
            self.send_header("Content-Type", "application/dicom+json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer((LOOPBACK, 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    service.url = f"http://{LOOPBACK}:{server.server_address[1]}/dicom-web"
    try:
        yield service
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def client(service: Service, connection: Connection = QUICK) -> WebArchiveClient:
    return WebArchiveClient(WebArchive(service.url), connection)


@pytest.fixture
def objects(tmp_path: Path) -> tuple[DicomObject, ...]:
    write_ct_series(tmp_path / "objects", replace(TINY, shape=(4, 8, 8)))
    return objects_below([tmp_path / "objects"], pytest.fail)


def store_answer(there: list[str], failed: dict[str, int]) -> bytes:
    """Source: DICOM PS3.18 10.5.3."""

    def item(uid: str, **more: object) -> dict[str, object]:
        return {"00081155": {"vr": "UI", "Value": [uid]}, **more}

    answer: dict[str, object] = {"00081199": {"vr": "SQ", "Value": [item(uid) for uid in there]}}
    if failed:
        reasons = [item(uid, **{"00081197": {"vr": "US", "Value": [code]}}) for uid, code in failed.items()]
        answer["00081198"] = {"vr": "SQ", "Value": reasons}
    return json.dumps(answer).encode()


def uids_in(body: bytes) -> list[str]:
    """SOP Instance UIDs of the parts of a request."""
    return list(dict.fromkeys(uid.decode() for uid in re.findall(rb"\x08\x00\x18\x00UI..([0-9.]+)", body)))


def stored(service: Service, objects: tuple[DicomObject, ...]) -> list[Stored]:
    told: list[Stored] = []
    client(service).store(objects, told.append)
    return told


def test_what_is_refused_among_others_is_tried_once_more_alone(objects: tuple[DicomObject, ...]) -> None:
    sent: list[list[str]] = []
    bad = objects[1].sop_uid

    def answer(body: bytes) -> tuple[int, bytes]:
        sent.append(uids_in(body))
        failed = {bad: 0xA700} if len(sent) == 1 else {}
        return (202 if failed else 200), store_answer([uid for uid in sent[-1] if uid not in failed], failed)

    with serving(answer) as service:
        told = stored(service, objects)

    assert sorted(item.item.sop_uid for item in told if item.is_there) == sorted(item.sop_uid for item in objects)
    assert sent[1:] == [[bad]], "the others are not sent twice"


def test_object_that_stays_refused_has_its_reason(objects: tuple[DicomObject, ...]) -> None:
    bad = objects[1].sop_uid

    def answer(body: bytes) -> tuple[int, bytes]:
        uids = uids_in(body)
        failed = {uid: CLASS_NOT_SUPPORTED for uid in uids if uid == bad}
        return (409 if uids == [bad] else 202), store_answer([uid for uid in uids if uid != bad], failed)

    with serving(answer) as service:
        (refused,) = [item for item in stored(service, objects) if not item.is_there]

    assert refused.item.sop_uid == bad
    assert refused.class_refused
    assert "failure reason 0122" in refused.reason


def test_object_that_the_answer_does_not_mention_is_not_there(objects: tuple[DicomObject, ...]) -> None:
    with serving(lambda body: (200, store_answer(uids_in(body)[1:], {}))) as service:
        told = stored(service, objects)

    assert [item.reason for item in told if not item.is_there] == [
        "the archive does not say that it has stored an object."
    ]


@pytest.mark.parametrize(
    ("status", "kind", "word"),
    [
        (401, ArchiveRefusedError, "credentials"),
        (403, ArchiveRefusedError, "credentials"),
        (404, ArchiveRefusedError, "no such thing"),
        (413, ArchiveRefusedError, "too large"),
        (400, ArchiveRefusedError, "HTTP 400"),
        (500, ArchiveUnreachableError, "HTTP 500"),
        (503, ArchiveUnreachableError, "HTTP 503"),
    ],
)
def test_refusals_say_what_they_mean_and_nothing_of_the_answer(status: int, kind: type[Exception], word: str) -> None:
    with serving(lambda _: (status, b'"canary"')) as service, pytest.raises(kind, match=word) as refused:
        client(service).find(SeriesFilter())
    assert "canary" not in str(refused.value)


def test_queries_are_repeated_when_a_service_is_busy_and_stores_are_not(objects: tuple[DicomObject, ...]) -> None:
    busy = [503, 503]
    with serving(lambda _: (busy.pop() if busy else 200, b"[]")) as service:
        assert client(service).find(SeriesFilter()) == ()
        assert len(service.requests) == 3
    with serving(lambda _: (503, b"")) as service, pytest.raises(ArchiveUnreachableError):
        client(service).store(objects, lambda _: None)
    assert len(service.requests) == 1


def test_service_that_hangs_is_given_up_in_time(objects: tuple[DicomObject, ...]) -> None:
    def hang(_: bytes) -> tuple[int, bytes]:
        time.sleep(6.0)
        return 200, b"[]"

    for ask in (lambda it: it.find(SeriesFilter()), lambda it: it.store(objects, lambda _: None)):
        begun = time.monotonic()
        with serving(hang) as service:
            with pytest.raises(ArchiveUnreachableError, match="did not answer in time"):
                ask(client(service))
            assert time.monotonic() - begun < 5.0


def test_something_else_than_dicomweb_is_told(objects: tuple[DicomObject, ...]) -> None:
    with serving(lambda _: (200, b"<html>canary</html>")) as service:
        with pytest.raises(ArchiveRefusedError, match="not DICOMweb") as refused:
            client(service).find(SeriesFilter())
        assert "canary" not in str(refused.value)
        assert all(not item.is_there for item in stored(service, objects))


def test_credentials_are_sent_as_headers_and_never_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    netrc = tmp_path / ".netrc"
    netrc.write_text(f"machine {LOOPBACK} login other password canary\n")
    monkeypatch.setenv("NETRC", str(netrc))
    (tmp_path / "token").write_text("secret-token\n")
    (tmp_path / "basic").write_text("me:secret-password\n")
    expected = {"token": "Bearer secret-token", "basic": "Basic bWU6c2VjcmV0LXBhc3N3b3Jk", "": ""}
    for name, header in expected.items():
        files = CredentialFiles(**{name: tmp_path / name}) if name else CredentialFiles()
        with serving(lambda _: (401, b"")) as service:
            with pytest.raises(ArchiveRefusedError) as refused:
                client(service, replace(QUICK, credentials=files)).find(SeriesFilter())
            assert service.authorisations == [header]
        assert "secret" not in str(refused.value) + caplog.text


def test_archive_that_gives_fewer_instances_than_it_has_is_not_believed(tmp_path: Path) -> None:
    def answer(_: bytes) -> tuple[int, bytes]:
        series = {"0020000E": {"vr": "UI", "Value": ["1.2"]}, "00201209": {"vr": "IS", "Value": [5]}}
        return 200, json.dumps([series]).encode()

    with serving(answer) as service, pytest.raises((ArchiveUnreachableError, ArchiveRefusedError)):
        client(service).fetch("1", "1.2", tmp_path)
