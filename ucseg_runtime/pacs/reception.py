"""The storage service: takes in whatever is sent, as long as there is room, and hands it to `arrivals`.

What is received goes to the disk as it comes. Success is said when the instance is on the disk under its place, and not
before.
"""

from __future__ import annotations

import errno
import os
import socket
import ssl
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from socketserver import BaseServer
from typing import TYPE_CHECKING, cast

from ucseg_runtime.dicom.headers import RefusedFileError
from ucseg_runtime.errors import SpoolError
from ucseg_runtime.pacs.access import Access
from ucseg_runtime.pacs.arrivals import Arrivals
from ucseg_runtime.pacs.courier import Tell
from ucseg_runtime.pacs.monitoring import Metrics
from ucseg_runtime.pacs.objects import read_header
from ucseg_runtime.pacs.packages import require_pacs_extra
from ucseg_runtime.pacs.spool import Spool, SpoolLimit

if TYPE_CHECKING:
    from pynetdicom import AE
    from pynetdicom.events import Event
    from pynetdicom.transport import ThreadedAssociationServer

_SUCCESS = 0x0000
_PROCESSING_FAILURE = 0x0110
_OUT_OF_RESOURCES = 0xA700
_WRONG_DATA_SET = 0xA900
_CANNOT_UNDERSTAND = 0xC000
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})

_MOST_ASSOCIATIONS = 20
_PDU_BYTES = 1 << 17


@dataclass(frozen=True)
class ReceptionOptions:
    """How the service is offered.

    Attributes:
        title: Application entity title; callers have to name it.
        host: Address to listen at; empty for all.
        port: Where; 0 for any that is free.
        access: Who may send.
        tls: Certificate and key of the service; None for a service without TLS.
        idle_s: After which an association on which nothing happens is ended.
    """

    title: str = "UCSEG"
    host: str = ""
    port: int = 11112
    access: Access = Access()
    tls: ssl.SSLContext | None = None
    idle_s: float = 120.0


class Receiver:
    """Takes instances; called by the threads of the associations.

    Args:
        arrivals: Who keeps them.
        limit: Whether there is room.
        metrics: Counters.
        tell: A line for people.
    """

    def __init__(self, arrivals: Arrivals, limit: SpoolLimit, metrics: Metrics, tell: Tell) -> None:
        self._arrivals = arrivals
        self._limit = limit
        self._metrics = metrics
        self.tell = tell
        self._was_full = False

    def store(self, partial: Path) -> int:
        """Keep a received instance, or not.

        Args:
            partial: File; moved or deleted.

        Returns:
            Status of the C-STORE response. Source: DICOM PS3.4 table B.2-1.
        """
        try:
            return self._stored(partial, partial.stat().st_size)
        except OSError as error:
            if error.errno in _FULL:
                return self._refused_for_room()
            reason = os.strerror(error.errno) if error.errno else type(error).__name__
            self.tell(f"UCSEG-E172 an instance could not be kept: {reason}.")
            return _PROCESSING_FAILURE
        finally:
            partial.unlink(missing_ok=True)

    def _stored(self, partial: Path, size: int) -> int:
        if not self._limit.has_room(size):
            return self._refused_for_room()
        try:
            header = read_header(partial)
        except RefusedFileError:
            self._metrics.received("damaged")
            return _CANNOT_UNDERSTAND
        if not (header.study_uid and header.series_uid and header.sop_instance_uid):
            self._metrics.received("damaged")
            return _WRONG_DATA_SET
        self._arrivals.take(partial, header)
        self._limit.added(size)
        self._metrics.received("stored")
        if self._was_full:
            self._was_full = False
            self.tell("the spool has room again")
        return _SUCCESS

    def _refused_for_room(self) -> int:
        self._metrics.received("no room")
        if not self._was_full:
            self._was_full = True
            used, most = self._limit.used_bytes / 1e6, self._limit.limit_bytes / 1e6
            why = (
                "its disk is nearly full"
                if not self._limit.disk_has_room()
                else f"{used:.0f} of {most:.0f} MB are used"
            )
            self.tell(f"UCSEG-E172 the spool is full ({why}): instances are refused (A700) until there is room.")
        return _OUT_OF_RESOURCES


