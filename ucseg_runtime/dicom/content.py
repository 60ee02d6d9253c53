"""What a series consists of, as one digest that does not depend on the order or the names of its files."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import TypeAlias

from ucseg_runtime.dicom.instances import Instance

_MODULUS = 1 << 256

Origin: TypeAlias = tuple[str, str, str]


class SeriesContent:
    """Collects the files of a series.

    The digest is the sum of one SHA-256 for each file, of its SOP Instance UID and its size; so files can be added in
    any order, and nothing has to be kept. It notices files that are added, lost, cut off or exchanged. A file whose
    pixels were changed in place under the same UID, which DICOM forbids, is not noticed: the record has a digest of the
    whole files for those who want to be sure.
    """

    def __init__(self) -> None:
        self._sum = 0
        self._files = 0

    def add(self, instance: Instance) -> None:
        """One file, by any of its instances."""
        token = f"{instance.sop_instance_uid} {instance.file_size}".encode()
        self._sum = (self._sum + int.from_bytes(hashlib.sha256(token).digest(), "big")) % _MODULUS
        self._files += 1

    @property
    def digest(self) -> str:
        """Number of files and sum, in hexadecimal."""
        return f"{self._files:x}-{self._sum:064x}"


def origin_of(instance: Instance) -> Origin:
    """What the files of one series share, as they say it themselves: study, series, modality."""
    return instance.study_uid, instance.series_uid, instance.modality


def contents_of(instances: Iterable[Instance]) -> dict[Origin, str]:
    """The digest of each series, over all files that instances come from."""
    contents: defaultdict[Origin, SeriesContent] = defaultdict(SeriesContent)
    seen: set[Path] = set()
    for instance in instances:
        if instance.path not in seen:
            contents[origin_of(instance)].add(instance)
            seen.add(instance.path)
    return {origin: content.digest for origin, content in contents.items()}
