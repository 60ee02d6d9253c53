"""From the positions of slices to one straight grid, or to the reason why there is none."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from ucseg_runtime.arrays import Float64Array
from ucseg_runtime.dicom.instances import Instance, Series
from ucseg_runtime.errors import GeometryError, SpacingError
from ucseg_runtime.geometry import VolumeGeometry

_COSINE_TOLERANCE = 1e-3
_SPACING_TOLERANCE_MM = 1e-3
_POSITION_TOLERANCE_MM = 0.1
_RELATIVE_STEP_TOLERANCE = 0.01
_SAME_POSITION_MM = 0.05
_LISTED_GROUPS = 6
_EXPORT_AGAIN = "Export the series again."

_Value = TypeVar("_Value")


def volume_geometry(series: Series) -> VolumeGeometry:
    """The grid of a series, after every check that its slices form one straight, evenly spaced stack.

    The index order is (slice, row, column); slices ascend along the normal, row × column, and voxel (0, 0, 0) is the
    first voxel of the lowest slice. The step is measured from the positions, never taken from Slice Thickness, Spacing
    Between Slices or the instance numbers.

    Raises:
        GeometryError: Positions, orientations or sizes are missing or do not fit together.
        SpacingError: Slices are missing, duplicated or unevenly spaced.

    Source: DICOM PS3.3 C.7.6.2.1.1.
    """
    return stack_geometry(series.instances)


def stack_geometry(instances: Sequence[Instance]) -> VolumeGeometry:
    """The grid of slices given in any order; see `volume_geometry`."""
    if len(instances) < 2:
        raise GeometryError(
            f"the series has {len(instances)} slice; a volume needs at least 2.",
            hint="Choose a series with a whole volume.",
            code="UCSEG-E121",
        )
    _refuse_shared_identifiers(instances)
    _refuse_localizers(instances)
    planes = [_plane(instance) for instance in instances]
    _refuse_other_planes(instances, planes)
    first = planes[0]
    distances = np.array([plane.position @ first.normal for plane in planes])
    order = np.argsort(distances, kind="stable")
    slices = [instances[index] for index in order]
    distances = distances[order]
    positions = np.stack([planes[index].position for index in order])
    _refuse_shared_positions(slices, distances)
    _refuse_sideways_shift(positions, first)
    step = _even_step(slices, distances)
    return _grid(slices[0], first, positions[0], step, len(slices))


def sorted_along_normal(instances: Sequence[Instance]) -> tuple[Instance, ...]:
    """Instances ascending along row × column of the first one that has a plane; others by instance number.

    The order depends on the content alone, not on names or on the order of the files.
    """
    by_identity = sorted(instances, key=lambda item: (item.instance_number or 0, item.sop_instance_uid))
    try:
        planes = {id(instance): _plane(instance) for instance in by_identity}
    except GeometryError:
        return tuple(by_identity)
    normal = planes[id(by_identity[0])].normal
    return tuple(sorted(by_identity, key=lambda item: float(planes[id(item)].position @ normal)))


@dataclass(frozen=True, eq=False)
class _Plane:
    """A slice in space: float64 unit vectors of shape (3,), position and spacing in mm."""

    position: Float64Array
    row: Float64Array
    column: Float64Array
    spacing: tuple[float, float]

    @property
    def normal(self) -> Float64Array:
        normal: Float64Array = np.cross(self.row, self.column)
        return normal / np.linalg.norm(normal)


def _plane(instance: Instance) -> _Plane:
    placement = instance.placement
    position = _present(placement.position_mm, "Image Position (Patient)", instance)
    orientation = _present(placement.orientation, "Image Orientation (Patient)", instance)
    spacing = _present(placement.pixel_spacing_mm, "Pixel Spacing", instance)
    if min(spacing) <= 0.0:
        raise _unplaced(instance, f"has a Pixel Spacing of {spacing} mm (expected positive numbers)")
    row, column = np.reshape(np.asarray(orientation, dtype=np.float64), (2, 3))
    row_length, column_length = float(np.linalg.norm(row)), float(np.linalg.norm(column))
    if max(abs(row_length - 1.0), abs(column_length - 1.0), abs(float(row @ column))) > _COSINE_TOLERANCE:
        raise _unplaced(
            instance,
            f"has direction cosines of length {row_length:.4f} and {column_length:.4f} with a scalar product of "
            f"{row @ column:.4f} (expected 1, 1 and 0 within {_COSINE_TOLERANCE})",
        )
    return _Plane(np.array(position), row / row_length, column / column_length, spacing)


def _present(value: _Value | None, name: str, instance: Instance) -> _Value:
    if value is None:
        raise _unplaced(instance, f"has no {name}, or one that is incomplete or not finite")
    return value


def _unplaced(instance: Instance, reason: str) -> GeometryError:
    return GeometryError(f"{instance.where} {reason}.", hint=_EXPORT_AGAIN, code="UCSEG-E118")


def _refuse_shared_identifiers(instances: Sequence[Instance]) -> None:
    seen: dict[str, Instance] = {}
    for instance in instances:
        other = seen.setdefault(instance.sop_instance_uid, instance)
        if other is not instance:
            raise SpacingError(
                f"{other.where} and {instance.where} carry the same SOP Instance UID but differ in content.",
                hint="Find out which of the two is the true one, and export the series again.",
                code="UCSEG-E112",
            )


def _refuse_localizers(instances: Sequence[Instance]) -> None:
    for instance in instances:
        if instance.is_localizer:
            raise GeometryError(
                f"{instance.where} is a localizer, a planning view, and so are all other files of the series.",
                hint="Choose a series with a whole volume.",
                code="UCSEG-E111",
            )


def _refuse_other_planes(instances: Sequence[Instance], planes: Sequence[_Plane]) -> None:
    first, reference = planes[0], instances[0]
    for instance, plane in zip(instances, planes, strict=True):
        turned = max(np.abs(plane.row - first.row).max(), np.abs(plane.column - first.column).max())
        if turned > _COSINE_TOLERANCE:
            cosine = min(abs(float(plane.normal @ first.normal)), 1.0)
            angle = np.degrees(np.arccos(cosine))
            raise GeometryError(
                f"the series mixes orientations: the plane of {instance.where} is inclined by {angle:.1f} degrees to "
                f"that of {reference.where}, or turned within it.",
                hint="Export the series without planning views and reformatted slices.",
                code="UCSEG-E111",
            )
        _refuse_other_format(instance, reference)
        if np.abs(np.subtract(plane.spacing, first.spacing)).max() > _SPACING_TOLERANCE_MM:
            raise _mixed(instance, reference, "Pixel Spacing in mm", plane.spacing, first.spacing)


def _refuse_other_format(instance: Instance, reference: Instance) -> None:
    found, expected = instance.pixel_format, reference.pixel_format
    for name, here, there in (
        ("Rows × Columns", f"{found.rows} × {found.columns}", f"{expected.rows} × {expected.columns}"),
        ("Photometric Interpretation", found.photometric, expected.photometric),
        ("Samples per Pixel", found.samples, expected.samples),
        ("Bits Allocated", found.bits_allocated, expected.bits_allocated),
        ("Pixel Representation", int(found.signed), int(expected.signed)),
    ):
        if here != there:
            raise _mixed(instance, reference, name, here, there)


def _mixed(instance: Instance, reference: Instance, name: str, here: object, there: object) -> GeometryError:
    return GeometryError(
        f"the slices differ in {name}: {here} in {instance.where}, {there} in {reference.where}.",
        hint="Export only the slices of one reconstruction.",
        code="UCSEG-E119",
    )


def _refuse_shared_positions(slices: Sequence[Instance], distances: Float64Array) -> None:
    shared = np.flatnonzero(np.diff(distances) < _SAME_POSITION_MM)
    if not shared.size:
        return
    one, other = slices[shared[0]], slices[shared[0] + 1]
    raise SpacingError(
        f"{shared.size} slices lie where another one lies, first {one.where} and {other.where}; "
        f"{_listed_acquisitions(slices)}, and no split into them gives full volumes.",
        hint="Export one acquisition, time point or echo at a time.",
        code="UCSEG-E113",
    )


def _listed_acquisitions(slices: Sequence[Instance]) -> str:
    groups = []
    for name, numbers in (
        ("acquisition numbers", [item.acquisition.acquisition_number for item in slices]),
        ("temporal positions", [item.acquisition.temporal_position for item in slices]),
        ("echo numbers", [item.acquisition.echo_number for item in slices]),
    ):
        counts = Counter("none" if number is None else str(number) for number in numbers).most_common()
        listed = ", ".join(f"{number} ({count} files)" for number, count in counts[:_LISTED_GROUPS])
        groups.append(f"{name}: {listed}{' …' if len(counts) > _LISTED_GROUPS else ''}")
    return "; ".join(groups)


def _refuse_sideways_shift(positions: Float64Array, first: _Plane) -> None:
    """Slices must lie exactly above each other; a gantry tilt shifts each one against the last."""
    offset = positions - positions[0]
    along = offset @ first.normal
    sideways = np.linalg.norm(offset - np.outer(along, first.normal), axis=1)
    worst = int(sideways.argmax())
    if sideways[worst] <= _POSITION_TOLERANCE_MM:
        return
    angle = np.degrees(np.arctan2(sideways[worst], along[worst]))
    raise GeometryError(
        f"the slices are shifted sideways by up to {sideways[worst]:.2f} mm, as with a gantry tilt of {angle:.1f} "
        f"degrees (expected at most {_POSITION_TOLERANCE_MM} mm).",
        hint="Use a series that was reconstructed without gantry tilt.",
        code="UCSEG-E117",
    )


def _even_step(slices: Sequence[Instance], distances: Float64Array) -> float:
    """Mean distance in mm of neighbouring slices, once they are known to be evenly spaced."""
    steps = np.diff(distances)
    usual = float(np.sort(steps)[(len(steps) - 1) // 2])  # the lower median is a true step even when gaps are many
    tolerance = max(_POSITION_TOLERANCE_MM, _RELATIVE_STEP_TOLERANCE * usual)
    _refuse_gaps(slices, steps, usual, tolerance)
    mean = float((distances[-1] - distances[0]) / len(steps))
    jitter = np.abs(distances - distances[0] - mean * np.arange(len(distances)))
    worst = int(jitter.argmax())
    if jitter[worst] > tolerance:
        raise SpacingError(
            f"the slices are unevenly spaced: steps from {steps.min():.2f} to {steps.max():.2f} mm, and "
            f"{slices[worst].where} lies {jitter[worst]:.2f} mm off the even grid (at most {tolerance:.2f} mm).",
            hint="Export a series with one slice spacing.",
            code="UCSEG-E116",
        )
    return mean


def _refuse_gaps(slices: Sequence[Instance], steps: Float64Array, usual: float, tolerance: float) -> None:
    multiples = np.rint(steps / usual)
    gaps = np.flatnonzero((multiples >= 2) & (np.abs(steps - multiples * usual) <= multiples * tolerance))
    if not gaps.size:
        return
    below, above = int(gaps[0]), int(gaps[0]) + 1
    missing = int(multiples[below]) - 1
    more = f" There are {gaps.size - 1} more such gaps." if gaps.size > 1 else ""
    raise SpacingError(
        f"slices {below + 1} and {above + 1} of {len(slices)}, {slices[below].where} and {slices[above].where}, are "
        f"{steps[below]:.2f} mm apart, the others {usual:.2f} mm; "
        f"{missing} slice{'s seem' if missing > 1 else ' seems'} to be missing.{more}",
        hint=_EXPORT_AGAIN,
    )


def _grid(lowest: Instance, plane: _Plane, origin: Float64Array, step: float, slices: int) -> VolumeGeometry:
    row_spacing, column_spacing = plane.spacing
    affine = np.eye(4)
    affine[:3, 0] = plane.normal * step
    affine[:3, 1] = plane.column * row_spacing
    affine[:3, 2] = plane.row * column_spacing
    affine[:3, 3] = origin
    pixel_format = lowest.pixel_format
    if min(pixel_format.rows, pixel_format.columns) < 1:
        raise GeometryError(
            f"{lowest.where} has {pixel_format.rows} rows and {pixel_format.columns} columns (expected at least 1).",
            hint=_EXPORT_AGAIN,
            code="UCSEG-E107",
        )
    return VolumeGeometry(affine, (slices, pixel_format.rows, pixel_format.columns))
