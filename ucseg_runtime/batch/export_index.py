"""Which series an export holds and in which files they lie, in little memory.

Headers are read once. What is kept of a file is its path, its size, its time, and the series that it belongs to: about
150 bytes, so that the index of a million files fits.
"""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from pathlib import Path

from ucseg_runtime.dicom.content import Origin, SeriesContent, origin_of
from ucseg_runtime.dicom.files import UNREADABLE_INPUT, FoundFile, entries_below, found_file
from ucseg_runtime.dicom.headers import RefusedFileError, quiet_pydicom, read_instances
from ucseg_runtime.dicom.instances import Instance
from ucseg_runtime.dicom.sources import is_archive, opened_input
from ucseg_runtime.errors import InputError, UcsegError

_LOOKED_AT_EVERY = 500

Progress = Callable[[int], None]
"""Told how many files were looked at."""


@dataclass(frozen=True, slots=True)
class ExportSeries:
    """One series of an export.

    Attributes:
        study_uid: (0020,000D); empty where the files have none.
        series_uid: (0020,000E); empty where the files have none: such files of one folder count as a series.
        modality: (0008,0060).
        content: Digest of what its files hold, see `SeriesContent`.
        files: Places of its files in the index; empty for a series in an archive.
        archive: Place of the zip archive that holds it; -1 for plain files.
    """

    study_uid: str
    series_uid: str
    modality: str
    content: str
    files: array[int] = field(repr=False)
    archive: int = -1


@dataclass(frozen=True, eq=False)
class ExportIndex:
    """The files of an export and the series in them.

    Attributes:
        root: Folder of the export.
        names: Paths below the root; they can hold patient data.
        sizes: Bytes of each file.
        modified_ns: Time of the last change of each file.
        series: In the order of their UIDs.
        skipped: Number of files without a usable header, by code and reason.
        unreadable: Number of those, and of folders, that the system would not let us read: series may be missing.
    """

    root: Path = field(repr=False)
    names: list[str] = field(repr=False)
    sizes: array[int] = field(repr=False)
    modified_ns: array[int] = field(repr=False)
    series: tuple[ExportSeries, ...]
    skipped: Counter[tuple[str, str]]
    unreadable: int = 0

    def source_of(self, series: ExportSeries) -> Path | tuple[FoundFile, ...]:
        """What is read for a series: its archive, or its files as they were when the index was made."""
        if series.archive >= 0:
            return self.root / self.names[series.archive]
        return tuple(
            FoundFile(
                path=self.root / self.names[place],
                ordinal=place + 1,
                total=len(self.names),
                size=self.sizes[place],
                modified_ns=self.modified_ns[place],
                name=self.names[place],
            )
            for place in series.files
        )

    def newest_ns(self, series: ExportSeries) -> int:
        """When the youngest file of a series changed."""
        places = series.files if series.archive < 0 else (series.archive,)
        return max(self.modified_ns[place] for place in places)


def index_export(root: Path, progress: Progress | None = None) -> ExportIndex:
    """Read every header of an export once.

    Args:
        root: Folder, with any folders and zip archives below; or one zip archive.
        progress: Told now and then how many files were looked at.

    Raises:
        InputError: The folder cannot be read.
    """
    builder = _Builder()
    base = root if root.is_dir() else root.parent
    names: list[str] = []
    sizes, modified = array("q"), array("q")
    with quiet_pydicom() as caught:
        for place, (path, status) in enumerate(entries_below(root)):
            found = found_file(path, place + 1, place + 1, status, str(path.relative_to(base.resolve())))
            names.append(found.name)
            sizes.append(found.size)
            modified.append(found.modified_ns)
            try:
                if found.refusal:
                    raise RefusedFileError(found.refusal_code, found.refusal)
                builder.add(place, path.parent, read_instances(found, caught))
            except RefusedFileError as refusal:
                if not found.refusal and is_archive(path):
                    builder.add_archive(place, path)
                else:
                    builder.skipped[refusal.code, refusal.reason] += 1
                    denied = not found.refusal and refusal.code == UNREADABLE_INPUT
                    builder.unreadable += denied or isinstance(status, OSError)
            if progress is not None and place % _LOOKED_AT_EVERY == 0:
                progress(place + 1)
    if not names:
        raise InputError("the export holds no files.", hint="Give the folder of an export.", code="UCSEG-E101")
    if progress is not None:
        progress(len(names))
    return ExportIndex(base.resolve(), names, sizes, modified, builder.series(), builder.skipped, builder.unreadable)


class _Builder:
    """Puts files together to series as they come."""

    def __init__(self) -> None:
        self.skipped: Counter[tuple[str, str]] = Counter()
        self.unreadable = 0
        self._open: dict[Hashable, _OpenSeries] = {}

    def add(self, place: int, folder: Path, instances: list[Instance], archive: int = -1) -> None:
        """One file, as one instance or one for each frame."""
        first = instances[0]
        origin = origin_of(first)
        key = (origin, archive, None if first.series_uid else folder)
        series = self._open.setdefault(key, _OpenSeries(origin, archive))
        series.content.add(first)
        if archive < 0:
            series.files.append(place)

    def add_archive(self, place: int, path: Path) -> None:
        """All files of a zip archive; one that is refused is skipped with its reason."""
        try:
            with opened_input(path) as members, quiet_pydicom() as caught:
                for member in members:
                    try:
                        self.add(place, path, read_instances(member, caught), archive=place)
                    except RefusedFileError as refusal:
                        self.skipped[refusal.code, refusal.reason] += 1
        except UcsegError as error:
            self.skipped[error.code, error.message] += 1

    def series(self) -> tuple[ExportSeries, ...]:
        """Everything that was added, plain files first; what an archive holds once more is left out with a reason."""
        closed: dict[Hashable, ExportSeries] = {}
        for item in sorted(self._open.values(), key=lambda item: (item.archive >= 0, item.content.digest)):
            series = ExportSeries(*item.origin, item.content.digest, item.files, item.archive)
            key = item.origin if series.series_uid else (item.origin, series.content)
            if key in closed:
                self.skipped["UCSEG-E112", "holds a series that lies elsewhere in the export too"] += 1
            else:
                closed[key] = series
        return tuple(sorted(closed.values(), key=lambda item: (*_origin(item), item.content)))


def _origin(series: ExportSeries) -> Origin:
    return series.study_uid, series.series_uid, series.modality


@dataclass(eq=False)
class _OpenSeries:
    origin: Origin
    archive: int
    files: array[int] = field(default_factory=lambda: array("l"))
    content: SeriesContent = field(default_factory=SeriesContent)
