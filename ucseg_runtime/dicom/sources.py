"""The kinds of input that hold DICOM files: a folder, a file, a DICOMDIR with what lies around it, a zip archive.

Whatever the kind, the rest of the program sees plain files alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pydicom.uid import MediaStorageDirectoryStorage

from ucseg_runtime.dicom.archive import ArchiveLimits, spooled_members
from ucseg_runtime.dicom.files import MAX_FILE_BYTES, FoundFile, find_files
from ucseg_runtime.regular_files import open_regular

_LOOKED_AT = 1024
_PREFIX = slice(128, 132)
_DIRECTORY_CLASS = b"\x02\x00\x02\x00UI\x14\x00" + MediaStorageDirectoryStorage.encode()
_ZIP_STARTS = (b"PK\3\4", b"PK\5\6")  # a first member, or an archive without any


@contextmanager
def opened_input(
    input: Path, max_file_bytes: int = MAX_FILE_BYTES, limits: ArchiveLimits | None = None
) -> Iterator[tuple[FoundFile, ...]]:
    """Everything that an input holds, readable until the statement ends.

    What kind of input a file is depends on its first bytes, never on its name. Of a DICOMDIR the folder around it is
    searched: the directory is a list of paths that somebody else wrote, and it can be incomplete, so the files
    themselves count. Archives inside of folders are not opened; they are skipped with a reason.

    Args:
        input: Folder, searched with all its subfolders, or file.
        max_file_bytes: Larger files are refused.
        limits: What an archive may hold.

    Raises:
        InputError: The input cannot be read, or is an archive that is refused.
        OutputError: There is no room for what an archive holds.
    """
    start = _start_of(input)
    if start[_PREFIX] != b"DICM" and start.startswith(_ZIP_STARTS):
        with spooled_members(input.resolve(), max_file_bytes, limits or ArchiveLimits()) as members:
            yield members
    elif start[_PREFIX] == b"DICM" and _DIRECTORY_CLASS in start:
        yield find_files(input.resolve().parent, max_file_bytes)
    else:
        yield find_files(input, max_file_bytes)


def is_archive(path: Path) -> bool:
    """Whether a file is a zip archive, by its first bytes."""
    start = _start_of(path)
    return start[_PREFIX] != b"DICM" and start.startswith(_ZIP_STARTS)


def _start_of(input: Path) -> bytes:
    """The first bytes of a regular file; none of anything else, which `find_files` judges."""
    try:
        with open_regular(input.resolve(strict=True)) as stream:
            return stream.read(_LOOKED_AT)
    except (OSError, RuntimeError):
        return b""
