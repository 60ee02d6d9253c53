"""What segmenting one volume yields, on the source grid, and what is measured from it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import cast

import numpy as np

from ucseg_runtime.arrays import Float32Array, Int64Array, UInt8Array, UInt16Array
from ucseg_runtime.diameter import largest_diameter_mm
from ucseg_runtime.errors import SegWriteError
from ucseg_runtime.manifest import SegmentClass
from ucseg_runtime.slice_stack import AcquiredGrid, SliceStack, straight_grid

UNCERTAINTY_SCALE = 65535
"""Stored value of an uncertainty of 1."""


@dataclass(frozen=True)
class EngineInfo:
    """What computed a result; part of the identity of every output.

    Attributes:
        name: ``openvino``, ``onnxruntime`` …
        version: Version of the engine's package; behind a ``+`` the first digits of the digest of an engine that was
            built on site.
        precision: Arithmetic that was really used, such as ``f32`` or ``int8``.
        device: Kind of processor, such as ``CPU`` or ``GPU sm86``.
        proven: Whether it passed the accuracy gate for this model.
    """

    name: str
    version: str
    precision: str
    device: str
    proven: bool = False


@dataclass(frozen=True)
class ClassAgreement:
    """How far subnet A and subnet B agree on one class; see `subnet_agreement` for what is counted.

    Attributes:
        label: Value in the label map.
        name: Name of the class.
        voxels_a: Voxels of the model grid to which subnet A gives the label.
        voxels_b: The same of subnet B.
        voxels_both: Those to which both give it.
    """

    label: int
    name: str
    voxels_a: int
    voxels_b: int
    voxels_both: int

    @property
    def dice(self) -> float:
        """2 |A ∩ B| / (|A| + |B|), in [0, 1]; NaN where neither subnet finds the class."""
        either = self.voxels_a + self.voxels_b
        return 2 * self.voxels_both / either if either else float("nan")


@dataclass(frozen=True, eq=False)
class Segmentation:
    """Labels and uncertainty of one volume on its source grid.

    Attributes:
        label_map: uint8, shape (z, y, x); 0 is background, others as in `classes`.
        uncertainty: float32, shape (z, y, x), in [0, 1]; 1 = no evidence. Not calibrated. Or uint16, that × 65535, once
            writing is all that is left to do: see `ready_to_write`.
        probabilities: uint8, shape (foreground classes, z, y, x), probability × 255 in the order of `classes`; None
            unless asked for.
        geometry: Source grid; a stack where slices are tilted or unevenly spaced, see `on_slices`.
        classes: Foreground classes of the model.
        engine: What computed it.
        agreement: Of the two subnets, one for each of `classes`; empty unless asked for.
    """

    label_map: UInt8Array
    uncertainty: Float32Array | UInt16Array
    probabilities: UInt8Array | None
    geometry: AcquiredGrid
    classes: tuple[SegmentClass, ...]
    engine: EngineInfo
    agreement: tuple[ClassAgreement, ...] = ()


def stored_uncertainty(uncertainty: Float32Array | UInt16Array) -> UInt16Array:
    """Uncertainty × 65535, rounded: uint16, same shape, error at most 1 / 131070.

    Args:
        uncertainty: float32, shape (z, y, x), in [0, 1]; uint16 is what was stored before, and is returned as it is.

    Raises:
        SegWriteError: A value is not finite or outside [0, 1].
    """
    if uncertainty.dtype == np.uint16:
        return cast(UInt16Array, uncertainty)
    stored = np.empty(uncertainty.shape, dtype=np.uint16)
    for number, (plane, target) in enumerate(zip(uncertainty, stored, strict=True), start=1):
        # The comparison is false for NaN, so one test covers both.
        if not (plane.min() >= 0.0 and plane.max() <= 1.0):
            raise SegWriteError(
                f"the uncertainty of slice {number} of {len(stored)} is not finite or not within [0, 1]"
            )
        target[...] = np.rint(plane * np.float32(UNCERTAINTY_SCALE))
    return stored


def on_slices(segmentation: Segmentation, stack: SliceStack) -> Segmentation:
    """A segmentation of the straight grid of a stack on the slices as they were acquired, ready to be written.

    Labels are those of the nearest voxel; uncertainty and probabilities are linear between voxels.

    Args:
        segmentation: On `SliceStack.straight_grid`, its uncertainty in float32.
        stack: The slices.

    Raises:
        SegWriteError: A value of the uncertainty is not finite or outside [0, 1].
    """
    probabilities = segmentation.probabilities
    if probabilities is not None:
        probabilities = np.stack([stack.linear_on_slices(channel) for channel in probabilities])
    return Segmentation(
        label_map=stack.nearest_on_slices(segmentation.label_map),
        uncertainty=stored_uncertainty(stack.linear_on_slices(cast(Float32Array, segmentation.uncertainty))),
        probabilities=probabilities,
        geometry=stack,
        classes=segmentation.classes,
        engine=segmentation.engine,
        agreement=segmentation.agreement,
    )


def ready_to_write(segmentation: Segmentation) -> Segmentation:
    """The same with the uncertainty in the 16 bits that files have room for, which take half of the memory.

    Raises:
        SegWriteError: A value of the uncertainty is not finite or outside [0, 1].
    """
    return replace(segmentation, uncertainty=stored_uncertainty(segmentation.uncertainty))


@dataclass(frozen=True)
class SegmentMeasurement:
    """Figures of one segment.

    Attributes:
        label: Value in the label map.
        name: Name of the class.
        voxels: Number of voxels.
        volume_ml: Volume in ml.
        mean_uncertainty: Mean uncertainty over the segment, in [0, 1]; NaN for an empty segment.
        uncertainty_p95: The least stored uncertainty (steps of 1 / 65535) that 95 % of the segment's voxels do not
            exceed, in [0, 1]; NaN for an empty segment.
        largest_diameter_mm: See `largest_diameter_mm`; 0 for an empty segment.
        between_subnet_dice: How far subnet A and B agree on the class, see `subnet_agreement`; NaN where that was not
            counted, or where neither found it.
        volume_interval_ml: Lower and upper end of the interval of the volume, see `volume_interval`; None where none
            was made.
        volume_interval_coverage: Share of patients whose true volume the interval is to hold, by the model's
            calibration; None: uncalibrated, nothing is promised.
    """

    label: int
    name: str
    voxels: int
    volume_ml: float
    mean_uncertainty: float
    uncertainty_p95: float
    largest_diameter_mm: float
    between_subnet_dice: float
    volume_interval_ml: tuple[float, float] | None = None
    volume_interval_coverage: float | None = None


def measure(segmentation: Segmentation) -> tuple[SegmentMeasurement, ...]:
    """All figures of every class, in the order of the labels, empty ones included.

    Args:
        segmentation: Its uncertainty in float32: rounded to 16 bits it would have other means. It must have passed
            `stored_uncertainty`.
    """
    assert segmentation.uncertainty.dtype == np.float32  # noqa: S101  (the order of statements in the series pipeline)
    bins = len(segmentation.classes) + 1
    sums, levels = np.zeros(bins), np.zeros((bins, UNCERTAINTY_SCALE + 1), dtype=np.int64)
    # Slice by slice: counting widens labels and weights to 8 bytes each.
    for labels, values in zip(segmentation.label_map, segmentation.uncertainty, strict=True):
        found = labels != 0
        label, uncertainty = labels[found].astype(np.intp), values[found]
        sums += np.bincount(label, weights=uncertainty, minlength=bins)
        stored = np.rint(uncertainty * np.float32(UNCERTAINTY_SCALE)).astype(np.intp)
        np.add.at(levels.reshape(-1), label * levels.shape[1] + stored, 1)
    return tuple(
        _measurement(segmentation, item, float(sums[item.label]), levels[item.label]) for item in segmentation.classes
    )


def _measurement(
    segmentation: Segmentation, item: SegmentClass, uncertainty: float, levels: Int64Array
) -> SegmentMeasurement:
    """Figures of one class from the sum of its uncertainty and how many of its voxels have each stored value."""
    voxels, geometry = int(levels.sum()), straight_grid(segmentation.geometry)
    p95 = np.searchsorted(np.cumsum(levels), np.ceil(0.95 * voxels)) / UNCERTAINTY_SCALE
    return SegmentMeasurement(
        label=item.label,
        name=item.name,
        voxels=voxels,
        volume_ml=voxels * geometry.voxel_volume_ml,
        mean_uncertainty=uncertainty / voxels if voxels else float("nan"),
        uncertainty_p95=float(p95) if voxels else float("nan"),
        largest_diameter_mm=largest_diameter_mm(segmentation.label_map, item.label, geometry),
        between_subnet_dice=next(
            (counted.dice for counted in segmentation.agreement if counted.label == item.label), float("nan")
        ),
    )
