"""From loose files to series: grouped by identity, cleaned of localizers and copies, split into acquisitions."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass, replace
from operator import attrgetter
from pathlib import Path
from typing import TypeAlias

from ucseg_runtime.dicom.headers import content_digest, open_unchanged
from ucseg_runtime.dicom.instances import Instance, Series, stand_in_uid
from ucseg_runtime.dicom.object_classes import FRAME_CLASSES, SECONDARY_CAPTURES
from ucseg_runtime.dicom.stacking import grid_of_slices, sorted_along_normal
from ucseg_runtime.errors import GeometryError, SpacingError
from ucseg_runtime.slice_stack import AcquiredGrid, SliceStack

_Key: TypeAlias = tuple[int, ...]

_ACQUISITION_KEYS: tuple[tuple[str, Callable[[Instance], _Key]], ...] = (
    ("acquisition number", lambda instance: _number(instance.acquisition.acquisition_number)),
    ("temporal position", lambda instance: _number(instance.acquisition.temporal_position)),
    ("echo number", lambda instance: _number(instance.acquisition.echo_number)),
    ("dimension indices", attrgetter("acquisition.dimensions")),
    ("file", lambda instance: (instance.ordinal,) if instance.frame else ()),
)
"""What may tell passes over the same positions apart, and how it is read off an instance."""


_WITHOUT_PLACE = SECONDARY_CAPTURES.union(*FRAME_CLASSES.values())
"""Classes of pictures, which need no frame of reference."""


def _number(number: int | None) -> _Key:
    return () if number is None else (number,)


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
    """What the slices of one series share: its UID, and the stack where frames name one.

    Whether they agree in the rest is checked later: a series that is taken apart here would be segmented in halves.
    Files without Series Instance UID are told apart by their folder and by what slices of one volume have in common.
    """
    if instance.series_uid:
        return instance.series_uid, instance.modality, instance.stack_id
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
    parts = _split_acquisitions(instances, allow_gaps)
    return [
        replace(
            _series(sorted_along_normal(part.instances), [*notes, *part.notes]), allowed_gaps=allow_gaps, volume=volume
        )
        for volume, part in enumerate(parts, start=1)
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
        if not uid and not (role == "Frame of Reference UID" and first.sop_class_uid in _WITHOUT_PLACE):
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
    files: defaultdict[str, dict[Path, Instance]] = defaultdict(dict)
    for instance in group:
        files[instance.sop_instance_uid].setdefault(instance.path, instance)
    copies = {path for same in files.values() if len(same) > 1 for path in _copies(list(same.values()))}
    kept = [instance for instance in group if instance.path not in copies]
    return kept, [f"{_files(len(copies))} left out as an exact copy of another."] if copies else []


def _copies(instances: Sequence[Instance]) -> list[Path]:
    """All files but the first of each content; file meta information may differ, the data set may not."""
    contents: set[Hashable] = set()
    copies: list[Path] = []
    for instance in instances:
        content = _content(instance)
        if content in contents:
            copies.append(instance.path)
        contents.add(content)
    return copies


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
        for name, key_of in _ACQUISITION_KEYS:
            parts: defaultdict[_Key, list[Instance]] = defaultdict(list)
            for instance in instances:
                parts[key_of(instance)].append(instance)
            layouts = {key: _layout(part, allow_gaps) for key, part in parts.items()}
            if len(parts) > 1 and not any(isinstance(layout, GeometryError) for layout in layouts.values()):
                told_apart = f"of {len(parts)} of the series, told apart by {name}"
                return [
                    _Part(part, [f"Volume {volume} {told_apart}: {_in_words(key)}.", *_layout_notes(layouts[key])])
                    for volume, (key, part) in enumerate(sorted(parts.items()), start=1)
                ]
    return [_Part(instances, _layout_notes(whole))]


def _in_words(key: _Key) -> str:
    return ", ".join(map(str, key)) or "none"


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
    files = {instance.path for instance in group}
    told = {instance.series_instances for instance in group} - {None, len(files)}
    if told:
        return [f"The archive had {max(filter(None, told))} files of this series, and {len(files)} are present."]
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
