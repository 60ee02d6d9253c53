"""Which series are complete. DICOM does not say; two things do: nothing came for a while, and nothing is missing.

Time is that of a clock that never jumps. It says nothing across a restart, after which every series begins to be quiet
anew.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from ucseg_runtime.dicom.headers import RefusedFileError
from ucseg_runtime.dicom.instances import Instance
from ucseg_runtime.pacs.objects import read_header
from ucseg_runtime.pacs.spool import Spool
from ucseg_runtime.safe_files import synchronise

Clock = Callable[[], float]
Count = Callable[[str, str], int | None]
"""How many instances an archive has of a study and series UID; None where it cannot tell."""


@dataclass(frozen=True)
class Patience:
    """How long is waited, in s.

    Attributes:
        quiet_s: Without a new instance of a series before it can be complete.
        longest_s: For instances that the archive has and that do not come.
    """

    quiet_s: float = 60.0
    longest_s: float = 1800.0


@dataclass(frozen=True)
class Judged:
    """A series for which nothing comes any more.

    Attributes:
        key: How the spool calls it.
        state: ``complete``; ``short``: the archive has more of it, and it was waited for long enough.
        instances: That are here.
        expected: That the archive has; 0 where nobody could tell.
    """

    key: str
    state: Literal["complete", "short"]
    instances: int
    expected: int = 0


@dataclass(frozen=True)
class _Growing:
    """A series of which instances may still come.

    Attributes:
        last: Clock at the last instance, or at the last look at the archive's count.
        short_since: Clock when it was first found that some are missing; negative for not yet.
    """

    study_uid: str
    series_uid: str
    last: float
    expected: int = 0
    short_since: float = -1.0


class Arrivals:
    """Takes in instances from any thread, and says which series are complete.

    Args:
        spool: Where they lie.
        patience: How long is waited.
        count: Asks the archive how many there are.
        clock: In s, never backwards.
    """

    def __init__(self, spool: Spool, patience: Patience, count: Count, clock: Clock = time.monotonic) -> None:
        self._spool = spool
        self._patience = patience
        self._count = count
        self._clock = clock
        self._lock = threading.Lock()
        self._growing: dict[str, _Growing] = {}
        for key in spool.keys("arriving"):
            self._found_again(key)

    @property
    def waits(self) -> Mapping[str, int]:
        """Series that wait for instances which the archive has: how many it has."""
        with self._lock:
            return {key: item.expected for key, item in self._growing.items() if item.short_since >= 0}

    def __len__(self) -> int:
        return len(self._growing)

    def take(self, partial: Path, instance: Instance) -> None:
        """Keep a received instance; the same one again takes the place of the one before.

        Args:
            partial: File on the disk of the spool; moved.
            instance: Its header.

        Raises:
            OSError: It cannot be kept.
        """
        synchronise(partial)
        key = self._spool.series_key(instance.study_uid, instance.series_uid)
        with self._lock:
            folder = self._spool.series("arriving", key)
            folder.mkdir(mode=0o700, exist_ok=True)
            os.replace(partial, folder / self._spool.instance_name(instance.sop_instance_uid))
            synchronise(folder)
            before = self._growing.get(key)
            now = self._clock()
            if before is None:
                self._growing[key] = _Growing(instance.study_uid, instance.series_uid, now)
            else:
                self._growing[key] = replace(before, last=now, short_since=-1.0)

    def judge(self) -> list[Judged]:
        """Series for which nothing comes any more; each has to be moved on by `hand_over`."""
        with self._lock:
            now = self._clock()
            quiet = [key for key, item in self._growing.items() if now - item.last >= self._patience.quiet_s]
        return [judged for key in quiet if (judged := self._judged(key)) is not None]

    def hand_over(self, judged: Judged) -> bool:
        """Move a complete series on; False where an instance came meanwhile."""
        with self._lock:
            if len(self._spool.files("arriving", judged.key)) != judged.instances:
                return False
            del self._growing[judged.key]
            if judged.state == "complete":
                self._spool.move(judged.key, "arriving", "ready")
            else:
                reason = {
                    "code": "UCSEG-E115",
                    "message": f"{judged.instances} images came, and the archive has {judged.expected}.",
                    "hint": "Send the series again.",
                }
                self._spool.fail(judged.key, "arriving", reason)
            return True

    def _judged(self, key: str) -> Judged | None:
        item = self._growing[key]  # only this thread takes items away
        expected = self._count(item.study_uid, item.series_uid) or 0  # may take its time, so without the lock
        here = len(self._spool.files("arriving", key))
        if expected <= here:
            return Judged(key, "complete", here, expected)
        with self._lock:
            now = self._clock()
            since = item.short_since if item.short_since >= 0 else now
            if now - since >= self._patience.longest_s:
                return Judged(key, "short", here, expected)
            self._growing[key] = replace(self._growing[key], last=now, expected=expected, short_since=since)
        return None

    def _found_again(self, key: str) -> None:
        """A series that came before a restart."""
        for path in self._spool.files("arriving", key):
            try:
                header = read_header(path)
            except (RefusedFileError, OSError):
                continue
            self._growing[key] = _Growing(header.study_uid, header.series_uid, self._clock())
            return
        self._spool.remove("arriving", key)
