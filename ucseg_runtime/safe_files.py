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
