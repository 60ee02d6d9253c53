"""Where the results of each series go: by pseudonym or by UID, never by what a patient is called."""

from __future__ import annotations

import hashlib
import hmac
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ucseg_runtime.batch.export_index import ExportSeries

Naming = Literal["pseudonym", "uid"]

_DIGITS = 16


@dataclass(frozen=True)
class Places:
    """The tree of results.

    Attributes:
        out: Its root.
        naming: ``pseudonym``: folders are named by keyed digests of the UIDs; ``uid``: by the UIDs themselves.
        secret: Key of the digests, see `uids.site_secret`.
    """

    out: Path
    naming: Naming
    secret: bytes

    def folder_of(self, series: ExportSeries) -> Path:
        """Where the results of a series belong: a folder of its study, and in it one of its own."""
        return self.out / self.study_name(series) / self.series_name(series)

    def study_name(self, series: ExportSeries) -> str:
        """How the tree and the tables call its study."""
        return self._name("study", series.study_uid)

    def series_name(self, series: ExportSeries) -> str:
        """How the tree and the tables call it; series without UID are called by their content."""
        return self._name("series", series.series_uid or series.content)

    def key_of(self, series: ExportSeries) -> str:
        """What leases and shards know it by, 32 hexadecimal digits."""
        return self._pseudonym("key", f"{series.study_uid} {series.series_uid or series.content} {series.modality}", 32)

    def _name(self, kind: str, uid: str) -> str:
        # Only what is a UID beyond doubt may become part of a path.
        if self.naming == "uid" and re.fullmatch(r"[0-9]+(\.[0-9]+)+", uid):
            return uid
        return self._pseudonym(kind, uid, _DIGITS)

    def _pseudonym(self, kind: str, text: str, digits: int) -> str:
        return hmac.new(self.secret, f"{kind} {text}".encode(), hashlib.sha256).hexdigest()[:digits]
