"""Measure a model on labelled cases: what its probabilities, uncertainty, case scores and volumes are worth."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from ucseg_export.calibration import figures
from ucseg_export.calibration.bootstrap import RESAMPLING, estimate, weighted_mean
from ucseg_export.calibration.counts import REGION, CaseCounts, count_case
from ucseg_export.calibration.fused_logits import LogitSample, LogitSampler
from ucseg_export.calibration.intervals import fitted_intervals
from ucseg_export.calibration.scores import AcceptedRisk, case_figures, score_limits
from ucseg_export.calibration.temperature import judged_temperature
from ucseg_export.calibration.temperature_node import temperature_of
from ucseg_export.files_beside import write_beside_manifest
from ucseg_export.prove import REFERENCE
from ucseg_runtime.arrays import Float64Array, Int64Array
from ucseg_runtime.backends import open_backend
from ucseg_runtime.backends.base import Backend
from ucseg_runtime.calibration import (
    CALIBRATION_NAME,
    FEWEST_PATIENTS,
    Calibration,
    ClassCalibration,
    Estimate,
    VoxelFigures,
)
from ucseg_runtime.case_score import GRID_FIGURES
from ucseg_runtime.config import EngineChoice, InferenceOptions, PrecisionChoice
from ucseg_runtime.decision import scored
from ucseg_runtime.errors import InputError
from ucseg_runtime.manifest import Manifest, SegmentClass
from ucseg_runtime.model_folder import Model
from ucseg_runtime.pipeline import segment_volume
from ucseg_runtime.segmentation import measure, ready_to_write
from ucseg_runtime.version import __version__
from ucseg_runtime.volume import Volume
from ucseg_training.data.case import Case

_Figure = Callable[[Float64Array, Float64Array], Float64Array]

_LEFT_OUT = tuple(round(0.05 * step, 2) for step in range(20))


@dataclass(frozen=True, eq=False)
class _MeasuredCase:
    """What is kept of one case."""

    counts: CaseCounts
    logits: LogitSample


def calibration_options(engine: EngineChoice, precision: PrecisionChoice, device: int = 0) -> InferenceOptions:
    """As engines are proved, but without looking at air, as studies are segmented.

    Without a choice the first engine that is installed computes, in f32.
    """
    return replace(REFERENCE, engine=engine, precision=precision, device=device, skip_air=True)


def calibrate(model: Model, cases: Iterable[Case], options: InferenceOptions, risk: AcceptedRisk) -> Calibration:
    """Segment every case, compare with its labels, and fit what the cases suffice for.

    Args:
        model: Verified model folder.
        cases: With labels of the model's classes, which may be partial. Cases of one name are of one patient.
        options: Engine and precision; probabilities kept. The stages run one by one.
        risk: What is accepted of cases that pass without review, and of those that are not rejected.

    Raises:
        InputError: There are no cases, or no voxel of any class in them.
        BackendError: The engine failed.
    """
    temperature = temperature_of(model.graph("decode"))
    with open_backend(model, options, staged=True) as backend:
        measured = [_measured(case, model.manifest, backend, options, temperature) for case in cases]
        engine = backend.info.engine
    counts = [item.counts for item in measured]
    if not any(item.uncertainty.any() or item.class_uncertainty.any() for item in counts):
        raise InputError("no case shows any class of the model, in its labels or in what the model finds.")
    patients = len({item.patient for item in counts})
    scores = case_figures(counts)
    limits, reason = score_limits(scores, risk)
    return Calibration(
        model_digest=model.digest,
        ucseg_version=__version__,
        engine=f"{engine.name} {engine.version} {engine.precision} {engine.device}, staged",
        cases=len(counts),
        patients=patients,
        too_few=_too_few(patients),
        region=REGION,
        resampling=RESAMPLING,
        all_voxels=_voxel_figures(counts),
        classes=tuple(_class_figures(counts, index, item) for index, item in enumerate(model.manifest.classes)),
        case_scores=scores,
        temperature=judged_temperature([item.logits for item in measured], model.manifest.activation),
        volume_intervals=fitted_intervals(counts, model.manifest.classes),
        score_limits=limits,
        score_limits_reason=reason,
    )


def write_calibration(model: Model, calibration: Calibration) -> None:
    """Put ``calibration.json`` into the model folder, in the place of an older one.

    Raises:
        OutputError: The file cannot be written; the old one is still there.
    """
    write_beside_manifest(model.folder, CALIBRATION_NAME, calibration.as_json())


def require_helpful(calibration: Calibration) -> float:
    """The temperature, where it helps patients that it was not fitted on.

    Raises:
        InputError: It does not, or too few patients were there to see.
    """
    found = calibration.temperature
    if found.value is None:
        raise InputError(
            f"a temperature cannot be judged on held-out patients: {found.patients} with complete labels; "
            "at least 2 are needed.",
            hint="Give cases of more patients, or leave --apply out.",
        )
    if not found.helps:
        raise InputError(
            "a temperature does not help held-out patients: calibration error "
            f"{_change(found.calibration_error, found.calibration_error_after)}, negative log-likelihood "
            f"{_change(found.nll, found.nll_after)}.",
            hint="Use the model as it is.",
        )
    return found.value


def _measured(
    case: Case, spec: Manifest, backend: Backend, options: InferenceOptions, temperature: float
) -> _MeasuredCase:
    volume = Volume(case.voxels, case.geometry, spec.modality)
    sampler = LogitSampler(backend, volume, spec, skip_air=options.skip_air, temperature=temperature)
    segmentation = segment_volume(volume, spec, sampler, options)
    measurements = measure(segmentation)
    # Prepared cases lie on the grid of the model, which says nothing of how they were acquired.
    score = scored(volume, ready_to_write(segmentation), measurements, spec, without=GRID_FIGURES).score
    counts = count_case(case, segmentation, measurements, score)
    return _MeasuredCase(counts, sampler.sample(case, segmentation))


def _too_few(patients: int) -> str:
    if patients >= FEWEST_PATIENTS:
        return ""
    return (
        f"{patients} {'patient' if patients == 1 else 'patients'}, fewer than {FEWEST_PATIENTS}: the figures describe "
        "these cases and say little of others; nothing that decides about other cases was fitted."
    )


def _voxel_figures(counts: Sequence[CaseCounts]) -> VoxelFigures:
    wrong, right = _per_patient(counts, [item.uncertainty for item in counts])
    misses, hits = _per_patient(counts, [item.confidence for item in counts])
    left = figures.sparsification(right.sum(axis=0), wrong.sum(axis=0), _LEFT_OUT)
    return VoxelFigures(
        voxels=int(right.sum() + wrong.sum()),
        error_rate=_estimate(figures.error_rate, right, wrong),
        calibration_error=_estimate(figures.calibration_error, hits, misses),
        error_auroc=_estimate(figures.error_auroc, right, wrong),
        error_aupr=_estimate(figures.error_aupr, right, wrong),
        aurc=_estimate(figures.aurc, right, wrong),
        sparsification=() if np.isnan(left).any() else tuple(float(value) for value in left),
        left_out=_LEFT_OUT,
    )


def _class_figures(counts: Sequence[CaseCounts], index: int, item: SegmentClass) -> ClassCalibration:
    wrong, right = _per_patient(counts, [case.class_uncertainty[index] for case in counts])
    misses, hits = _per_patient(counts, [case.class_probability[index] for case in counts])
    return ClassCalibration(
        name=item.name,
        label=item.label,
        calibration_error=_estimate(figures.calibration_error, hits, misses),
        error_auroc=_estimate(figures.error_auroc, right, wrong),
        error_aupr=_estimate(figures.error_aupr, right, wrong),
        dice=_dice(counts, index),
    )


def _dice(counts: Sequence[CaseCounts], index: int) -> Estimate:
    values: dict[str, list[float]] = {case.patient: [] for case in counts}
    for case in counts:
        if not np.isnan(case.dice[index]):
            values[case.patient].append(float(case.dice[index]))
    means = np.array([np.mean(found) if found else np.nan for found in values.values()])
    return estimate(weighted_mean(means), len(means))


def _per_patient(counts: Sequence[CaseCounts], pairs: Sequence[Int64Array]) -> tuple[Float64Array, Float64Array]:
    """Both of each pair, summed over the cases of a patient: float64, shape (patients, levels) each."""
    sums: dict[str, Float64Array] = {}
    for case, pair in zip(counts, pairs, strict=True):
        sums[case.patient] = sums.get(case.patient, np.zeros(pair.shape)) + pair
    both = np.stack(list(sums.values()), axis=1)
    return both[0], both[1]


def _estimate(figure: _Figure, first: Float64Array, second: Float64Array) -> Estimate:
    def statistic(weights: Float64Array) -> Float64Array:
        return figure(weights @ first, weights @ second)

    return estimate(statistic, len(first))


def _change(before: Estimate, after: Estimate) -> str:
    return f"{before.value:.4f} without, {after.value:.4f} with it"
