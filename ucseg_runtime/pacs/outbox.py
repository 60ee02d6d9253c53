"""What has to be sent: a file for each series, so that nothing is forgotten when the process ends.

An object is struck off when the archive has said that it has it, and not before. Should that answer be lost, the object
is sent once more under the same UID, which an archive knows.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

from ucseg_runtime.json_text import json_text
from ucseg_runtime.pacs.objects import DicomObject
from ucseg_runtime.pacs.spool import Spool, read_json
from ucseg_runtime.safe_files import replace_checked

_VERSION = 1


@dataclass(frozen=True)
class Delivery:
    """The results of one series.

    Attributes:
        key: How the spool calls the series.
        folder: Of the results, below those of the spool.
        files: Name of each file by its SOP Instance UID.
        sent: UIDs of those that the archive has.
        tries: How often it was tried in vain.
        label_maps_refused: Whether the archive takes no label maps, so that the series has to be segmented again.
    """

    key: str
    folder: str
    files: Mapping[str, str]
    sent: frozenset[str] = frozenset()
    tries: int = 0
    label_maps_refused: bool = False

    @property
    def is_done(self) -> bool:
        """Whether the archive has everything."""
        return self.sent >= self.files.keys()

    @property
    def left(self) -> tuple[str, ...]:
        """Names of the files that have to be sent."""
        return tuple(name for uid, name in self.files.items() if uid not in self.sent)


class Outbox:
    """All deliveries of a spool; used by several threads.

    Args:
        spool: Whose.
    """

    def __init__(self, spool: Spool) -> None:
        self._spool = spool
        self._lock = threading.Lock()
        self._deliveries = {item.key: item for item in map(_read, sorted(spool.outbox.glob("*.json"))) if item}
        for draft in spool.outbox.glob(".*"):
            draft.unlink()

    def __len__(self) -> int:
        return len(self._deliveries)

    def all(self) -> tuple[Delivery, ...]:
        """As they are now."""
        with self._lock:
            return tuple(self._deliveries.values())

    def add(self, key: str, folder: Path, objects: Iterable[DicomObject]) -> None:
        """Remember the results of a series; what was sent of the very same results stays sent.

        Raises:
            OSError: It cannot be written.
        """
        files = {item.sop_uid: item.path.name for item in objects}
        with self._lock:
            before = self._deliveries.get(key)
            if before is not None and before.files == files and not before.label_maps_refused:
                return
            self._put(Delivery(key, str(folder.relative_to(self._spool.results)), files))

    def sent(self, key: str, sop_uid: str) -> None:
        """The archive has an object."""
        with self._lock:
            delivery = self._deliveries.get(key)
            if delivery is not None and sop_uid in delivery.files:
                self._put(replace(delivery, sent=delivery.sent | {sop_uid}))

    def failed(self, key: str) -> None:
        """A try was in vain."""
        with self._lock:
            delivery = self._deliveries.get(key)
            if delivery is not None:
                self._put(replace(delivery, tries=delivery.tries + 1))

    def refuse_label_maps(self, key: str) -> None:
        """The archive takes no label maps."""
        with self._lock:
            delivery = self._deliveries.get(key)
            if delivery is not None:
                self._put(replace(delivery, label_maps_refused=True))

    def remove(self, key: str) -> None:
        """Forget a delivery."""
        with self._lock:
            self._deliveries.pop(key, None)
            self._path(key).unlink(missing_ok=True)

    def paths(self, delivery: Delivery) -> tuple[Path, ...]:
        """Files that have to be sent."""
        return tuple(self._spool.results / delivery.folder / name for name in delivery.left)

    def _put(self, delivery: Delivery) -> None:
        content = {
            "schema_version": _VERSION,
            "key": delivery.key,
            "folder": delivery.folder,
            "files": dict(delivery.files),
            "sent": sorted(delivery.sent),
            "tries": delivery.tries,
            "label_maps_refused": delivery.label_maps_refused,
        }
        replace_checked(self._path(delivery.key), json_text(content).encode())
        self._deliveries[delivery.key] = delivery

    def _path(self, key: str) -> Path:
        return self._spool.outbox / f"{key}.json"


def _read(path: Path) -> Delivery | None:
    """A delivery; None of a file that this version cannot read: its series is segmented and added again."""
    try:
        found = cast(dict[str, object], read_json(path))
        if found["schema_version"] != _VERSION:
            return None
        return Delivery(
            str(found["key"]),
            str(found["folder"]),
            cast(dict[str, str], found["files"]),
            frozenset(cast(list[str], found["sent"])),
            cast(int, found["tries"]),
            bool(found["label_maps_refused"]),
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None
