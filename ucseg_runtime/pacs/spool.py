"""The folder in which a listener keeps what it has to do: where a series lies says how far it is.

    partial/             instances while they are received
    arriving/<series>/   those that came, as long as others may follow
    ready/<series>/      complete, to be segmented
    segmented/<series>/  segmented; kept until the archive has the results
    failed/<series>/     could not be segmented; kept for a person, the oldest go when they take too much room
    results/             what the batch engine writes
    outbox/              what has to be sent
    attempts.json        series during which the process has ended

Series and instances are called by keyed digests of their UIDs: no value from a file becomes a part of a path.
"""

from __future__ import annotations

import fcntl
import hashlib
import hmac
import json
import os
import shutil
import threading
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ucseg_runtime.errors import SpoolError
from ucseg_runtime.json_text import json_text
from ucseg_runtime.safe_files import replace_checked

Stage = Literal["arriving", "ready", "segmented", "failed"]

STAGES: tuple[Stage, ...] = ("arriving", "ready", "segmented", "failed")

FAILURE = "failure.json"
_MARK = "spool-mark"
_PARTIAL, _RESULTS, _OUTBOX = "partial", "results", "outbox"
_DIGITS = 32
_FAILED_SHARE = 4
"""Failed series may take this part of the limit: one fourth."""


@dataclass(frozen=True)
class Spool:
    """The folder; see `opened_spool`.

    Attributes:
        root: Where it is.
        secret: Key of the names in it.
    """

    root: Path
    secret: bytes

    @property
    def partial(self) -> Path:
        """For instances that are being received."""
        return self.root / _PARTIAL

    @property
    def results(self) -> Path:
        """What the batch engine writes."""
        return self.root / _RESULTS

    @property
    def outbox(self) -> Path:
        """What has to be sent."""
        return self.root / _OUTBOX

    def folder(self, stage: Stage) -> Path:
        """All series of a stage."""
        return self.root / stage

    def series(self, stage: Stage, key: str) -> Path:
        """One series of a stage."""
        return self.root / stage / key

    def keys(self, stage: Stage) -> list[str]:
        """All series of a stage, the oldest first."""
        folders = [entry for entry in os.scandir(self.folder(stage)) if entry.is_dir(follow_symlinks=False)]
        return [entry.name for entry in sorted(folders, key=lambda entry: (entry.stat().st_ctime_ns, entry.name))]

    def files(self, stage: Stage, key: str) -> list[Path]:
        """Instances of a series, none where it is not there."""
        try:
            return sorted(path for path in self.series(stage, key).iterdir() if path.suffix == ".dcm")
        except FileNotFoundError:
            return []

    def series_key(self, study_uid: str, series_uid: str) -> str:
        """How a series is called here and in messages."""
        return self._pseudonym(f"spooled series {study_uid} {series_uid}")

    def instance_name(self, sop_uid: str) -> str:
        """Name of the file of an instance."""
        return f"{self._pseudonym(f'spooled instance {sop_uid}')}.dcm"

    def move(self, key: str, before: Stage, after: Stage) -> None:
        """Put a series into another stage; what is there of it already is kept, and replaced by what is moved."""
        source, target = self.series(before, key), self.series(after, key)
        try:
            os.rename(source, target)
        except OSError:
            if not target.is_dir():
                raise
            for path in list(source.iterdir()):
                os.replace(path, target / path.name)
            source.rmdir()

    def fail(self, key: str, before: Stage, reason: Mapping[str, object]) -> None:
        """Put a series aside, with a file that says why."""
        self.move(key, before, "failed")
        replace_checked(self.series("failed", key) / FAILURE, json_text(reason).encode())

    def remove(self, stage: Stage, key: str) -> None:
        """Delete a series."""
        shutil.rmtree(self.series(stage, key), ignore_errors=True)

    def prepare(self) -> None:
        """Make the folders; remove what was received in part.

        Raises:
            SpoolError: The names in the spool were made with another secret.
            OSError: It cannot be written.
        """
        shutil.rmtree(self.partial, ignore_errors=True)
        for name in (*STAGES, _PARTIAL, _RESULTS, _OUTBOX):
            (self.root / name).mkdir(mode=0o700, exist_ok=True)
        mark, expected = self.root / _MARK, self._pseudonym("spool")
        if mark.exists() and mark.read_text(encoding="ascii") != expected:
            raise SpoolError(
                "the spool was begun with another site secret.",
                hint="Set UCSEG_SITE_SECRET as it was, or give another --spool.",
            )
        replace_checked(mark, expected.encode())

    def remove_results(self, folder: str) -> None:
        """Delete the results of a series, and the folder of its study when nothing else is in it."""
        shutil.rmtree(self.results / folder, ignore_errors=True)
        study = (self.results / folder).parent
        if study != self.results and study.is_dir() and not any(study.iterdir()):
            study.rmdir()

    def _pseudonym(self, text: str) -> str:
        return hmac.new(self.secret, text.encode(), hashlib.sha256).hexdigest()[:_DIGITS]