@dataclass(frozen=True)
class Reception:
    """A running service.

    Attributes:
        port: Where it listens.
        thread: That accepts callers.
    """

    port: int
    thread: threading.Thread

    @property
    def is_alive(self) -> bool:
        """Whether callers are accepted."""
        return self.thread.is_alive()


@contextmanager
def reception(spool: Spool, receiver: Receiver, options: ReceptionOptions) -> Iterator[Reception]:
    """Offer the storage service until the statement ends.

    Raises:
        BackendUnavailableError: The extra is not installed.
        SpoolError: The port cannot be had.
    """
    require_pacs_extra("pynetdicom")
    from pynetdicom import evt

    entity = _entity(options)

    def on_store(event: Event) -> int:
        return receiver.store(Path(event.dataset_path))

    with _straight_to_the_disk(spool.partial):
        try:
            server = entity.make_server(
                (options.host, options.port),
                evt_handlers=[(evt.EVT_C_STORE, on_store)],
                ssl_context=options.tls,
                server_class=_guarded_server(options, receiver.tell),
            )
        except OSError as error:
            raise SpoolError(
                f"port {options.port} cannot be had ({error.strerror}).",
                hint="Give another --port, or stop who has it.",
            ) from error
        thread = threading.Thread(target=server.serve_forever, name="reception", daemon=True)
        thread.start()
        try:
            yield Reception(server.server_address[1], thread)
        finally:
            server.shutdown()
            server.server_close()
            entity.shutdown()
            thread.join()


def _entity(options: ReceptionOptions) -> AE:
    """Who takes every kind of object, from those who may send, within limits."""
    from pynetdicom import AE, AllStoragePresentationContexts
    from pynetdicom.sop_class import Verification  # type: ignore[attr-defined]  # made when it is imported

    from ucseg_runtime.pacs.dimse import STORED_SYNTAXES, quiet_pynetdicom

    quiet_pynetdicom()
    entity = AE(ae_title=options.title)
    entity.require_called_aet = True
    entity.require_calling_aet = sorted(options.access.titles)
    entity.maximum_associations = _MOST_ASSOCIATIONS
    entity.maximum_pdu_size = _PDU_BYTES
    entity.network_timeout = options.idle_s
    entity.dimse_timeout = options.idle_s
    for context in AllStoragePresentationContexts:
        entity.add_supported_context(str(context.abstract_syntax), list(STORED_SYNTAXES))
    entity.add_supported_context(Verification)
    return entity


def _guarded_server(options: ReceptionOptions, tell: Tell) -> type[ThreadedAssociationServer]:
    """The class of server that holds to these options; pynetdicom makes the server itself."""
    from pynetdicom.transport import ThreadedAssociationServer

    class Guarded(ThreadedAssociationServer):
        """Looks at the address before anything is read, and never waits for one caller before it accepts others."""

        def get_request(self) -> tuple[socket.socket, tuple[str, int]]:
            caller, address = cast(socket.socket, self.socket).accept()
            if options.tls is not None:  # pynetdicom 3.0 would shake hands here, for as long as the caller likes
                caller.settimeout(options.idle_s)
                caller = options.tls.wrap_socket(caller, server_side=True, do_handshake_on_connect=False)
            return caller, address

        def shutdown(self) -> None:
            BaseServer.shutdown(self)  # pynetdicom's own is for servers that its `start_server` has started

        def handle_error(self, request: object, client_address: object) -> None:
            tell(f"a connection could not be served ({type(sys.exc_info()[1]).__name__})")

        def verify_request(self, request: object, client_address: object) -> bool:
            return options.access.allows_address(client_address[0])  # type: ignore[index]  # a tuple of the socket's kind

    return Guarded


@contextmanager
def _straight_to_the_disk(folder: Path) -> Iterator[None]:
    """Receive into a folder; pynetdicom 3.0 writes what it receives to the one for temporary files."""
    from pynetdicom import _config

    before = tempfile.tempdir, _config.STORE_RECV_CHUNKED_DATASET
    tempfile.tempdir, _config.STORE_RECV_CHUNKED_DATASET = str(folder), True
    try:
        yield
    finally:
        tempfile.tempdir, _config.STORE_RECV_CHUNKED_DATASET = before
