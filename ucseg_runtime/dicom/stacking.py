"""From the positions of slices to the grid that they form, or to the reason why there is none."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ucseg_runtime.arrays import Float64Array
from ucseg_runtime.dicom.instances import Instance, Series
from ucseg_runtime.dicom.slice_planes import SlicePlane, plane_of, refuse_other_planes
from ucseg_runtime.dicom.slice_steps import is_tilted, is_uneven, refuse_gaps, refuse_shared_positions
from ucseg_runtime.errors import GeometryError, SpacingError
from ucseg_runtime.geometry import VolumeGeometry
from ucseg_runtime.slice_stack import AcquiredGrid, SliceStack, straight_grid


def acquired_grid(series: Series) -> AcquiredGrid:
    """How the slices of a series lie, after every check that they form one volume.

    The index order is (slice, row, column); slices ascend along the normal, row × column, and voxel (0, 0, 0) is the
    first voxel of the lowest slice. Distances are measured from the positions, never taken from Slice Thickness,
    Spacing Between Slices or the instance numbers.

    Returns:
        A straight grid where the slices lie on one; else a stack: a gantry tilt shifts them sideways, or their steps
        are uneven.

    Raises:
        GeometryError: Positions, orientations or sizes are missing or do not fit together.
        SpacingError: Slices are missing or duplicated, or their steps differ too much.

    Source: DICOM PS3.3 C.7.6.2.1.1.
    """
    return grid_of_slices(series.instances, series.allowed_gaps)


def volume_geometry(series: Series) -> VolumeGeometry:
    """The straight grid that a series is segmented on; see `acquired_grid`."""
    return straight_grid(acquired_grid(series))


def grid_of_slices(instances: Sequence[Instance], allow_gaps: int = 0) -> AcquiredGrid:
    """How slices given in any order lie; see `acquired_grid`.

    Args:
        instances: At least two.
        allow_gaps: Most missing slices in a row that are bridged.
    """
    if len(instances) < 2:
        raise GeometryError(
            f"the series has {len(instances)} slice; a volume needs at least 2.",
            hint="Choose a series with a whole volume.",
            code="UCSEG-E121",
        )
    _refuse_shared_identifiers(instances)
    _refuse_localizers(instances)
    planes = [plane_of(instance) for instance in instances]
    refuse_other_planes(instances, planes)
    _refuse_no_pixels(instances[0])
    first = planes[0]
    distances = np.array([plane.position @ first.normal for plane in planes])
    order = np.argsort(distances, kind="stable")
    slices = [instances[index] for index in order]
    positions = np.stack([planes[index].position for index in order])
    distances = distances[order]
    refuse_shared_positions(slices, distances)
    tilted = is_tilted(slices, positions, first)
    refuse_gaps(slices, distances, allow_gaps)
    if tilted or is_uneven(distances):
        return _stack(slices, first, positions)
    return _grid(slices, first, positions)


def sorted_along_normal(instances: Sequence[Instance]) -> tuple[Instance, ...]:
    """Instances ascending along row × column of the first one that has a plane; others by instance number.

    The order depends on the content alone, not on names or on the order of the files.
    """
    by_identity = sorted(instances, key=lambda item: (item.instance_number or 0, item.sop_instance_uid, item.frame))
    try:
        planes = {id(instance): plane_of(instance) for instance in by_identity}
    except GeometryError:
        return tuple(by_identity)
    normal = planes[id(by_identity[0])].normal
    return tuple(sorted(by_identity, key=lambda item: float(planes[id(item)].position @ normal)))


def _refuse_shared_identifiers(instances: Sequence[Instance]) -> None:
    seen: dict[tuple[str, int], Instance] = {}
    for instance in instances:
        other = seen.setdefault((instance.sop_instance_uid, instance.frame), instance)
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


def _refuse_no_pixels(instance: Instance) -> None:
    pixel_format = instance.pixel_format
    if min(pixel_format.rows, pixel_format.columns) < 1:
        raise GeometryError(
            f"{instance.where} has {pixel_format.rows} rows and {pixel_format.columns} columns (expected at least 1).",
            hint="Export the series again.",
            code="UCSEG-E107",
        )


def _grid(slices: Sequence[Instance], plane: SlicePlane, positions: Float64Array) -> VolumeGeometry:
    row_spacing, column_spacing = plane.spacing
    span = float((positions[-1] - positions[0]) @ plane.normal)
    affine = np.eye(4)
    affine[:3, 0] = plane.normal * (span / (len(slices) - 1))
    affine[:3, 1] = plane.column * row_spacing
    affine[:3, 2] = plane.row * column_spacing
    affine[:3, 3] = positions[0]
    return VolumeGeometry(affine, _shape(slices))


def _stack(slices: Sequence[Instance], plane: SlicePlane, positions: Float64Array) -> SliceStack:
    return SliceStack(positions, plane.row, plane.column, plane.spacing, _shape(slices))


def _shape(slices: Sequence[Instance]) -> tuple[int, int, int]:
    pixel_format = slices[0].pixel_format
    return len(slices), pixel_format.rows, pixel_format.columns
