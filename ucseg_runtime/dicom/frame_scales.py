"""How large the pixels of a picture are and when its frames were taken, as far as its header says so."""

from __future__ import annotations

import math

import numpy as np
from pydicom.dataset import Dataset

from ucseg_runtime.arrays import Float32Array
from ucseg_runtime.dicom.elements import integer_of, numbers_of, sequence_of, values_of

_TWO_DIMENSIONAL = 1
_CENTIMETRES = 3
_MM2_PER_CM2 = 100.0


def pixel_areas_mm2(header: Dataset, rows: int, columns: int) -> Float32Array:
    """Area of every pixel in mm²: float32, shape (rows, columns), read-only; NaN where it is not known.

    Pixel Spacing counts for all pixels. Without it the calibrated regions of an ultrasound image count for theirs: two
    dimensions, both in cm. Where two regions disagree, the area is not known.

    Source: DICOM PS3.3 10.7.1.3 (Pixel Spacing) and C.8.5.5 (US Region Calibration).
    """
    spacing = numbers_of(header, "PixelSpacing", 2)
    if spacing is not None and min(spacing) > 0.0:
        return np.broadcast_to(np.float32(spacing[0] * spacing[1]), (rows, columns))
    areas = np.full((rows, columns), np.nan, dtype=np.float32)
    calibrated = np.zeros((rows, columns), dtype=bool)
    for region in sequence_of(header, "SequenceOfUltrasoundRegions"):
        area_mm2, box = _area_mm2(region), _box(region)
        if math.isnan(area_mm2) or not calibrated[box].size:
            continue
        agreed = ~calibrated[box] | (areas[box] == np.float32(area_mm2))
        areas[box] = np.where(agreed, np.float32(area_mm2), np.nan)
        calibrated[box] = True
    areas.setflags(write=False)
    return areas


def frame_times_s(header: Dataset, frames: int) -> tuple[float, ...]:
    """Time of every frame of a file since its first one, in s; NaN where the file does not say.

    Source: DICOM PS3.3 C.7.6.5: Frame Time (0018,1063), or Frame Time Vector (0018,1065), whose first value is 0; ms.
    """
    step_ms = numbers_of(header, "FrameTime", 1)
    if step_ms is not None and step_ms[0] > 0.0:
        return tuple(number * step_ms[0] / 1000.0 for number in range(frames))
    steps_ms = numbers_of(header, "FrameTimeVector", frames) if values_of(header, "FrameTimeVector") else None
    if steps_ms is None:
        return (math.nan,) * frames
    return tuple(float(time_ms) / 1000.0 for time_ms in np.cumsum([0.0, *steps_ms[1:]]))


def _area_mm2(region: Dataset) -> float:
    kind = [
        integer_of(region, keyword)
        for keyword in ("RegionSpatialFormat", "PhysicalUnitsXDirection", "PhysicalUnitsYDirection")
    ]
    deltas = numbers_of(region, "PhysicalDeltaX", 1), numbers_of(region, "PhysicalDeltaY", 1)
    if kind != [_TWO_DIMENSIONAL, _CENTIMETRES, _CENTIMETRES] or deltas[0] is None or deltas[1] is None:
        return math.nan
    return abs(deltas[0][0] * deltas[1][0]) * _MM2_PER_CM2 or math.nan


def _box(region: Dataset) -> tuple[slice, slice]:
    """Rows and columns of a region, whose last pixels belong to it; empty where the header does not say."""
    names = ("RegionLocationMinY0", "RegionLocationMaxY1", "RegionLocationMinX0", "RegionLocationMaxX1")
    limits = [integer_of(region, name) for name in names]
    top, bottom, left, right = (-1 if limit is None else limit for limit in limits)
    if min(top, left) < 0:
        return slice(0, 0), slice(0, 0)
    return slice(top, bottom + 1), slice(left, right + 1)
