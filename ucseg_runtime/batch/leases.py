"""Who works on what: several runners on one folder of results, on one machine or many.

A lease is a file that is made exclusively and touched as long as its owner lives. It is advice: two runners that work
on one series after all write the same bytes, one after the other. Whether an owner still lives is judged without
comparing clocks, since those of other machines differ and may jump: on the same machine by its process, else by
watching that the lease does not change for as long as a lease lasts.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

_TOUCHES_PER_LEASE = 4


@dataclass(frozen=True)
class _Owner:
    """What a lease says of its owner.

    Attributes:
        machine: Same for processes that see each other.
        process: Id and start time.
        token: Drawn anew for every lease.
    """

    machine: str
    process: str
    token: str


@dataclass(frozen=True)
class _Seen:
    """A foreign lease when it was first seen unchanged."""

    owner: _Owner | None
    modified_ns: int
    since: float


class Leases:
    """The leases of one runner; see `held_leases`.

    Args:
        folder: Shared by all runners.
        seconds: How long a lease of another machine counts after its last sign of life.
    """

    def __init__(self, folder: Path, seconds: float) -> None:
        self._folder = folder
        self._seconds = seconds
        self._held: dict[str, _Owner] = {}
        self._seen: dict[str, _Seen] = {}
        self._ended = threading.Event()
        self._lock = threading.Lock()
        self._keeper = threading.Thread(target=self._touch_now_and_then, name="leases", daemon=True)
        self._keeper.start()

    def claim(self, key: str) -> bool:
        """Take the lease of a series; False where another runner has it.

        Raises:
            OSError: The folder cannot be written.
        """
        owner = _Owner(_machine(), _process(os.getpid()), secrets.token_hex(8))
        with self._lock:
            self._held[key] = owner  # before there is a lease: one that a signal left behind would count as ours
        if self._taken(key, owner):
            self._seen.pop(key, None)
            return True
        with self._lock:
            del self._held[key]
        return False

    def release(self, key: str) -> None:
        """Give a lease back, unless somebody else has it by now."""
        if self._is_ours(key):
            self._path(key).unlink(missing_ok=True)
        with self._lock:
            del self._held[key]

    def end(self) -> None:
        """Give all leases back."""
        self._ended.set()
        self._keeper.join()
        for key in list(self._held):
            self.release(key)

    def _taken(self, key: str, owner: _Owner) -> bool:
        if self._made(key, owner):
            return True
        if not self._is_abandoned(key):
            return False
        self._take_away(key)
        return self._made(key, owner)

    def _is_ours(self, key: str) -> bool:
        with self._lock:
            owner = self._held.get(key)
        return owner is not None and _read(self._path(key)) == owner

    def _made(self, key: str, owner: _Owner) -> bool:
        """Write the lease beside its place and link it there, so that nobody ever reads half of one."""
        draft = self._folder / f".{owner.token}"
        try:
            with draft.open("x", encoding="utf-8") as file:
                json.dump(vars(owner), file)
            os.link(draft, self._path(key))
        except FileExistsError:
            return False
        finally:
            draft.unlink(missing_ok=True)
        return True

    def _is_abandoned(self, key: str) -> bool:
        try:
            modified_ns = self._path(key).stat().st_mtime_ns
        except FileNotFoundError:
            return True
        owner = _read(self._path(key))
        if owner is not None and owner.machine == _machine():
            return _process(int(owner.process.split()[0])) != owner.process
        seen = self._seen.get(key)
        if seen is None or (seen.owner, seen.modified_ns) != (owner, modified_ns):
            self._seen[key] = _Seen(owner, modified_ns, time.monotonic())
            return False
        return time.monotonic() - seen.since > self._seconds

    def _take_away(self, key: str) -> None:
        """Remove an abandoned lease; one that was made meanwhile is put back."""
        abandoned = _read(self._path(key))
        aside = self._folder / f".{secrets.token_hex(8)}"
        try:
            os.rename(self._path(key), aside)
        except FileNotFoundError:
            return  # another runner was faster
        if _read(aside) != abandoned:
            with contextlib.suppress(FileExistsError):
                os.link(aside, self._path(key))
        aside.unlink(missing_ok=True)

    def _touch_now_and_then(self) -> None:
        while not self._ended.wait(self._seconds / _TOUCHES_PER_LEASE):
            with self._lock:
                held = list(self._held)
            for key in filter(self._is_ours, held):
                with contextlib.suppress(OSError):  # taken away, or the folder is out of reach for a while
                    os.utime(self._path(key))

    def _path(self, key: str) -> Path:
        return self._folder / f"{key}.lease"


@contextmanager
def held_leases(folder: Path, seconds: float) -> Iterator[Leases]:
    """Leases that are given back when the statement ends, however it ends.

    Args:
        folder: Made when missing.
        seconds: See `Leases`.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    leases = Leases(folder, seconds)
    try:
        yield leases
    finally:
        leases.end()


def _read(path: Path) -> _Owner | None:
    try:
        return _Owner(**json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None  # gone, or not made by us: then only time tells


def _machine() -> str:
    """Name, boot and process namespace: within these a process id says whether somebody lives."""
    parts = [socket.gethostname()]
    with contextlib.suppress(OSError):  # other systems than Linux have neither
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text().strip())
        parts.append(os.readlink("/proc/self/ns/pid"))
    return " ".join(parts)


def _process(pid: int) -> str:
    """Id and start of a process, since ids are used again; only the id, followed by ``gone``, where there is none."""
    try:
        after_name = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return f"{pid} gone"
    return f"{pid} gone" if after_name[0] == "Z" else f"{pid} {after_name[19]}"
