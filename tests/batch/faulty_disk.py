"""A disk that fails, fills up, lies or loses power at the n-th thing that is asked of it.

Everything that is written goes through Python's own files, so that is where the disk is replaced: creating a file,
every write of its raw stream, fsync, rename, link and mkdir.
"""

from __future__ import annotations

import builtins
import errno
import io
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest

Effect = Literal["fails", "full", "dropped", "cut"]
"""``fails``: once, with an input/output error. ``full``: no room from there on. ``dropped``: said to be done, and is
not. ``cut``: the power goes; nothing happens any more, and what was not synchronised is lost."""

NEEDING_ROOM = {"create", "write", "mkdir", "link"}
"""What a full disk refuses."""


class PowerCut(BaseException):
    """The process is no more; nobody can catch that."""


@dataclass
class FaultyDisk:
    """Counts what is asked of the disk, and does harm at one point.

    Attributes:
        effect: What happens.
        at: At which operation, from 1; 0 for none.
        operations: The kinds of operation so far.
        written: Bytes that went to files, by the device and inode of the file.
        unsynchronised: Files that were written and not synchronised since.
    """

    effect: Effect = "fails"
    at: int = 0
    operations: list[str] = field(default_factory=list)
    written: dict[tuple[int, int], int] = field(default_factory=dict)
    unsynchronised: dict[tuple[int, int], int] = field(default_factory=dict)

    def asks(self, operation: str) -> bool:
        """Whether an operation is to be done.

        Raises:
            OSError: The disk fails or is full.
            PowerCut: There is no disk any more.
        """
        self.operations.append(operation)
        number = len(self.operations)
        reached = bool(self.at) and number >= self.at
        if self.effect == "cut" and reached:
            raise PowerCut
        if self.effect == "full" and reached and operation in NEEDING_ROOM:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        if self.effect == "fails" and number == self.at:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return not (self.effect == "dropped" and number == self.at)

    def is_off(self) -> bool:
        """Whether the power is gone."""
        return self.effect == "cut" and bool(self.at) and len(self.operations) >= self.at

    def lose_what_was_not_synchronised(self, folder: Path) -> None:
        """Empty the files below a folder whose bytes the disk had not been made to keep."""
        for path in folder.rglob("*"):
            if path.is_file() and _file_id(path.stat()) in self.unsynchronised:
                os.truncate(path, 0)


@contextmanager
def faulty_disk(effect: Effect = "fails", at: int = 0) -> Iterator[FaultyDisk]:
    """All files of this process lie on such a disk for the length of the block."""
    disk = FaultyDisk(effect, at)
    with pytest.MonkeyPatch.context() as patch:
        plain_open = io.open
        for module in (io, builtins):
            patch.setattr(module, "open", _Opener(disk, plain_open))
        patch.setattr(os, "fsync", _synchronising(disk, os.fsync))
        for name, operation in (("replace", "rename"), ("rename", "rename"), ("link", "link"), ("mkdir", "mkdir")):
            patch.setattr(os, name, _asking(disk, operation, getattr(os, name)))
        for name in ("unlink", "rmdir", "remove"):
            patch.setattr(os, name, _silent_without_power(disk, getattr(os, name)))
        yield disk


class _RawFile(io.FileIO):
    """A file whose writes are asked for one by one."""

    def __init__(self, disk: FaultyDisk, path: Any, mode: str) -> None:
        self._disk = disk
        disk.asks("create")
        super().__init__(path, mode)

    def write(self, data: Any, /) -> int:
        size = memoryview(data).nbytes
        if self._disk.asks("write"):
            size = super().write(data)
            key = _file_id(os.fstat(self.fileno()))
            self._disk.written[key] = self._disk.written.get(key, 0) + size
            self._disk.unsynchronised[key] = size
        return size


@dataclass(frozen=True)
class _Opener:
    """In place of ``open``; pydicom keeps that in headers, which are pickled: elsewhere it is ``open`` again."""

    disk: FaultyDisk
    plain_open: Callable[..., Any]

    def __call__(
        self,
        file: Any,
        mode: str = "r",
        buffering: int = -1,
        encoding: str | None = None,
        errors: str | None = None,
        newline: str | None = None,
        **rest: Any,
    ) -> Any:
        if not set(mode) & set("wxa+") or isinstance(file, int):
            return self.plain_open(file, mode, buffering, encoding, errors, newline, **rest)
        raw = _RawFile(self.disk, file, mode.replace("b", "").replace("t", ""))
        if buffering == 0:
            return raw
        buffered = io.BufferedRandom(raw) if "+" in mode else io.BufferedWriter(raw)
        return buffered if "b" in mode else io.TextIOWrapper(buffered, encoding or "utf-8", errors, newline)

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
        return eval, ("open",)


def _synchronising(disk: FaultyDisk, fsync: Callable[[int], None]) -> Callable[[int], None]:
    def synchronise(descriptor: int) -> None:
        if disk.asks("fsync"):
            fsync(descriptor)
            disk.unsynchronised.pop(_file_id(os.fstat(descriptor)), None)

    return synchronise


def _asking(disk: FaultyDisk, operation: str, plain: Callable[..., None]) -> Callable[..., None]:
    def ask(*arguments: Any, **options: Any) -> None:
        if disk.asks(operation):
            plain(*arguments, **options)

    return ask


def _silent_without_power(disk: FaultyDisk, plain: Callable[..., None]) -> Callable[..., None]:
    def remove(*arguments: Any, **options: Any) -> None:
        if disk.is_off():
            raise PowerCut
        plain(*arguments, **options)

    return remove


def _file_id(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino
