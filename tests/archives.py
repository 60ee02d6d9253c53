"""Zip archives for the tests: of good studies, and every kind that must be refused."""

from __future__ import annotations

import io
import stat
import struct
import zipfile
from collections.abc import Callable, Iterable
from pathlib import Path

from tests.phantoms import CtPhantom, write_ct_series

NAME = "canaryfile.zip"


def zip_of(folder: Path, archive: Path, compression: int = zipfile.ZIP_DEFLATED) -> Path:
    """Pack all files below a folder, under their relative paths."""
    with zipfile.ZipFile(archive, "w", compression) as target:
        for path in sorted(folder.rglob("*")):
            target.write(path, path.relative_to(folder))
    return archive


def zipped_series(folder: Path, phantom: CtPhantom | None = None) -> Path:
    """A phantom series in an archive; nothing else is left in the folder."""
    paths = write_ct_series(folder, phantom)
    archive = archive_with((path.name, path.read_bytes()) for path in paths)(folder)
    for path in paths:
        path.unlink()
    return archive


def archive_with(
    members: Iterable[tuple[str | zipfile.ZipInfo, bytes]], compression: int = zipfile.ZIP_DEFLATED
) -> Callable[[Path], Path]:
    """A writer of an archive with these members."""

    def write(folder: Path) -> Path:
        with zipfile.ZipFile(folder / NAME, "w", compression) as target:
            for name, content in members:
                target.writestr(name, content)
        return folder / NAME

    return write


def damaged(change: Callable[[bytes], bytes]) -> Callable[[Path], Path]:
    """A writer of an archive with the default series whose bytes are changed."""

    def write(folder: Path) -> Path:
        archive = zipped_series(folder, CtPhantom(shape=(4, 12, 10)))
        archive.write_bytes(change(archive.read_bytes()))
        return archive

    return write


def link(name: str, target: str) -> tuple[zipfile.ZipInfo, bytes]:
    """A member that is a symbolic link."""
    member = zipfile.ZipInfo(name)
    member.create_system, member.external_attr = 3, (stat.S_IFLNK | 0o777) << 16
    return member, target.encode()


def nested(folder: Path) -> Path:
    """An archive with nothing but an archive of a good series in it."""
    inner = zipped_series(folder).read_bytes()
    return archive_with([("inner.zip", inner)], zipfile.ZIP_STORED)(folder)


def encrypted(content: bytes) -> bytes:
    """Set the flag of encryption in every header of an archive."""
    for signature, offset in ((b"PK\3\4", 6), (b"PK\1\2", 8)):
        start = 0
        while (place := content.find(signature, start)) >= 0:
            flags = struct.unpack_from("<H", content, place + offset)[0] | 1
            content = content[: place + offset] + struct.pack("<H", flags) + content[place + offset + 2 :]
            start = place + 4
    return content


def wrong_checksum(content: bytes) -> bytes:
    """Change the checksum of the first member in the list of members."""
    place = content.index(b"PK\1\2") + 16
    return content[:place] + b"\xa5\xa5\xa5\xa5" + content[place + 4 :]


def overlapping(folder: Path) -> Path:
    """Many list entries that all point at one compressed member, so that little inflates to much."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("canary", b"\0" * 100_000)
    content = buffer.getvalue()
    start, end = content.index(b"PK\1\2"), content.index(b"PK\5\6")
    copies = 300
    entries = content[start:end] * copies
    tail = struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, copies, copies, len(entries), start, 0)
    (folder / NAME).write_bytes(content[:start] + entries + tail)
    return folder / NAME


def long_directory(folder: Path) -> Path:
    """An end record that claims a list of members of 3 GB."""
    content = archive_with([("a", b"b")])(folder).read_bytes()
    place = content.index(b"PK\5\6") + 12
    (folder / NAME).write_bytes(content[:place] + struct.pack("<L", 3_000_000_000) + content[place + 4 :])
    return folder / NAME