@contextmanager
def opened_spool(root: Path, secret: bytes) -> Iterator[Spool]:
    """A spool that this process alone uses until the statement ends. What was received in part is removed.

    Args:
        root: Made when missing, readable by its owner alone.
        secret: Key of the names in it; the same as long as the spool is used.

    Raises:
        SpoolError: The folder cannot be used, or another listener uses it.
    """
    spool = Spool(root, secret)
    with ExitStack() as stack:
        try:
            root.mkdir(mode=0o700, parents=True, exist_ok=True)
            descriptor = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
            stack.callback(os.close, descriptor)
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            spool.prepare()
        except BlockingIOError:
            raise SpoolError("another listener uses this spool.", hint="Give each its own --spool.") from None
        except OSError as error:
            raise _unusable(error) from error
        yield spool


def _unusable(error: OSError) -> SpoolError:
    reason = os.strerror(error.errno) if error.errno else type(error).__name__
    return SpoolError(f"the spool cannot be used: {reason}.", hint="Give another --spool, or the right to write there.")


class SpoolLimit:
    """How many bytes the spool takes, and whether there is room for more.

    Args:
        spool: Which one.
        limit_bytes: Most that it may take.
        free_bytes: What must stay free on its disk.
    """

    def __init__(self, spool: Spool, limit_bytes: int, free_bytes: int) -> None:
        self._spool = spool
        self.limit_bytes = limit_bytes
        self._free_bytes = free_bytes
        self._lock = threading.Lock()
        self._used = 0
        self.recount()

    @property
    def used_bytes(self) -> int:
        """At the last count, and what came since."""
        return self._used

    def has_room(self, size: int = 0) -> bool:
        """Whether an instance of this size may be kept."""
        return self._used + size <= self.limit_bytes and self.disk_has_room()

    def disk_has_room(self) -> bool:
        """Whether enough of the disk is free."""
        return shutil.disk_usage(self._spool.root).free >= self._free_bytes

    def added(self, size: int) -> None:
        """So many bytes were kept."""
        with self._lock:
            self._used += size

    def recount(self) -> None:
        """Count again; instances that are received just now are left out."""
        with self._lock:
            self._used = sum(_bytes_below(entry) for entry in os.scandir(self._spool.root) if entry.name != _PARTIAL)

    def drop_oldest_failures(self) -> list[str]:
        """Delete failed series, the oldest first, until they take no more than their share; their names."""
        sizes = {key: _bytes_in(self._spool.series("failed", key)) for key in self._spool.keys("failed")}
        dropped = []
        for key, size in list(sizes.items()):
            if sum(sizes.values()) * _FAILED_SHARE <= self.limit_bytes:
                break
            self._spool.remove("failed", key)
            self.added(-size)
            del sizes[key]
            dropped.append(key)
        return dropped


def _bytes_below(entry: os.DirEntry[str]) -> int:
    try:
        if entry.is_dir(follow_symlinks=False):
            return _bytes_in(Path(entry.path))
        return entry.stat(follow_symlinks=False).st_size
    except FileNotFoundError:  # moved meanwhile
        return 0


def _bytes_in(folder: Path) -> int:
    try:
        return sum(map(_bytes_below, os.scandir(folder)))
    except FileNotFoundError:
        return 0


def read_json(path: Path) -> object:
    """What a JSON file holds.

    Raises:
        OSError: It cannot be read.
        ValueError: It is not JSON.
    """
    return json.loads(path.read_text(encoding="utf-8"))
