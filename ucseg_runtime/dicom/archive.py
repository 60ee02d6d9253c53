"""Zip archives, as PACS and portals export them, without trusting a byte of what they say about themselves.

Members are written into a private temporary folder under numbers, in one pass, before any of them is looked at. Reading
them where they lie would save the disk space and lose more: checksums would be known only after pixels were used,
every file would be inflated twice (header, then pixels), and the processes that read, decode and compare files would
each have to know archives. Names of members are shown to those who ask for them and used for nothing else, so none of
them can lead anywhere.
"""

from __future__ import annotations

import os
import shutil
import stat
import struct
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, BinaryIO

from ucseg_runtime.dicom.files import FoundFile
from ucseg_runtime.errors import InputError, OutputError
from ucseg_runtime.regular_files import open_regular

REFUSED_ARCHIVE = "UCSEG-E125"

_CHUNK_BYTES = 1024**2
_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)  # others inflate further, or in gigabytes of memory
_ENCRYPTED = 0x1
_MALFORMED = (
    zipfile.BadZipFile,
    zlib.error,
    struct.error,
    EOFError,
    NotImplementedError,
    RuntimeError,
    ValueError,
    LookupError,
    OverflowError,
    OSError,
)
"""What `zipfile` was seen to raise on damaged archives."""

_END = struct.Struct("<4s4H2LH")
_END_64 = struct.Struct("<4sQ2H2L4Q")
_LOCATOR_64_BYTES = 20
_LONGEST_COMMENT = 65535


@dataclass(frozen=True)
class ArchiveLimits:
    """What an archive may hold; beyond it the whole archive is refused.

    Attributes:
        members: Number of files and folders.
        directory_bytes: Size of the list of members, which has to be held in memory.
        bytes: Of all members, inflated.
        ratio: Inflated bytes per byte of the archive. Of the whole, since a single slice of nothing but air is
            compressed a thousandfold, and since members may overlap.
    """

    members: int = 99_999
    directory_bytes: int = 16 * 1024**2
    bytes: int = 32 * 1024**3
    ratio: int = 200


@contextmanager
def spooled_members(archive: Path, max_file_bytes: int, limits: ArchiveLimits) -> Iterator[tuple[FoundFile, ...]]:
    """The members of an archive as plain files in a folder that only this user can read, removed at the end.

    Args:
        archive: A regular file.
        max_file_bytes: Larger members are refused, not inflated.
        limits: What the archive may hold.

    Raises:
        InputError: The archive is damaged, encrypted or over a limit.
        OutputError: The temporary folder has no room for the members.
    """
    with tempfile.TemporaryDirectory(prefix="ucseg-") as folder:
        with _opened(archive, limits) as (opened, budget_bytes):
            files = _Spool(opened, Path(folder), budget_bytes, max_file_bytes).files()
        yield files


@contextmanager
def _opened(archive: Path, limits: ArchiveLimits) -> Iterator[tuple[zipfile.ZipFile, int]]:
    """The archive, once its list of members is known to be bearable, and how many bytes may come out of it."""
    try:
        with open_regular(archive) as stream:
            size = os.fstat(stream.fileno()).st_size
            _require_short_directory(stream, size, limits)
            with zipfile.ZipFile(stream) as opened:
                budget_bytes = min(limits.bytes, limits.ratio * size)
                _require_plain_members(opened.infolist(), limits, budget_bytes)
                yield opened, budget_bytes
    except _MALFORMED as error:
        if isinstance(error, InputError):
            raise
        raise _refused(f"it is damaged ({type(error).__name__})") from error


def _require_short_directory(stream: BinaryIO, size: int, limits: ArchiveLimits) -> None:
    """Check the size of the list of members, which `zipfile` reads and parses whole as soon as it opens an archive."""
    start = max(0, size - _END.size - _LONGEST_COMMENT - _LOCATOR_64_BYTES - _END_64.size)
    stream.seek(start)
    tail = stream.read()
    stream.seek(0)
    place = tail.rfind(b"PK\5\6")
    if place < 0 or place + _END.size > len(tail):
        raise _refused("it is cut off (no list of members at its end)")
    length = int(_END.unpack_from(tail, place)[5])
    place_64 = place - _LOCATOR_64_BYTES - _END_64.size
    if place_64 >= 0 and tail.startswith(b"PK\6\6", place_64):
        length = int(_END_64.unpack_from(tail, place_64)[8])
    if length > limits.directory_bytes:
        raise _refused(f"its list of members has {length} bytes (at most {limits.directory_bytes})")


def _require_plain_members(members: list[zipfile.ZipInfo], limits: ArchiveLimits, budget_bytes: int) -> None:
    if len(members) > limits.members:
        raise _refused(f"it has {len(members)} members (at most {limits.members})")
    declared = sum(member.file_size for member in members)
    if declared > budget_bytes:
        raise _refused(f"its members declare {declared} bytes (at most {budget_bytes} for an archive of its size)")
    if any(member.flag_bits & _ENCRYPTED for member in members):
        raise _refused("it is encrypted", hint="Unpack it with its password, and give the folder.")
    if any(member.compress_type not in _METHODS for member in members):
        raise _refused("it is compressed by another method than deflate")


class _Spool:
    """Writes members into a folder and counts what really comes out of them.

    Args:
        opened: The archive.
        folder: Where the files go; empty.
        budget_bytes: For all members together.
        max_file_bytes: For one member.
    """

    def __init__(self, opened: zipfile.ZipFile, folder: Path, budget_bytes: int, max_file_bytes: int) -> None:
        self._opened = opened
        self._folder = folder
        self._budget_bytes = budget_bytes
        self._left_bytes = budget_bytes
        self._max_file_bytes = max_file_bytes

    def files(self) -> tuple[FoundFile, ...]:
        """All members that are not folders, in the order of the archive."""
        members = [member for member in self._opened.infolist() if not member.is_dir()]
        return tuple(self._found(member, number, len(members)) for number, member in enumerate(members, start=1))

    def _found(self, member: zipfile.ZipInfo, ordinal: int, total: int) -> FoundFile:
        path = self._folder / f"{ordinal:06d}"
        refusal, code = self._refusal(member, path)
        if refusal:
            return FoundFile(path, ordinal, total, 0, 0, member.filename, refusal, code)
        status = os.lstat(path)
        return FoundFile(path, ordinal, total, status.st_size, status.st_mtime_ns, member.filename)

    def _refusal(self, member: zipfile.ZipInfo, path: Path) -> tuple[str, str]:
        """Write the member, or say why not, with the code of the reason."""
        if stat.S_ISLNK(member.external_attr >> 16):
            return "is a link, not a regular file", "UCSEG-E102"
        if member.file_size > self._max_file_bytes:
            return f"has {member.file_size} bytes; at most {self._max_file_bytes} are read", "UCSEG-E102"
        with self._opened.open(member) as source:
            start = source.read(4)
            if start == b"PK\3\4":
                return "is an archive inside of an archive; give it as an input of its own", REFUSED_ARCHIVE
            self._write(start, source, path)
        return "", ""

    def _write(self, start: bytes, source: IO[bytes], path: Path) -> None:
        with _out_of_room(), path.open("xb") as target:
            chunk = start
            while chunk:
                self._left_bytes -= len(chunk)
                if self._left_bytes < 0:
                    raise _refused(f"its members inflate to more than {self._budget_bytes} bytes")
                target.write(chunk)
                chunk = source.read(_CHUNK_BYTES)


@contextmanager
def _out_of_room() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno is None:
            raise
        free = shutil.disk_usage(tempfile.gettempdir()).free
        raise OutputError(
            f"the members of the archive cannot be written to the temporary folder ({os.strerror(error.errno)}, "
            f"{free / 1e6:.0f} MB free).",
            hint="Make space, or name another folder in TMPDIR.",
        ) from error


def _refused(reason: str, hint: str = "Export the study again, or give it as a folder.") -> InputError:
    return InputError(f"the zip archive is refused: {reason}.", hint=hint, code=REFUSED_ARCHIVE)
