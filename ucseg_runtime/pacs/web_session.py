"""HTTP towards a DICOMweb service: who we are, what is repeated, and failures told in one way."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from ucseg_runtime.dicom.elements import UNREADABLE
from ucseg_runtime.errors import ArchiveRefusedError, ArchiveUnreachableError
from ucseg_runtime.pacs.addresses import WebArchive
from ucseg_runtime.pacs.credentials import BearerToken, Credentials, NameAndPassword, credentials_for

if TYPE_CHECKING:
    import requests

    from ucseg_runtime.pacs.archives import Connection

_UNREADABLE = tuple(kind for kind in UNREADABLE if kind is not OSError)
"""What parsing an answer can raise; an OSError is one of our own disk."""

_LOGGERS = ("retrying", "dicomweb_client.web", "urllib3.connectionpool", "urllib3.util.retry")
_REPEATED_STATUS = (429, 502, 503, 504)
_REPEATS = 3
_REPEAT_AFTER_S = 0.5


def quiet_web() -> None:
    """Keep the logs of the HTTP packages, which quote URLs and tracebacks, away from everybody."""
    for name in _LOGGERS:
        logging.getLogger(name).disabled = True


def web_session(archive: WebArchive, connection: Connection) -> requests.Session:
    """A session for one archive, to be closed by the caller.

    Raises:
        ArchiveRefusedError: Credentials or certificates cannot be used.
    """
    import requests
    from requests.adapters import HTTPAdapter
    from urllib3.util import Retry

    quiet_web()
    session = requests.Session()
    session.auth = _authorisation(credentials_for(archive, connection.credentials))
    tls = connection.tls
    for file in (tls.authorities, tls.certificate, tls.key):
        if file is not None and not file.is_file():
            raise ArchiveRefusedError(
                "a TLS file cannot be read.", hint="Give PEM files: --archive-ca, --archive-cert, --archive-key."
            )
    if tls.authorities is not None:
        session.verify = str(tls.authorities)
    if tls.certificate is not None and tls.key is not None:
        session.cert = str(tls.certificate), str(tls.key)

    retry = Retry(
        total=_REPEATS,
        connect=0,
        read=False,  # 0 would tell a time-out as a broken connection
        redirect=0,
        backoff_factor=_REPEAT_AFTER_S,
        status_forcelist=_REPEATED_STATUS,
        allowed_methods={"GET"},
        raise_on_status=False,
    )
    session.mount("https://", HTTPAdapter(max_retries=retry))
    session.mount("http://", HTTPAdapter(max_retries=retry))
    return session


def _authorisation(credentials: Credentials | None) -> requests.auth.AuthBase:
    """Also without credentials something, or requests would look for some in the user's netrc file."""
    from requests.auth import AuthBase, HTTPBasicAuth

    class Header(AuthBase):
        def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
            if isinstance(credentials, BearerToken):
                request.headers["Authorization"] = f"Bearer {credentials.token}"
            return request

    if isinstance(credentials, NameAndPassword):
        return HTTPBasicAuth(credentials.user.encode(), credentials.password.encode())
    return Header()


@contextmanager
def reported_as_archive_error(archive: WebArchive) -> Iterator[None]:
    """Failures of requests as `ArchiveError`. Nothing of an answer is quoted: it can hold patient data.

    Raises:
        ArchiveUnreachableError: There is no connection, no answer in time, or the server has trouble.
        ArchiveRefusedError: The server refuses.
    """
    import requests

    try:
        yield
    except requests.exceptions.SSLError as error:
        raise ArchiveRefusedError(
            f"the certificate of {archive} is not trusted.", hint="Name its authority with --archive-ca."
        ) from error
    except requests.Timeout as error:
        raise ArchiveUnreachableError(f"{archive} did not answer in time.", hint="Is it too busy?") from error
    except requests.HTTPError as error:
        raise status_error(archive, 0 if error.response is None else error.response.status_code) from error
    except (requests.ConnectionError, requests.exceptions.ChunkedEncodingError) as error:
        raise ArchiveUnreachableError(
            f"{archive} cannot be reached, or broke the connection off.", hint="Check host and port; is it running?"
        ) from error
    except (requests.RequestException, *_UNREADABLE) as error:
        raise ArchiveRefusedError(
            f"{archive} gave an answer that is not DICOMweb ({type(error).__name__}).", hint="Check the URL."
        ) from error


def status_error(archive: WebArchive, status: int) -> ArchiveRefusedError | ArchiveUnreachableError:
    """What an HTTP status of a failure means."""
    if status in (401, 403):
        return ArchiveRefusedError(
            f"{archive} refuses our credentials (HTTP {status}).",
            hint="See --archive-token-file and --archive-basic-file.",
        )
    if status == 404:
        return ArchiveRefusedError(f"{archive} has no such thing (HTTP 404).", hint="Check the URL and the UIDs.")
    if status == 413:
        return ArchiveRefusedError(f"an object is too large for {archive} (HTTP 413).", hint="Raise its limit.")
    if status >= 500 or status in _REPEATED_STATUS:
        return ArchiveUnreachableError(f"{archive} has trouble (HTTP {status}).", hint="See its log.")
    return ArchiveRefusedError(f"{archive} refuses (HTTP {status}).", hint="See its log.")
