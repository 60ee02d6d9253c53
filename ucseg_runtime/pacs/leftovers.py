"""Instances of which only a part came: pynetdicom leaves them when an association breaks off in the middle."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

from ucseg_runtime.pacs.arrivals import Clock


@dataclass(frozen=True)
class _Seen:
    size: int
    since: float


class Leftovers:
    """Deletes files that have not grown for a while.

    Args:
        folder: Where instances are received.
        after_s: How long nothing must have come; longer than an association is kept on which nothing happens.
        clock: In s, never backwards.
    """

    def __init__(self, folder: Path, after_s: float, clock: Clock = time.monotonic) -> None:
        self._folder = folder
        self._after_s = after_s
        self._clock = clock
        self._seen: dict[str, _Seen] = {}

    def sweep(self) -> int:
        """Look at every file, and delete those that were as large for long enough; their number."""
        now = self._clock()
        seen: dict[str, _Seen] = {}
        swept = 0
        for path in self._folder.iterdir():
            try:
                size = path.stat().st_size
            except FileNotFoundError:
                continue  # it is whole, and was taken meanwhile
            before = self._seen.get(path.name)
            if before is None or before.size != size:
                before = _Seen(size, now)
            if now - before.since >= self._after_s:
                path.unlink(missing_ok=True)
                swept += 1
            else:
                seen[path.name] = before
        self._seen = seen
        return swept
