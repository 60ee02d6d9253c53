"""The factor of each class's volume interval: split conformal prediction with the doubtful volume as the scale.

Source: H. Papadopoulos et al., Normalized nonconformity measures for regression conformal prediction, AIA 2008; V. Vovk
et al., Algorithmic Learning in a Random World, 2005, for the rank: of n patients and a new one that is like them, the
new one's error is among the first k with a chance of at least k / (n + 1).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from ucseg_export.calibration.counts import CaseCounts, VolumeObservation
from ucseg_runtime.calibration import FEWEST_PATIENTS, ClassInterval, VolumeIntervals
from ucseg_runtime.manifest import SegmentClass
from ucseg_runtime.volume_interval import METHOD, UNCALIBRATED_FACTOR, volume_interval_ml

LEVEL = 0.9


def fitted_intervals(counts: Sequence[CaseCounts], classes: Sequence[SegmentClass]) -> VolumeIntervals:
    """Fit the factor of each class that enough patients have; count how often intervals hold the labelled volume."""
    return VolumeIntervals(
        method=METHOD,
        level=LEVEL,
        classes=tuple(_class_interval(counts, index, item) for index, item in enumerate(classes)),
    )


def conformal_factor(observations: Sequence[tuple[str, VolumeObservation]]) -> float | None:
    """The least factor with which intervals hold the labelled volume of a new patient at `LEVEL`.

    Args:
        observations: Patient and volumes. Of several of one patient the worst counts.

    Returns:
        At least 0; None where too few patients are there, or so many of them lie outside any interval that no factor
        is enough.
    """
    worst: dict[str, float] = {}
    for patient, observed in observations:
        worst[patient] = max(needed_factor(observed), worst.get(patient, 0.0))
    rank = math.ceil((len(worst) + 1) * LEVEL - 1e-9)  # 0.9 * 10 is a little more than 9 for some n
    if rank > len(worst):
        return None
    factor = sorted(worst.values())[rank - 1]
    return factor if math.isfinite(factor) else None


def needed_factor(observed: VolumeObservation) -> float:
    """The factor with which the interval just holds the labelled volume; infinite for an error without doubt."""
    error = abs(observed.predicted_ml - observed.labelled_ml)
    if error == 0.0:
        return 0.0
    return error / observed.doubtful_ml if observed.doubtful_ml > 0.0 else math.inf


def _class_interval(counts: Sequence[CaseCounts], index: int, item: SegmentClass) -> ClassInterval:
    pairs = [(case.patient, case.volumes[index]) for case in counts]
    observed = [(patient, volumes) for patient, volumes in pairs if volumes is not None]
    patients = {patient for patient, _ in observed}
    factor = conformal_factor(observed) if len(patients) >= FEWEST_PATIENTS else None
    return ClassInterval(
        name=item.name,
        label=item.label,
        factor=factor,
        cases=len(observed),
        patients=len(patients),
        covered_with_factor_1=sum(_holds(volumes, UNCALIBRATED_FACTOR) for _, volumes in observed),
        covered=None if factor is None else _covered_held_out(observed),
    )


def _covered_held_out(observed: Sequence[tuple[str, VolumeObservation]]) -> int | None:
    """Cases whose labelled volume lies in the interval with the factor fitted on all other patients."""
    covered = 0
    for patient in {patient for patient, _ in observed}:
        factor = conformal_factor([pair for pair in observed if pair[0] != patient])
        if factor is None:
            return None
        covered += sum(_holds(volumes, factor) for other, volumes in observed if other == patient)
    return covered


def _holds(observed: VolumeObservation, factor: float) -> bool:
    low, high = volume_interval_ml(observed.predicted_ml, observed.doubtful_ml, factor)
    return low <= observed.labelled_ml <= high
