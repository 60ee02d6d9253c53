"""Files whose bytes are read back and compared with what was written, whatever their format is."""

from __future__ import annotations

import errno
import hashlib
import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, cast

if TYPE_CHECKING:
    from typing_extensions import Buffer


class _DigestingWriter(io.BufferedWriter):
    """Knows the digest of what was written to it, from the first byte to the last."""

    def __init__(self, path: Path) -> None:
        super().__init__(path.open("wb", buffering=0))
        self.digest = hashlib.sha256()

    def write(self, data: Buffer, /) -> int:
        self.digest.update(data)
        return super().write(data)

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        raise io.UnsupportedOperation("what was written is not gone back to")


@contextmanager
def checked_file(path: Path) -> Iterator[BinaryIO]:
    """A new file that is written from its beginning to its end, and then read back.

    Args:
        path: File to write; replaced where there is one.

    Raises:
        OSError: It cannot be written, or holds other bytes than were written.
    """
    with _DigestingWriter(path) as stream:
        yield cast(BinaryIO, stream)
    with path.open("rb") as written:
        found = hashlib.file_digest(written, "sha256").digest()
    if found != stream.digest.digest():
        raise OSError(errno.EIO, os.strerror(errno.EIO))


def write_checked(path: Path, content: bytes) -> None:
    """Write a whole file; see `checked_file`."""
    with checked_file(path) as stream:
        stream.write(content)
