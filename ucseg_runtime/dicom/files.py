"""Finding and opening files without trusting what lies in a folder.

Only regular files are ever opened: a pipe would block for ever, a device may do anything, a link may lead out of the
folder. Paths stay inside the program; people see the ordinal of a file in the scan.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from ucseg_runtime.errors import InputError

MAX_FILE_BYTES = 4 * 1024**3
UNREADABLE_INPUT = "UCSEG-E102"


@dataclass(frozen=True)
class FoundFile:
    """One entry of the input that is not a folder.

    Attributes:
        path: Where it lies; never shown.
        ordinal: Place in the scan, from 1, in the order of the sorted paths.
        total: Number of entries in the scan.
        size: Bytes.
        modified_ns: Time of the last change, to notice a file that changes between scan and reading.
        name: How people know it: its path below the input, or its name in the archive. It can hold patient data and is
            shown to those alone who ask for it.
        refusal: Why it must not be opened; empty when it may.
        refusal_code: Stable identifier of that reason.
    """

    path: Path = field(repr=False)
    ordinal: int
    total: int
    size: int
    modified_ns: int
    name: str = field(repr=False)
    refusal: str = ""
    refusal_code: str = UNREADABLE_INPUT


def find_files(root: Path, max_file_bytes: int = MAX_FILE_BYTES) -> tuple[FoundFile, ...]:
    """Every entry below `root`, or `root` itself when it is a file, sorted by path.

    Args:
        root: Folder or file. The root itself may be a link, because the caller chose it; links below are refused.
        max_file_bytes: Larger files are refused.

    Raises:
        InputError: The root does not exist or cannot be looked at.
    """
    entries = list(entries_below(root))
    base = root.resolve() if root.is_dir() else root.resolve().parent
    return tuple(
        found_file(path, ordinal, len(entries), status, str(path.relative_to(base)), max_file_bytes)
        for ordinal, (path, status) in enumerate(entries, start=1)
    )


def entries_below(root: Path) -> Iterator[tuple[Path, os.stat_result | OSError]]:
    """Every entry below `root` that is not a folder, or `root` itself when it is a file, with its status.

    Args:
        root: Folder or file. The root itself may be a link, because the caller chose it.

    Raises:
        InputError: The root does not exist or cannot be looked at.
    """
    try:
        resolved = root.resolve(strict=True)
        top = os.lstat(resolved)
    except (OSError, RuntimeError) as error:
        raise InputError(
            f"the input cannot be read ({_kind_of_failure(error)}).",
            hint="Check the path and your right to read it.",
            code=UNREADABLE_INPUT,
        ) from error
    if stat.S_ISDIR(top.st_mode):
        yield from _walk(resolved)
    else:
        yield resolved, _entry_status(resolved)


def _walk(folder: Path) -> Iterator[tuple[Path, os.stat_result | OSError]]:
    """Entries below `folder` that are not folders, and folders that cannot be listed; links are not followed."""
    pending = [folder]
    while pending:
        current = pending.pop()
        try:
            children = sorted(current.iterdir())
        except OSError as error:
            yield current, error
            continue
        folders = []
        for child in children:
            status = _entry_status(child)
            if isinstance(status, os.stat_result) and stat.S_ISDIR(status.st_mode):
                folders.append(child)
            else:
                yield child, status
        pending.extend(reversed(folders))


def _entry_status(path: Path) -> os.stat_result | OSError:
    try:
        return os.lstat(path)
    except OSError as error:
        return error


def found_file(
    path: Path,
    ordinal: int,
    total: int,
    status: os.stat_result | OSError,
    name: str,
    max_file_bytes: int = MAX_FILE_BYTES,
) -> FoundFile:
    """One entry, judged: only regular files of a bearable size may be opened.

    Args:
        path: Where it lies.
        ordinal: Place in the scan, from 1.
        total: Number of entries in the scan.
        status: What the system says of it, or why it says nothing.
        name: How people know it.
        max_file_bytes: Larger files are refused.
    """
    if isinstance(status, OSError):
        return FoundFile(path, ordinal, total, 0, 0, name, f"cannot be looked at ({_kind_of_failure(status)})")
    refusal = ""
    if not stat.S_ISREG(status.st_mode):
        refusal = f"is {_kind_of_entry(status.st_mode)}, not a regular file"
    elif status.st_size > max_file_bytes:
        refusal = f"has {status.st_size} bytes; at most {max_file_bytes} are read"
    return FoundFile(path, ordinal, total, status.st_size, status.st_mtime_ns, name, refusal)


def _kind_of_entry(mode: int) -> str:
    kinds = {
        stat.S_IFLNK: "a link",
        stat.S_IFIFO: "a pipe",
        stat.S_IFSOCK: "a socket",
        stat.S_IFCHR: "a character device",
        stat.S_IFBLK: "a block device",
        stat.S_IFDIR: "a folder",
    }
    return kinds.get(stat.S_IFMT(mode), "of unknown kind")


def _kind_of_failure(error: Exception) -> str:
    """The system's words for the failure; never the path, which the exception's own text would show."""
    return os.strerror(error.errno) if isinstance(error, OSError) and error.errno else type(error).__name__
