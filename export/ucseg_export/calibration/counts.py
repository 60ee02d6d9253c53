"""What is counted of one case: voxels by confidence, by uncertainty and by label, and its volumes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from ucseg_runtime.arrays import BoolArray, Float64Array, Int64Array, UInt8Array
from ucseg_runtime.segmentation import Segmentation, SegmentMeasurement
from ucseg_runtime.volume_interval import doubtful_volumes_ml
from ucseg_training.data.case import Case, bit

REGION_MM = 10.0
REGION = (
    f"voxels at most {REGION_MM:g} mm along each axis from a voxel that the prediction or the labels give to a class, "
    "where the labels say whether it is there; all classes together of cases whose labels are complete"
)
"""Air, table and tissue far from every class are nearly always right and sure; how much of them a scan holds depends on
its field of view, and would decide every figure."""

CONFIDENCE_LEVELS = 256
"""Probabilities on the source grid have steps of 1 / 255."""

UNCERTAINTY_LEVELS = 1024

_WRONG, _RIGHT = 0, 1


@dataclass(frozen=True, eq=False)
class VolumeObservation:
    """Volume of one class in a case whose labels are complete for it.

    Attributes:
        predicted_ml: Found.
        labelled_ml: By the labels.
        doubtful_ml: See `doubtful_volumes_ml`.
    """

    predicted_ml: float
    labelled_ml: float
    doubtful_ml: float


@dataclass(frozen=True, eq=False)
class CaseCounts:
    """One case. Pairs are (wrong, right), or (another class, the class) where a class is told from the others.

    Attributes:
        patient: Who it is of; part of no output.
        confidence: int64, shape (2, CONFIDENCE_LEVELS): region, by the probability of the decided class; 0 where the
            labels of the case are partial.
        uncertainty: int64, shape (2, UNCERTAINTY_LEVELS): region, by uncertainty; 0 where the labels are partial.
        class_probability: int64, shape (classes, 2, CONFIDENCE_LEVELS): region where the class is decided, by its
            probability.
        class_uncertainty: int64, shape (classes, 2, UNCERTAINTY_LEVELS): voxels that prediction or labels give to the
            class, by uncertainty.
        dice: float64, shape (classes,); NaN where the labels do not show the class.
        volumes: One per class; None where the labels are not complete for it, or where it is nowhere.
        score: Case score, 0 = sure … 1 = not at all.
    """

    patient: str
    confidence: Int64Array
    uncertainty: Int64Array
    class_probability: Int64Array
    class_uncertainty: Int64Array
    dice: Float64Array
    volumes: tuple[VolumeObservation | None, ...]
    score: float

    @property
    def mean_dice(self) -> float:
        """Over the classes that the labels show; NaN where they show none."""
        shown = self.dice[~np.isnan(self.dice)]
        return float(shown.mean()) if len(shown) else float("nan")


def count_case(
    case: Case, segmentation: Segmentation, measurements: tuple[SegmentMeasurement, ...], score: float
) -> CaseCounts:
    """Count one case.

    Args:
        case: With labels, which may be partial.
        segmentation: Of its voxels, on its grid, with probabilities.
        measurements: Of the segmentation.
        score: Of the case.
    """
    region = calibration_region(segmentation.label_map, case.label_map, case.geometry.spacing_mm)
    counter = _Counter(len(segmentation.classes), complete=has_complete_labels(case, len(segmentation.classes)))
    assert segmentation.probabilities is not None  # noqa: S101  (calibration asks for them)
    for z in range(len(region)):
        counter.add(
            region[z],
            segmentation.label_map[z],
            np.minimum(segmentation.uncertainty[z] * UNCERTAINTY_LEVELS, UNCERTAINTY_LEVELS - 1).astype(np.int64),
            segmentation.probabilities[:, z],
            case.label_map[z],
            case.known[z],
        )
    return CaseCounts(
        patient=case.name,
        confidence=counter.confidence,
        uncertainty=counter.uncertainty,
        class_probability=counter.class_probability,
        class_uncertainty=counter.class_uncertainty,
        dice=counter.dice(),
        volumes=_volumes(case, segmentation, measurements),
        score=score,
    )


def calibration_region(
    predicted: UInt8Array, labelled: UInt8Array, spacing_mm: tuple[float, float, float]
) -> BoolArray:
    """Voxels in a box of `REGION_MM` each way around a voxel of any class, bool, shape (z, y, x).

    Args:
        predicted: uint8, shape (z, y, x); 0 is background.
        labelled: The same by the labels.
        spacing_mm: Along (z, y, x).
    """
    marked = (predicted != 0) | (labelled != 0)
    size = [1 + 2 * round(REGION_MM / spacing) for spacing in spacing_mm]
    near = ndimage.maximum_filter(marked.view(np.uint8), size=size, mode="constant")
    return near.view(np.bool_)


def has_complete_labels(case: Case, classes: int) -> bool:
    """Whether the labels say of every class and every voxel whether it is there.

    Of partial labels no fair share can be taken: what is known of all classes may be air alone.
    """
    every = np.uint8((1 << classes) - 1)
    return bool(((case.known & every) == every).all())


class _Counter:
    """Sums over the slices of one case."""

    def __init__(self, classes: int, *, complete: bool) -> None:
        self._complete = complete
        self.confidence = np.zeros((2, CONFIDENCE_LEVELS), dtype=np.int64)
        self.uncertainty = np.zeros((2, UNCERTAINTY_LEVELS), dtype=np.int64)
        self.class_probability = np.zeros((classes, 2, CONFIDENCE_LEVELS), dtype=np.int64)
        self.class_uncertainty = np.zeros((classes, 2, UNCERTAINTY_LEVELS), dtype=np.int64)
        self._both, self._either = np.zeros(classes), np.zeros(classes)
        self._labelled = np.zeros(classes, dtype=np.int64)

    def add(
        self,
        region: BoolArray,
        predicted: UInt8Array,
        uncertainty: Int64Array,
        probabilities: UInt8Array,
        labelled: UInt8Array,
        known: UInt8Array,
    ) -> None:
        """Count one slice; all arrays have shape (y, x), the probabilities (classes, y, x), uncertainty is levels."""
        classes = len(self.class_probability)
        if self._complete:
            right = predicted[region] == labelled[region]
            _add(self.uncertainty, right, uncertainty[region])
            _add(self.confidence, right, _confidence(probabilities[:, region], predicted[region]))
        for index in range(classes):
            label = index + 1
            decided = ((known & bit(label)) != 0) | (labelled == label)
            inside = region & decided
            _add(self.class_probability[index], labelled[inside] == label, probabilities[index][inside])
            self._count_class(index, (predicted == label) & decided, labelled == label, uncertainty)

    def _count_class(self, index: int, predicted: BoolArray, labelled: BoolArray, uncertainty: Int64Array) -> None:
        either = predicted | labelled
        both = predicted & labelled
        _add(self.class_uncertainty[index], both[either], uncertainty[either])
        self._both[index] += both.sum()
        self._either[index] += predicted.sum() + labelled.sum()
        self._labelled[index] += labelled.sum()

    def dice(self) -> Float64Array:
        """Of every class; NaN where the labels do not show it."""
        dice: Float64Array = np.full(len(self._either), np.nan)
        np.divide(2 * self._both, self._either, out=dice, where=self._labelled > 0)
        return dice


def _add(pair: Int64Array, right: BoolArray, levels: UInt8Array | Int64Array) -> None:
    for which, chosen in ((_WRONG, ~right), (_RIGHT, right)):
        pair[which] += np.bincount(levels[chosen], minlength=pair.shape[1])


def _confidence(foreground: UInt8Array, predicted: UInt8Array) -> UInt8Array:
    """Probability × 255 of the decided class, uint8, shape (voxels,)."""
    total = np.minimum(foreground.sum(axis=0, dtype=np.int64), 255)
    every = np.concatenate([(255 - total).astype(np.uint8)[None], foreground])
    confidence: UInt8Array = np.take_along_axis(every, predicted[None].astype(np.intp), axis=0)[0]
    return confidence


def _volumes(
    case: Case, segmentation: Segmentation, measurements: tuple[SegmentMeasurement, ...]
) -> tuple[VolumeObservation | None, ...]:
    doubtful = doubtful_volumes_ml(measurements, segmentation)
    found: list[VolumeObservation | None] = []
    for item, doubt in zip(measurements, doubtful, strict=True):
        labelled = case.label_map == item.label
        complete = bool((((case.known & bit(item.label)) != 0) | (case.label_map != 0)).all())
        labelled_ml = int(labelled.sum()) * case.geometry.voxel_volume_ml
        shown = complete and (item.voxels > 0 or labelled_ml > 0.0)
        found.append(VolumeObservation(item.volume_ml, labelled_ml, doubt) if shown else None)
    return tuple(found)
