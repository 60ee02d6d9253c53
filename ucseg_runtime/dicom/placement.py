"""Where a slice lies and how its values are rescaled, from a header or a functional group."""

from __future__ import annotations

from pydicom.dataset import Dataset

from ucseg_runtime.dicom.elements import numbers_of
from ucseg_runtime.dicom.instances import Cosines, Placement, Point


def placement_of(dataset: Dataset) -> Placement:
    """Position, orientation and spacing, as far as they are there."""
    position = numbers_of(dataset, "ImagePositionPatient", 3)
    orientation = numbers_of(dataset, "ImageOrientationPatient", 6)
    spacing = numbers_of(dataset, "PixelSpacing", 2)
    placed: Point | None = None if position is None else (position[0], position[1], position[2])
    turned: Cosines | None = None
    if orientation is not None:
        a, b, c, d, e, f = orientation
        turned = (a, b, c, d, e, f)
    return Placement(placed, turned, None if spacing is None else (spacing[0], spacing[1]))


def rescale_of(dataset: Dataset) -> tuple[float, float] | None:
    """Slope and intercept; (1, 0) when both are absent, None when one is missing, zero or no number."""
    if "RescaleSlope" not in dataset and "RescaleIntercept" not in dataset:
        return 1.0, 0.0
    slope, intercept = numbers_of(dataset, "RescaleSlope", 1), numbers_of(dataset, "RescaleIntercept", 1)
    return None if slope is None or intercept is None or slope[0] == 0.0 else (slope[0], intercept[0])
