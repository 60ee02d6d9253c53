"""Who we are to a DICOMweb service: a bearer token, or a name and a password, from a file or from the environment.

Never from the command line, where every user of the machine can read them; and never into a log or a record.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from ucseg_runtime.errors import ArchiveRefusedError
from ucseg_runtime.pacs.addresses import WebArchive

TOKEN_VARIABLE = "UCSEG_DICOMWEB_TOKEN"  # noqa: S105  the name of the variable
USER_VARIABLE = "UCSEG_DICOMWEB_USER"
PASSWORD_VARIABLE = "UCSEG_DICOMWEB_PASSWORD"  # noqa: S105  the name of the variable


@dataclass(frozen=True)
class CredentialFiles:
    """Where credentials are read from; files go before the environment. They are read anew for every session.

    Attributes:
        token: File with a bearer token.
        basic: File with one line ``name:password``.
    """

    token: Path | None = None
    basic: Path | None = None


@dataclass(frozen=True)
class BearerToken:
    """Sent as it is."""

    token: str = field(repr=False)


@dataclass(frozen=True)
class NameAndPassword:
    """For basic authentication."""

    user: str = field(repr=False)
    password: str = field(repr=False)


Credentials = BearerToken | NameAndPassword


def credentials_for(
    archive: WebArchive, files: CredentialFiles, environment: Mapping[str, str] | None = None
) -> Credentials | None:
    """What is to be sent to an archive; None where nothing was given.

    Args:
        archive: Who would get it.
        files: Where it may stand.
        environment: Where it may stand too; that of the process when not given.

    Raises:
        ArchiveRefusedError: A file cannot be used, or the credentials would go unencrypted to another machine.
    """
    found = _found(files, os.environ if environment is None else environment)
    if found is not None and archive.is_exposed:
        raise ArchiveRefusedError(f"credentials would be sent to {archive} unencrypted.", hint="Use dicomweb+https://.")
    return found


def _found(files: CredentialFiles, environment: Mapping[str, str]) -> Credentials | None:
    if files.token is not None:
        return BearerToken(_line(files.token, "token"))
    if files.basic is not None:
        user, separator, password = _line(files.basic, "name and password").partition(":")
        if not separator:
            raise ArchiveRefusedError("the file of --archive-basic-file does not hold one line NAME:PASSWORD.")
        return NameAndPassword(user, password)
    if token := environment.get(TOKEN_VARIABLE, ""):
        return BearerToken(token)
    if user := environment.get(USER_VARIABLE, ""):
        return NameAndPassword(user, environment.get(PASSWORD_VARIABLE, ""))
    return None


def _line(file: Path, what: str) -> str:
    try:
        text = file.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ArchiveRefusedError(f"the file with the {what} for the archive cannot be read.") from error
    if not text or "\n" in text:
        raise ArchiveRefusedError(f"the file with the {what} for the archive must hold one line.")
    return text
