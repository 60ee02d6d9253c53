"""The plane of each slice, and whether all planes are those of one volume."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from ucseg_runtime.arrays import Float64Array
from ucseg_runtime.dicom.instances import Instance
from ucseg_runtime.errors import GeometryError

_COSINE_TOLERANCE = 1e-3
_SPACING_TOLERANCE_MM = 1e-3

_Value = TypeVar("_Value")


@dataclass(frozen=True, eq=False)
class SlicePlane:
    """A slice in space.

    Attributes:
        position: LPS centre of the first voxel in mm, float64, shape (3,).
        row: Unit vector along a row, float64, shape (3,).
        column: Unit vector along a column.
        spacing: Distance of rows, then of columns, in mm.
    """

    position: Float64Array
    row: Float64Array
    column: Float64Array
    spacing: tuple[float, float]

    @property
    def normal(self) -> Float64Array:
        """Unit vector row × column."""
        normal: Float64Array = np.cross(self.row, self.column)
        return normal / np.linalg.norm(normal)


def plane_of(instance: Instance) -> SlicePlane:
    """Where a slice lies.

    Raises:
        GeometryError: Position, orientation or spacing is missing or impossible.
    """
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
    return SlicePlane(np.array(position), row / row_length, column / column_length, spacing)


def _present(value: _Value | None, name: str, instance: Instance) -> _Value:
    if value is None:
        raise _unplaced(instance, f"has no {name}, or one that is incomplete or not finite")
    return value


def _unplaced(instance: Instance, reason: str) -> GeometryError:
    return GeometryError(f"{instance.where} {reason}.", hint="Export the series again.", code="UCSEG-E118")


def refuse_other_planes(instances: Sequence[Instance], planes: Sequence[SlicePlane]) -> None:
    """Check that all slices are parallel, equally turned, and of one format.

    Args:
        instances: The slices.
        planes: Of each of them.

    Raises:
        GeometryError: One differs from the first.
    """
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
