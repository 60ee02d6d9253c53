"""From loose files to series: grouped by identity, cleaned of localizers and copies, split into acquisitions."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Sequence
from operator import attrgetter

from ucseg_runtime.dicom.headers import content_digest, open_unchanged
from ucseg_runtime.dicom.instances import Acquisition, Instance, Series, stand_in_uid
from ucseg_runtime.dicom.stacking import sorted_along_normal, stack_geometry
from ucseg_runtime.errors import GeometryError, SpacingError

_ACQUISITION_KEYS: tuple[tuple[str, Callable[[Acquisition], int | None]], ...] = (
    ("acquisition number", attrgetter("acquisition_number")),
    ("temporal position", attrgetter("temporal_position")),
    ("echo number", attrgetter("echo_number")),
)


def series_from_instances(instances: Iterable[Instance]) -> tuple[Series, ...]:
    """All series in `instances`, in an order that depends on their content alone."""
    groups: defaultdict[Hashable, list[Instance]] = defaultdict(list)
    for instance in instances:
        groups[_identity(instance)].append(instance)
    series = [member for group in groups.values() for member in _series_of_group(group)]
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


def _series_of_group(group: Sequence[Instance]) -> list[Series]:
    instances, notes = _without_localizers(group)
    instances, copies = _without_copies(instances)
    notes = [*notes, *copies, *_numbering_notes(group), *_rescale_notes(instances)]
    return [
        _series(sorted_along_normal(part), [*notes, *split_note]) for part, split_note in _split_acquisitions(instances)
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


def _split_acquisitions(instances: Sequence[Instance]) -> list[tuple[Sequence[Instance], list[str]]]:
    """Several passes over the same positions, one part each; everything in one part where that is not the case."""
    if not _shares_positions(instances):
        return [(instances, [])]
    for name, number_of in _ACQUISITION_KEYS:
        parts: defaultdict[int, list[Instance]] = defaultdict(list)
        for instance in instances:
            number = number_of(instance.acquisition)
            parts[-1 if number is None else number].append(instance)
        if len(parts) > 1 and all(_is_full_volume(part) for part in parts.values()):
            return [
                (part, [f"One of {len(parts)} volumes of the series, told apart by {name}: {number}."])
                for number, part in sorted(parts.items())
            ]
    return [(instances, [])]


def _shares_positions(instances: Sequence[Instance]) -> bool:
    try:
        stack_geometry(instances)
    except SpacingError as error:
        return error.code == "UCSEG-E113"
    except GeometryError:
        return False
    return False


def _is_full_volume(instances: Sequence[Instance]) -> bool:
    try:
        stack_geometry(instances)
    except GeometryError:
        return False
    return True


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
