"""Which series were being segmented when the process ended: one that ends it again and again must not go on doing so.

The engine runs in this process, and a series can take it along: by its memory, or by a defect of a library. So it is
written down which series a round is about, and struck off however the round ends, unless the process did not live to
see that.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from ucseg_runtime.json_text import json_text
from ucseg_runtime.pacs.spool import read_json
from ucseg_runtime.safe_files import replace_checked

SUSPECT_FROM = 2
"""Ends of the process; a single one may have any cause, and many series were in that round."""

MOST_ENDS = 5
"""Of the process; more than an operator or a power failure should cause within one series."""


class Attempts:
    """The file that survives.

    Args:
        path: Where it is; need not exist.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._counts = _read(path)

    def next_round(self, keys: Iterable[str]) -> frozenset[str]:
        """Series for the next round: all that are not suspect; if there are none, the least suspect one alone."""
        keys = sorted(keys)
        harmless = frozenset(key for key in keys if self.ends(key) < SUSPECT_FROM)
        return harmless or frozenset(sorted(keys, key=lambda key: self._counts[key])[:1])

    def ends(self, key: str) -> int:
        """How often the process ended while the series was being segmented."""
        return self._counts.get(key, 0)

    def begin(self, keys: Iterable[str]) -> None:
        """A round is about these series.

        Raises:
            OSError: It cannot be written.
        """
        for key in keys:
            self._counts[key] = self._counts.get(key, 0) + 1
        self._write()

    def end(self, keys: Iterable[str]) -> None:
        """The round has ended, and the process lives.

        Raises:
            OSError: It cannot be written.
        """
        for key in keys:
            self._counts.pop(key, None)
        self._write()

    def _write(self) -> None:
        replace_checked(self._path, json_text(self._counts).encode())


def _read(path: Path) -> dict[str, int]:
    try:
        found = read_json(path)
    except (FileNotFoundError, ValueError):
        return {}
    return {str(key): int(count) for key, count in found.items()} if isinstance(found, dict) else {}
