"""Files that hold what was written to them, completely, or are not there: compared, synchronised, renamed."""

from __future__ import annotations

import errno
import hashlib
import io
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, cast

if TYPE_CHECKING:
    from typing_extensions import Buffer


_BUFFER_BYTES = 1 << 20


class _DigestingFile(io.RawIOBase):
    """Knows the digest of what was written to it, from the first byte to the last."""

    def __init__(self, file: io.FileIO) -> None:
        self._file = file
        self.digest = hashlib.sha256()

    def writable(self) -> bool:
        return True

    def write(self, data: Buffer, /) -> int:
        written = self._file.write(data)
        self.digest.update(memoryview(data)[:written])
        return written

    def tell(self) -> int:
        return self._file.tell()

    def close(self) -> None:
        self._file.close()
        super().close()


@contextmanager
def checked_file(path: Path) -> Iterator[BinaryIO]:
    """A new file that is written from its beginning to its end, and then read back.

    Args:
        path: File to write; replaced where there is one.

    Raises:
        OSError: It cannot be written, or holds other bytes than were written.
    """
    file = _DigestingFile(path.open("wb", buffering=0))
    with io.BufferedWriter(file, _BUFFER_BYTES) as stream:
        yield cast(BinaryIO, stream)
    with path.open("rb") as written:
        found = hashlib.file_digest(written, "sha256").digest()
    if found != file.digest.digest():
        raise OSError(errno.EIO, os.strerror(errno.EIO))


def write_checked(path: Path, content: bytes) -> None:
    """Write a whole file; see `checked_file`."""
    with checked_file(path) as stream:
        stream.write(content)


def replace_checked(path: Path, content: bytes) -> None:
    """Put a whole file in the place of another, readable by its owner alone; nobody ever reads half of it.

    Args:
        path: File; need not exist.
        content: What it holds then.

    Raises:
        OSError: It cannot be written; the old one is as it was.
    """
    draft = path.with_name(f".{path.name}-{secrets.token_hex(4)}")
    try:
        draft.touch(mode=0o600, exist_ok=False)
        write_checked(draft, content)
        synchronise(draft)
        os.replace(draft, path)
    finally:
        draft.unlink(missing_ok=True)


def synchronise(path: Path) -> None:
    """See to it that a file, or what a folder says of its files, is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
