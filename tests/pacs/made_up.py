"""A made-up archive for the tests of what is sent when, and a spool with something to send."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from tests.batch.exports import TINY
from tests.phantoms import write_ct_series
from ucseg_runtime.errors import ArchiveUnreachableError, UcsegError
from ucseg_runtime.pacs.archives import FoundSeries, SeriesFilter, Stored
from ucseg_runtime.pacs.objects import LABEL_MAP_CLASS, DicomObject, dicom_object
from ucseg_runtime.pacs.outbox import Outbox
from ucseg_runtime.pacs.spool import Spool


class Clock:
    """Says what it is told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@dataclass
class MadeUpArchive:
    """Takes objects, or does what it is told to instead.

    Attributes:
        errors: Raised one after the other, one at each try, before anything is taken.
        breaks_after: Number of objects after which the association breaks; negative for never.
        refused: SOP Instance UIDs that it does not take.
        takes_label_maps: Whether it does.
        there: UIDs that it has, with how often each was sent.
        tries: How often it was spoken to.
        classes: SOP classes of what it has taken, in order.
        tells_of_label_maps: Whether it says beforehand that it takes none.
    """

    errors: list[UcsegError] = field(default_factory=list)
    breaks_after: int = -1
    refused: set[str] = field(default_factory=set)
    takes_label_maps: bool = True
    there: dict[str, int] = field(default_factory=dict)
    tries: int = 0
    classes: list[str] = field(default_factory=list)
    tells_of_label_maps: bool = True

    def store(self, objects: Sequence[DicomObject], report: Callable[[Stored], None]) -> None:
        self.tries += 1
        if self.errors:
            raise self.errors.pop(0)
        if not self.takes_label_maps and any(item.sop_class_uid == LABEL_MAP_CLASS for item in objects):
            report(Stored(objects[0], "no label maps.", class_refused=True))
            return
        for number, item in enumerate(objects):
            if number == self.breaks_after:
                raise ArchiveUnreachableError("it broke off.")
            if item.sop_uid in self.refused:
                report(Stored(item, "not this one."))
                continue
            self.there[item.sop_uid] = self.there.get(item.sop_uid, 0) + 1
            self.classes.append(item.sop_class_uid)
            report(Stored(item))

    def find(self, wanted: SeriesFilter) -> tuple[FoundSeries, ...]:
        return ()

    def fetch(self, study_uid: str, series_uid: str, folder: Path) -> int:
        return 0

    def refused_classes(self, classes: frozenset[tuple[str, str]]) -> Mapping[str, str]:
        return (
            {}
            if self.takes_label_maps or not self.tells_of_label_maps
            else {kind: "label maps" for kind, _ in classes if kind == LABEL_MAP_CLASS}
        )


def queue(spool: Spool, outbox: Outbox, key: str) -> tuple[DicomObject, ...]:
    """Three objects to send under a key; any DICOM objects will do."""

    folder = spool.results / "study" / key
    files = write_ct_series(folder, replace(TINY, study=key, shape=(3, 8, 8)))
    objects = tuple(map(dicom_object, files))
    outbox.add(key, folder, objects)
    return objects
