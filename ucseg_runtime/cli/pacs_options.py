"""Options of commands that work with an archive."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ucseg_runtime.server_options import TlsFiles

if TYPE_CHECKING:
    from ucseg_runtime.pacs.addresses import Address
    from ucseg_runtime.pacs.archives import Connection

_PANEL = "Archive"
_LOOPBACK = "127.0.0.1"

TitleOption = Annotated[str, typer.Option("--aet", help="Our AE title, at most 16 characters.", rich_help_panel=_PANEL)]
ArchiveTlsOption = Annotated[
    bool, typer.Option("--archive-tls", help="Encrypt DIMSE; for DICOMweb say https.", rich_help_panel=_PANEL)
]
ArchiveCaOption = Annotated[
    Path | None,
    typer.Option(
        "--archive-ca", help="PEM file of who may have signed the archive's certificate.", rich_help_panel=_PANEL
    ),
]
ArchiveCertOption = Annotated[
    Path | None,
    typer.Option("--archive-cert", help="PEM certificate of ours for the archive.", rich_help_panel=_PANEL),
]
ArchiveKeyOption = Annotated[
    Path | None, typer.Option("--archive-key", help="PEM key of --archive-cert.", rich_help_panel=_PANEL)
]
ArchiveTokenOption = Annotated[
    Path | None,
    typer.Option(
        "--archive-token-file",
        help="File with the bearer token for DICOMweb; else UCSEG_DICOMWEB_TOKEN.",
        rich_help_panel=_PANEL,
    ),
]
ArchiveBasicOption = Annotated[
    Path | None,
    typer.Option(
        "--archive-basic-file",
        help="File with NAME:PASSWORD for DICOMweb; else UCSEG_DICOMWEB_USER and UCSEG_DICOMWEB_PASSWORD.",
        rich_help_panel=_PANEL,
    ),
]
ConnectOption = Annotated[
    float,
    typer.Option("--connect-timeout", min=0.1, help="Seconds to make a connection.", rich_help_panel=_PANEL),
]
AnswerOption = Annotated[
    float,
    typer.Option(
        "--answer-timeout", min=0.1, help="Seconds within which the archive must say something.", rich_help_panel=_PANEL
    ),
]


@dataclass(frozen=True)
class ArchiveArguments:
    """What was said on the command line of how archives are spoken to."""

    title: str = "UCSEG"
    use_tls: bool = False
    ca: Path | None = None
    certificate: Path | None = None
    key: Path | None = None
    token: Path | None = None
    basic: Path | None = None
    connect_s: float = 10.0
    answer_s: float = 60.0

    def connection(self) -> Connection:
        """The options of it.

        Raises:
            typer.BadParameter: The title is none, or options do not go together.
        """
        from ucseg_runtime.pacs.archives import Connection
        from ucseg_runtime.pacs.credentials import CredentialFiles

        if (self.certificate is None) != (self.key is None):
            raise typer.BadParameter("--archive-cert and --archive-key belong together.")
        if self.token is not None and self.basic is not None:
            raise typer.BadParameter("--archive-token-file and --archive-basic-file exclude each other.")
        return Connection(
            own_title=title(self.title),
            connect_s=self.connect_s,
            answer_s=self.answer_s,
            use_tls=self.use_tls,
            tls=TlsFiles(self.ca, self.certificate, self.key),
            credentials=CredentialFiles(self.token, self.basic),
        )


def title(text: str) -> str:
    """An AE title.

    Raises:
        typer.BadParameter: It is none.
    """
    from ucseg_runtime.pacs.addresses import application_title

    try:
        return application_title(text)
    except ValueError as error:
        raise typer.BadParameter(f"{error}.", param_hint="--aet") from error


def address(text: str, name: str) -> Address:
    """The address of an archive.

    Args:
        text: As it was given.
        name: Of the option or argument.

    Raises:
        typer.BadParameter: It is none.
    """
    from ucseg_runtime.pacs.addresses import archive_address

    try:
        return archive_address(text)
    except ValueError as error:
        raise typer.BadParameter(f"{error}.", param_hint=name) from error


def host_and_port(text: str, name: str) -> tuple[str, int]:
    """``HOST:PORT``, or a port of loopback.

    Raises:
        typer.BadParameter: It is neither.
    """
    host, _, port = text.rpartition(":")
    host = host.strip("[]") or _LOOPBACK
    if not port.isdigit() or int(port) > 65535:
        raise typer.BadParameter("expected HOST:PORT, or the port alone for loopback.", param_hint=name)
    return host, int(port)


def default_spool() -> Path:
    """Where a listener keeps what it has to do: in the user's folder for state."""
    return Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state") / "ucseg" / "spool"
