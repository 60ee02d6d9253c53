"""Where an archive is: ``AET@host:port`` for DIMSE, ``dicomweb+https://host/root`` for DICOMweb."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TypeAlias
from urllib.parse import urlsplit

from ucseg_runtime.server_options import is_loopback

WEB_PREFIX = "dicomweb+"

_UID = r"[0-9]+(?:\.[0-9]+)*"
_LONGEST_UID = 64
_TITLE = re.compile(r"(?!\s+$)[\x20-\x5b\x5d-\x7e]{1,16}")  # DICOM PS3.5 6.2, AE: no backslash, no control characters
_NODE = re.compile(r"(?P<title>[^@]+)@(?:\[(?P<v6>[0-9A-Fa-f:.]+)\]|(?P<host>[^@:\[\]/\s]+)):(?P<port>[0-9]{1,5})")
_RESOURCE = re.compile(rf"(?P<root>.*?)/studies/(?P<study>{_UID})(?:/series/(?P<series>{_UID}))?/?")
_LARGEST_PORT = 65535


@dataclass(frozen=True)
class DicomNode:
    """A DIMSE service.

    Attributes:
        title: Its application entity title, at most 16 characters.
        host: Name or address.
        port: Where it listens.
    """

    title: str
    host: str
    port: int

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.title}@{host}:{self.port}"


@dataclass(frozen=True)
class WebArchive:
    """A DICOMweb service.

    Attributes:
        url: Root of its QIDO-RS, WADO-RS and STOW-RS, without a slash at the end.
    """

    url: str

    @property
    def is_exposed(self) -> bool:
        """Whether what is sent can be read on the way."""
        parts = urlsplit(self.url)
        return parts.scheme != "https" and not is_loopback(parts.hostname or "")

    def __str__(self) -> str:
        return f"{WEB_PREFIX}{self.url}"


Address: TypeAlias = DicomNode | WebArchive


@dataclass(frozen=True)
class WebResource:
    """A study or a series of a DICOMweb service.

    Attributes:
        archive: That has it.
        study_uid: Of the study.
        series_uid: Of the series; empty for the whole study.
    """

    archive: WebArchive
    study_uid: str
    series_uid: str = ""


def archive_address(text: str) -> Address:
    """Parse ``AET@host:port`` or ``dicomweb+https://host/root``.

    Raises:
        ValueError: It is neither; or the URL holds a name and a password, which belong into files or the environment.
    """
    if is_web(text):
        return WebArchive(_checked_url(text))
    found = _NODE.fullmatch(text)
    if found is None or int(found["port"]) > _LARGEST_PORT:
        raise ValueError(f"{text!r} is no archive: expected AET@HOST:PORT or {WEB_PREFIX}https://HOST/ROOT")
    return DicomNode(application_title(found["title"]), found["v6"] or found["host"], int(found["port"]))


def web_resource(text: str) -> WebResource:
    """Parse ``dicomweb+https://host/root/studies/UID[/series/UID]``.

    Raises:
        ValueError: It is something else.
    """
    found = _RESOURCE.fullmatch(_checked_url(text))
    if found is None:
        raise ValueError("the URL names no study: expected …/studies/UID or …/studies/UID/series/UID")
    return WebResource(WebArchive(found["root"]), checked_uid(found["study"]), checked_uid(found["series"] or ""))


def is_web(text: str) -> bool:
    """Whether a text is meant as the URL of a DICOMweb service."""
    return text.startswith(WEB_PREFIX)


def application_title(text: str) -> str:
    """An application entity title without the spaces around it.

    Raises:
        ValueError: It is none.
    """
    if not _TITLE.fullmatch(text):
        raise ValueError("an AE title has 1 to 16 printable ASCII characters, and no backslash")
    return text.strip()


def checked_uid(text: str) -> str:
    """The text, which is a UID or empty.

    Raises:
        ValueError: It is neither.
    """
    if text and (len(text) > _LONGEST_UID or not re.fullmatch(_UID, text)):
        raise ValueError("a UID has digits and dots, at most 64")
    return text


def _checked_url(text: str) -> str:
    url = text.removeprefix(WEB_PREFIX).rstrip("/")
    parts = urlsplit(url)
    if parts.username or parts.password:
        raise ValueError(
            "a URL must not hold a name or password: use --archive-basic-file, --archive-token-file or the environment"
        )
    if parts.scheme not in ("https", "http") or not parts.hostname or parts.query or parts.fragment:
        raise ValueError(f"expected {WEB_PREFIX}https://HOST/ROOT, without ? and #")
    return url
