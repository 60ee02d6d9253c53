"""From a path to what of it is to be segmented: one series of DICOM files, or one NIfTI image."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from ucseg_runtime.clip_model import frames_at_a_time, require_picture_model
from ucseg_runtime.config import WHATEVER_FITS, InputOptions
from ucseg_runtime.dicom.checks import require_instances
from ucseg_runtime.dicom.content import origin_of
from ucseg_runtime.dicom.files import FoundFile
from ucseg_runtime.dicom.frame_images import scan_with_frames
from ucseg_runtime.dicom.frame_reader import colour_notes
from ucseg_runtime.dicom.selection import Selection, select_series
from ucseg_runtime.dicom.series import Scan, SkippedFile, scan_files
from ucseg_runtime.dicom.sources import opened_input
from ucseg_runtime.dicom.stacking import acquired_grid
from ucseg_runtime.errors import InputError
from ucseg_runtime.geometry import frame_grid
from ucseg_runtime.manifest import ModelSpec
from ucseg_runtime.nifti_input import NiftiImage, is_nifti, nifti_image
from ucseg_runtime.slice_stack import AcquiredGrid


@dataclass(frozen=True)
class FoundSeries:
    """The series of an input that is to be segmented; its pixels are not read yet.

    Attributes:
        selection: The series, and the others with reasons.
        skipped: Files that belong to no series, with reasons.
        content: Digest of what all files of the series hold, see `SeriesContent`.
    """

    selection: Selection
    skipped: tuple[SkippedFile, ...]
    content: str

    def with_notes(self, notes: tuple[str, ...]) -> FoundSeries:
        """The same with more notes on the chosen series."""
        chosen = self.selection.chosen
        return replace(self, selection=replace(self.selection, chosen=replace(chosen, notes=(*chosen.notes, *notes))))

    @property
    def name(self) -> str:
        """How messages name it."""
        return self.selection.chosen.name

    @property
    def notes(self) -> tuple[str, ...]:
        """What was put right, and what the reader of the results should know."""
        return self.selection.chosen.notes

    def left_out(self) -> list[str]:
        """Files and series of the input that are not used, with reasons, one line each."""
        counts = Counter((item.code, item.reason) for item in self.skipped)
        files = [f"{count} files left out: {code} {reason}" for (code, reason), count in counts.items()]
        series = [f"{item.series.name} left out: {item.code} {item.reason}" for item in self.selection.rejected]
        return [*files, *series]

    def as_json(self) -> dict[str, object]:
        """What machines are told of it."""
        return {
            "series_uid": self.selection.chosen.series_uid,
            "notes": list(self.notes),
            "rejected": [
                {"series_uid": item.series.series_uid, "code": item.code, "reason": item.reason}
                for item in self.selection.rejected
            ],
            "skipped": [asdict(item) for item in self.skipped],
        }


@dataclass(frozen=True)
class FoundClip(FoundSeries):
    """Pictures or a clip; the series has one instance for each frame."""


Found = FoundSeries | NiftiImage

Source = Path | tuple[FoundFile, ...]


@contextmanager
def found_in(source: Source, spec: ModelSpec, wanted: InputOptions) -> Iterator[Found]:
    """What of an input is to be segmented, readable until the statement ends; headers are read, pixels not.

    Args:
        source: Folder, DICOM file, DICOMDIR, zip archive or NIfTI file; or files that were found before.
        spec: The model.
        wanted: What the caller insists on, and allows.

    Raises:
        InputError: The input cannot be read, or nothing of it can be segmented.
        OutputError: There is no room for what an archive holds.
        BackendUnavailableError: The input is NIfTI, and nibabel is not installed.
    """
    if isinstance(source, Path) and is_nifti(source):
        yield image_in(source, spec, wanted)
        return
    with opened_input(source) if isinstance(source, Path) else nullcontext(source) as files:
        found = scanned(files, spec, wanted)
        selection = select_series(found, spec.modality, wanted.with_rules(spec.series_rules()), spec.image_kind)
        require_instances(selection.chosen, wanted.expect_instances)
        content = found.contents[origin_of(selection.chosen.instances[0])]
        if spec.image_kind == "slices":
            yield FoundSeries(selection, found.skipped, content)
        else:
            clip = FoundClip(selection, found.skipped, content)
            yield clip.with_notes(colour_notes(selection.chosen, spec.channels))


def scanned(files: Sequence[FoundFile], spec: ModelSpec, wanted: InputOptions) -> Scan:
    """The series of some files as a model looks at them; see `scan_files`.

    Raises:
        InputError: None of the files can be read.
        ManifestError: The model is for pictures, and cannot be used on them.
    """
    found = scan_files(files, wanted.allow_gaps)
    if spec.image_kind == "slices":
        return found
    require_picture_model(spec)
    return scan_with_frames(found)


def grid_of(found: Found) -> AcquiredGrid:
    """The grid of what was found; a stack where slices are tilted or unevenly spaced; made up for frames.

    Raises:
        GeometryError: The slices of a series do not form one volume.
    """
    if isinstance(found, NiftiImage):
        return found.geometry
    series = found.selection.chosen
    if isinstance(found, FoundClip):
        return frame_grid(series.number_of_instances, series.rows, series.columns)
    return acquired_grid(series)


def slices_at_a_time(found: Found, spec: ModelSpec) -> int:
    """How many slices or frames are in memory at the same time."""
    if not isinstance(found, FoundClip):
        return grid_of(found).shape[0]
    series = found.selection.chosen
    return min(series.number_of_instances, frames_at_a_time(spec, series.rows, series.columns))


def image_in(source: Path, spec: ModelSpec, wanted: InputOptions) -> NiftiImage:
    """The image of a NIfTI file.

    Raises:
        InputError: It cannot be segmented, or the caller wants what belongs to series.
        BackendUnavailableError: nibabel is not installed.
    """
    if wanted != WHATEVER_FITS:
        raise InputError(
            "a NIfTI image has no series to choose from, and no slices to count.",
            hint="Leave --series, --choose, --exclude, --allow-gaps and --expect-instances out.",
            code="UCSEG-E121",
        )
    return nifti_image(source, spec.modality)
