"""Associations with an archive: opened, negotiated, released; failures told in one way."""

from __future__ import annotations

import logging
import ssl
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from pydicom import uid

from ucseg_runtime.errors import ArchiveRefusedError, ArchiveUnreachableError
from ucseg_runtime.pacs.addresses import DicomNode
from ucseg_runtime.pacs.archives import Connection

if TYPE_CHECKING:
    from pynetdicom.association import Association
    from pynetdicom.presentation import PresentationContext

UNCOMPRESSED = (uid.ExplicitVRLittleEndian, uid.ImplicitVRLittleEndian)

STORED_SYNTAXES = (
    uid.ExplicitVRLittleEndian,
    uid.ImplicitVRLittleEndian,
    uid.ExplicitVRBigEndian,
    uid.JPEGLosslessSV1,
    uid.JPEGLossless,
    uid.JPEGBaseline8Bit,
    uid.JPEGExtended12Bit,
    uid.JPEGLSLossless,
    uid.JPEGLSNearLossless,
    uid.JPEG2000Lossless,
    uid.JPEG2000,
    uid.HTJ2KLossless,
    uid.HTJ2KLosslessRPCL,
    uid.HTJ2K,
    uid.RLELossless,
)
"""What is taken in; not the deflated one, whose size nobody knows before it is inflated."""

_CALLING_TITLE, _CALLED_TITLE = 3, 7
_BY_USER = 1
_REJECTED = frozenset({1, 2})
"""For good, or for the moment. Source of all: DICOM PS3.8 table 9-21."""


def quiet_pynetdicom() -> None:
    """Keep pynetdicom's log, which quotes values of data sets, away from everybody."""
    logging.getLogger("pynetdicom").disabled = True
    for name in list(logging.root.manager.loggerDict):
        if name.startswith("pynetdicom"):
            logging.getLogger(name).disabled = True


@contextmanager
def association(
    node: DicomNode,
    connection: Connection,
    contexts: Sequence[PresentationContext],
    *,
    roles: Sequence[Any] = (),
    handlers: Sequence[Any] = (),
) -> Iterator[Association]:
    """An association for the length of the block.

    Args:
        node: With whom.
        connection: Titles, time limits, certificates.
        contexts: What is proposed; verification is proposed as well, so that an archive which takes nothing of it can
            be told from one that is not there.
        roles: Of C-GET, where we are the storage provider. Typed loosely, as pynetdicom does.
        handlers: Of events. Typed loosely, as pynetdicom does.

    Raises:
        ArchiveUnreachableError: There is no connection, or no answer in time.
        ArchiveRefusedError: The archive rejects the association.
    """
    from pynetdicom import AE, build_context
    from pynetdicom.sop_class import Verification  # type: ignore[attr-defined]  # made when it is imported

    quiet_pynetdicom()
    entity = AE(ae_title=connection.own_title)
    entity.connection_timeout = connection.connect_s
    entity.acse_timeout = entity.dimse_timeout = entity.network_timeout = connection.answer_s
    tls = _client_tls(connection) if connection.use_tls else None
    try:
        opened = entity.associate(
            node.host,
            node.port,
            contexts=[build_context(Verification), *contexts],
            ae_title=node.title,
            ext_neg=list(roles),
            tls_args=None if tls is None else (tls, node.host),
            evt_handlers=list(handlers),
        )
    except OSError as error:  # of looking the name up
        raise ArchiveUnreachableError(
            f"{node} cannot be reached ({error.strerror}).", hint="Check the host."
        ) from error
    if not opened.is_established:
        raise _why_not(node, connection, opened)
    try:
        yield opened
    finally:
        if opened.is_established:
            opened.release()
        entity.shutdown()


def lost(node: DicomNode) -> ArchiveUnreachableError:
    """The association ended in the middle of something."""
    return ArchiveUnreachableError(
        f"{node} broke the association off, or did not answer in time.", hint="Does it allow us this? See its log."
    )


def server_tls(certificate: str, key: str, authorities: str | None) -> ssl.SSLContext:
    """TLS of our own service; with `authorities` callers must have a certificate of theirs.

    Raises:
        OSError: A file cannot be read, or is no PEM file.
    """
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=authorities)
    context.load_cert_chain(certificate, key)
    if authorities is not None:
        context.verify_mode = ssl.CERT_REQUIRED
    return context


def _client_tls(connection: Connection) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=connection.tls.authorities)
        if connection.tls.certificate is not None:
            context.load_cert_chain(connection.tls.certificate, connection.tls.key)
    except OSError as error:
        raise ArchiveRefusedError(
            f"the TLS files cannot be used ({type(error).__name__}).",
            hint="Give PEM files: --archive-ca, --archive-cert, --archive-key.",
        ) from error
    return context


def _why_not(
    node: DicomNode, connection: Connection, failed: Association
) -> ArchiveRefusedError | ArchiveUnreachableError:
    # Where the rejection comes and the connection ends before pynetdicom 3.0 looks whether there is one, it takes that
    # for a connection that was never made; the rejection still lies there.
    answer = failed.acceptor.primitive if failed.is_rejected else failed.dul.peek_next_pdu()
    if getattr(answer, "result", None) not in _REJECTED:
        return ArchiveUnreachableError(
            f"{node} cannot be reached, or does not speak DICOM.", hint="Check host, port and TLS; is it running?"
        )
    source, reason = getattr(answer, "result_source", None), getattr(answer, "diagnostic", None)
    if source == _BY_USER and reason == _CALLED_TITLE:
        return ArchiveRefusedError(f"{node} is not called {node.title}.", hint="Check the AE title before the @.")
    if source == _BY_USER and reason == _CALLING_TITLE:
        return ArchiveRefusedError(
            f"{node} does not know us as {connection.own_title}.", hint="Enter our AE title there, or give another."
        )
    return ArchiveRefusedError(f"{node} rejects the association.", hint="Is our AE title entered there? See its log.")
