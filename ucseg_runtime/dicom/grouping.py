"""From loose files to series: grouped by identity, cleaned of localizers and copies, split into acquisitions."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass, replace
from operator import attrgetter

from ucseg_runtime.dicom.headers import content_digest, open_unchanged
from ucseg_runtime.dicom.instances import Acquisition, Instance, Series, stand_in_uid
from ucseg_runtime.dicom.stacking import grid_of_slices, sorted_along_normal
from ucseg_runtime.errors import GeometryError, SpacingError
from ucseg_runtime.slice_stack import AcquiredGrid, SliceStack

_ACQUISITION_KEYS: tuple[tuple[str, Callable[[Acquisition], int | None]], ...] = (
    ("acquisition number", attrgetter("acquisition_number")),
    ("temporal position", attrgetter("temporal_position")),
    ("echo number", attrgetter("echo_number")),
)


def series_from_instances(instances: Iterable[Instance], allow_gaps: int = 0) -> tuple[Series, ...]:
    """All series in `instances`, in an order that depends on their content alone.

    Args:
        instances: Of all files.
        allow_gaps: Most missing slices in a row that may be bridged.
    """
    groups: defaultdict[Hashable, list[Instance]] = defaultdict(list)
    for instance in instances:
        groups[_identity(instance)].append(instance)
    series = [member for group in groups.values() for member in _series_of_group(group, allow_gaps)]
    return tuple(sorted(series, key=_listing_order))


def _identity(instance: Instance) -> Hashable:
    """What the files of one series share: its UID.

    Whether they agree in the rest is checked later: a series that is taken apart here would be segmented in halves.
    Files without Series Instance UID are told apart by their folder and by what slices of one volume have in common.
    """
    if instance.series_uid:
        return instance.series_uid, instance.modality
    identity = (instance.study_uid, instance.frame_of_reference_uid, instance.modality)
    placement, pixel_format = instance.placement, instance.pixel_format
    turned = None if placement.orientation is None else tuple(round(cosine, 3) for cosine in placement.orientation)
    grid = (pixel_format.rows, pixel_format.columns, placement.pixel_spacing_mm, turned)
    return identity, instance.path.parent, instance.sop_class_uid, instance.series_number, grid


def _listing_order(series: Series) -> tuple[str, int, str, str, str]:
    number = -1 if series.series_number is None else series.series_number
    first = series.instances[0].sop_instance_uid
    return series.study_uid, number, series.series_uid, series.frame_of_reference_uid, first


def _series_of_group(group: Sequence[Instance], allow_gaps: int) -> list[Series]:
    instances, notes = _without_localizers(group)
    instances, copies = _without_copies(instances)
    notes = [*notes, *copies, *_numbering_notes(group), *_rescale_notes(instances)]
    return [
        replace(_series(sorted_along_normal(part.instances), [*notes, *part.notes]), allowed_gaps=allow_gaps)
        for part in _split_acquisitions(instances, allow_gaps)
    ]


def _series(instances: tuple[Instance, ...], notes: Sequence[str]) -> Series:
    first = instances[0]
    content = sorted(instance.sop_instance_uid for instance in instances)
    uids: dict[str, str] = {}
    missing: list[str] = []
    for role, uid in (
        ("Study Instance UID", first.study_uid),
        ("Series Instance UID", first.series_uid),
        ("Frame of Reference UID", first.frame_of_reference_uid),
    ):
        uids[role] = uid or stand_in_uid(role, *content)
        if not uid:
            missing.append(f"The {role} is empty or not a UID; a stand-in derived from the instances is used.")
    return Series(
        study_uid=uids["Study Instance UID"],
        series_uid=uids["Series Instance UID"],
        frame_of_reference_uid=uids["Frame of Reference UID"],
        modality=first.modality,
        series_number=first.series_number,
        rows=first.pixel_format.rows,
        columns=first.pixel_format.columns,
        instances=instances,
        notes=(*notes, *missing),
    )


def _without_localizers(group: Sequence[Instance]) -> tuple[list[Instance], list[str]]:
    slices = [instance for instance in group if not instance.is_localizer]
    dropped = len(group) - len(slices)
    if not slices or not dropped:
        return list(group), []
    return slices, [f"{_files(dropped)} marked as LOCALIZER left out."]


def _without_copies(group: Sequence[Instance]) -> tuple[list[Instance], list[str]]:
    """Keep one of several files that have the same SOP Instance UID and the same content."""
    by_uid: defaultdict[str, list[Instance]] = defaultdict(list)
    for instance in group:
        by_uid[instance.sop_instance_uid].append(instance)
    kept = [instance for same in by_uid.values() for instance in (_distinct(same) if len(same) > 1 else same)]
    dropped = len(group) - len(kept)
    return kept, [f"{_files(dropped)} left out as an exact copy of another."] if dropped else []


def _distinct(instances: Sequence[Instance]) -> list[Instance]:
    """The first file of each content; file meta information may differ, the data set may not."""
    contents: dict[Hashable, Instance] = {}
    for instance in instances:
        contents.setdefault(_content(instance), instance)
    return list(contents.values())


def _content(instance: Instance) -> Hashable:
    try:
        with open_unchanged(instance) as stream:
            return instance.transfer_syntax, content_digest(stream, instance.dataset_offset)
    except OSError:
        return instance.path  # cannot be compared any more, so it counts as different


@dataclass(frozen=True)
class _Part:
    """The files of one volume, and what is to be said of them."""

    instances: Sequence[Instance]
    notes: list[str]


def _split_acquisitions(instances: Sequence[Instance], allow_gaps: int) -> list[_Part]:
    """Several passes over the same positions, one part each; everything in one part where that is not the case."""
    whole = _layout(instances, allow_gaps)
    if isinstance(whole, SpacingError) and whole.code == "UCSEG-E113":
        for name, number_of in _ACQUISITION_KEYS:
            parts: defaultdict[int, list[Instance]] = defaultdict(list)
            for instance in instances:
                number = number_of(instance.acquisition)
                parts[-1 if number is None else number].append(instance)
            layouts = {number: _layout(part, allow_gaps) for number, part in parts.items()}
            if len(parts) > 1 and not any(isinstance(layout, GeometryError) for layout in layouts.values()):
                told_apart = f"One of {len(parts)} volumes of the series, told apart by {name}"
                return [
                    _Part(part, [f"{told_apart}: {number}.", *_layout_notes(layouts[number])])
                    for number, part in sorted(parts.items())
                ]
    return [_Part(instances, _layout_notes(whole))]


def _layout(instances: Sequence[Instance], allow_gaps: int) -> AcquiredGrid | GeometryError:
    """How slices lie, or why they form no volume."""
    try:
        return grid_of_slices(instances, allow_gaps)
    except GeometryError as error:
        return error


def _layout_notes(layout: AcquiredGrid | GeometryError) -> list[str]:
    if not isinstance(layout, SliceStack):
        return []
    return [
        f"The slices are {layout.in_words}; they are resampled to a straight grid with a step of "
        f"{layout.straight_grid.spacing_mm[0]:.2f} mm, and results are mapped back onto the slices as acquired."
    ]


def _numbering_notes(group: Sequence[Instance]) -> list[str]:
    """A hint at missing end slices, which positions cannot show."""
    numbers = {instance.instance_number for instance in group if instance.instance_number is not None}
    if len(numbers) < 2 or max(numbers) - min(numbers) + 1 == len(numbers) and min(numbers) <= 1:
        return []
    return [
        f"Instance numbers run from {min(numbers)} to {max(numbers)} but {len(numbers)} of them are present; "
        "slices at the ends may be missing."
    ]


def _rescale_notes(instances: Sequence[Instance]) -> list[str]:
    if len({instance.rescale for instance in instances}) == 1:
        return []
    return ["Rescale Slope or Intercept differs between slices; each slice is converted with its own."]


def _files(count: int) -> str:
    return f"{count} file{'s' if count > 1 else ''}"
