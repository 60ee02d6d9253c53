"""The interval that goes with each segment's volume, from labels and uncertainty alone.

The *doubtful volume* of a segment is its volume times its mean uncertainty: what would be wrong of it if the
uncertainty were the share of wrong voxels. The interval is the volume ± a factor times the doubtful volume, so it costs
nothing, needs no probabilities, and is the same for results of a server. The factor of a class comes from the model's
calibration; without one it is 1, nothing is promised, and the interval counts as uncalibrated.

A segment that was not found has no uncertainty of its own. There the doubt is that of the background voxels that may be
anything: those in which more is unknown than believed, an uncertainty of at least one half.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from ucseg_runtime.arrays import Float32Array, UInt8Array
from ucseg_runtime.calibration import Calibration
from ucseg_runtime.segmentation import UNCERTAINTY_SCALE, Segmentation, SegmentMeasurement
from ucseg_runtime.slice_stack import straight_grid

METHOD = (
    "volume ± factor × doubtful volume; doubtful volume = volume × mean uncertainty of the segment, for a segment that "
    "was not found the uncertainty summed over background voxels with an uncertainty of at least 0.5"
)

UNCALIBRATED_FACTOR = 1.0

_MORE_UNKNOWN_THAN_BELIEVED = 0.5
"""Belief in all classes together is 1 − uncertainty, so from here on the unknown outweighs all that is believed."""


def with_volume_intervals(
    measurements: Sequence[SegmentMeasurement], segmentation: Segmentation, calibration: Calibration | None
) -> tuple[SegmentMeasurement, ...]:
    """The same measurements with an interval for each volume.

    Args:
        measurements: Of the segmentation, one per class.
        segmentation: On the grid that was measured.
        calibration: Of the model; None where it has none.
    """
    doubtful = doubtful_volumes_ml(measurements, segmentation)
    found = [calibration.interval_of(item.label) if calibration else None for item in measurements]
    factors = [item.factor if item else None for item in found]
    return tuple(
        replace(
            item,
            volume_interval_ml=volume_interval_ml(item.volume_ml, doubt, factor),
            volume_interval_coverage=None
            if factor is None or calibration is None
            else calibration.volume_intervals.level,
        )
        for item, doubt, factor in zip(measurements, doubtful, factors, strict=True)
    )


def volume_interval_ml(volume_ml: float, doubtful_ml: float, factor: float | None) -> tuple[float, float]:
    """Ends of the interval in ml; it holds the volume, and its lower end is not below 0.

    Args:
        volume_ml: Volume of the segment.
        doubtful_ml: See `doubtful_volumes_ml`.
        factor: From the calibration; None: 1.
    """
    half = doubtful_ml * (UNCALIBRATED_FACTOR if factor is None else factor)
    return max(0.0, volume_ml - half), volume_ml + half


def doubtful_volumes_ml(measurements: Sequence[SegmentMeasurement], segmentation: Segmentation) -> tuple[float, ...]:
    """Doubtful volume of each segment in ml, in the order of the measurements.

    Args:
        measurements: Of the segmentation.
        segmentation: Its uncertainty is read only where a segment was not found.
    """
    if all(item.voxels for item in measurements):
        in_background = 0.0
    else:
        in_background = _doubt_in_background(segmentation) * straight_grid(segmentation.geometry).voxel_volume_ml
    return tuple(item.volume_ml * item.mean_uncertainty if item.voxels else in_background for item in measurements)


def _doubt_in_background(segmentation: Segmentation) -> float:
    """Uncertainty summed over the background voxels that may be anything."""
    stored = segmentation.uncertainty.dtype == np.uint16
    scale = 1.0 / UNCERTAINTY_SCALE if stored else 1.0
    least = _MORE_UNKNOWN_THAN_BELIEVED / scale
    # Slice by slice: the masks of a whole volume would be as large as its labels.
    pairs = zip(segmentation.label_map, segmentation.uncertainty, strict=True)
    return scale * sum(_sum_above(labels, uncertainty, least) for labels, uncertainty in pairs)


def _sum_above(labels: UInt8Array, uncertainty: Float32Array, least: float) -> float:
    doubtful = uncertainty >= least
    if not doubtful.any():
        return 0.0
    return float(uncertainty[doubtful & (labels == 0)].sum(dtype=np.float64))
