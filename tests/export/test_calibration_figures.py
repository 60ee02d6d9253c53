"""Figures from counts per level: against scikit-learn, SciPy, slow loops and hand-computed cases."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import spearmanr
from sklearn.metrics import average_precision_score, roc_auc_score

from tests.phantoms import CtPhantom
from tests.results import segmentation_of
from ucseg_export.calibration import figures
from ucseg_export.calibration.bootstrap import RESAMPLING, estimate, resample_patients, weighted_mean
from ucseg_export.calibration.counts import (
    UNCERTAINTY_LEVELS,
    CaseCounts,
    VolumeObservation,
    calibration_region,
    count_case,
)
from ucseg_export.calibration.intervals import conformal_factor, fitted_intervals
from ucseg_export.calibration.scores import AcceptedRisk, case_figures, risk_coverage, score_limits
from ucseg_runtime.manifest import SegmentClass
from ucseg_runtime.segmentation import measure
from ucseg_training.calibration import expected_calibration_error
from ucseg_training.data.case import Case

LEVELS = 256


@pytest.fixture
def voxels() -> tuple[np.ndarray, np.ndarray]:
    """Levels of 5000 voxels, many of them tied, and whether each is wrong: the more uncertain, the more often."""
    generator = np.random.default_rng(7)
    levels = generator.integers(0, LEVELS, 5000) // 3 * 3
    return levels, generator.random(5000) < 0.1 + 0.6 * levels / LEVELS


def pair(levels: np.ndarray, wrong: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Counts of right and wrong voxels per level."""
    right, bad = (np.bincount(levels[chosen], minlength=LEVELS).astype(float) for chosen in (~wrong, wrong))
    return right, bad


def test_error_detection_agrees_with_scikit_learn(voxels: tuple[np.ndarray, np.ndarray]) -> None:
    levels, wrong = voxels
    counts = pair(levels, wrong)
    assert figures.error_auroc(*counts) == pytest.approx(roc_auc_score(wrong, levels), abs=1e-12)
    assert figures.error_aupr(*counts) == pytest.approx(average_precision_score(wrong, levels), abs=1e-12)
    assert figures.error_rate(*counts) == pytest.approx(wrong.mean())


def test_calibration_error_agrees_with_that_of_single_voxels(voxels: tuple[np.ndarray, np.ndarray]) -> None:
    levels, wrong = voxels
    expected = expected_calibration_error((levels / 255).astype(np.float32), ~wrong)
    assert figures.calibration_error(*pair(levels, wrong)) == pytest.approx(expected, abs=1e-6)


def test_calibration_error_by_hand() -> None:
    hits, misses = np.zeros(256), np.zeros(256)
    hits[255], misses[255] = 9, 1  # sure of ten, right about nine
    hits[51], misses[51] = 2, 8  # a probability of 0.2, right about two of ten
    assert figures.calibration_error(hits, misses) == pytest.approx((10 * 0.1 + 10 * 0.0) / 20)


def test_aurc_is_the_mean_risk_over_all_coverages() -> None:
    generator = np.random.default_rng(1)
    wrong = generator.random(LEVELS) < 0.3  # one voxel on each level, the most certain first
    risks = [wrong[: kept + 1].mean() for kept in range(LEVELS)]
    assert figures.aurc(*pair(np.arange(LEVELS), wrong)) == pytest.approx(np.mean(risks))


def test_sparsification_leaves_out_the_most_uncertain(voxels: tuple[np.ndarray, np.ndarray]) -> None:
    levels, wrong = voxels
    counts = pair(levels, wrong)
    order = np.argsort(levels, kind="stable")
    found = figures.sparsification(*counts, (0.0, 0.5, 0.9))
    slow = [wrong[order[: round(len(levels) * kept)]].mean() for kept in (1.0, 0.5, 0.1)]
    assert found == pytest.approx(slow, abs=0.01)  # within a level the slow one leaves out whoever comes last
    assert figures.sparsification(np.array([2.0, 2.0]), np.array([0.0, 4.0]), (0.0, 0.25, 0.75)) == pytest.approx(
        [4 / 8, (4 * 4 / 6) / 6, 0.0]
    )


def test_figures_without_voxels_or_without_errors_are_not_defined() -> None:
    nothing, some = np.zeros(LEVELS), np.ones(LEVELS)
    for figure in (figures.error_auroc, figures.error_aupr, figures.aurc, figures.calibration_error):
        assert np.isnan(figure(nothing, nothing))
    assert np.isnan(figures.error_auroc(some, nothing))
    assert np.isnan(figures.error_aupr(some, nothing))
    assert np.isnan(figures.sparsification(nothing, nothing, (0.5,))).all()


def test_bootstrap_is_repeatable_and_draws_whole_patients() -> None:
    draws = resample_patients(4)
    np.testing.assert_array_equal(draws, resample_patients(4))
    assert draws.shape == (RESAMPLING.resamples, 4)
    assert set(draws.sum(axis=1)) == {4.0}
    values = np.array([0.1, 0.4, np.nan, 0.7])
    first, again = (estimate(weighted_mean(values), 4) for _ in range(2))
    assert first == again
    assert first.value == pytest.approx(0.4)
    assert first.low is not None
    assert first.high is not None
    assert 0.1 <= first.low < 0.4 < first.high <= 0.7


def test_one_patient_has_no_interval_and_no_patient_no_figure() -> None:
    assert estimate(weighted_mean(np.array([0.5])), 1).model_dump() == {"value": 0.5, "low": None, "high": None}
    assert estimate(weighted_mean(np.array([np.nan, np.nan])), 2).value is None


PHANTOM = CtPhantom()
SEGMENTATION = segmentation_of(PHANTOM)


def labelled(labels: np.ndarray, known: int = 0b11111) -> Case:
    voxels = np.zeros(labels.shape, dtype=np.float32)
    return Case("somebody", voxels, labels, np.full_like(labels, known), PHANTOM.geometry)


def shifted_labels() -> np.ndarray:
    return np.roll(SEGMENTATION.label_map, 2, axis=2)


def test_counts_of_a_case_agree_with_whole_arrays() -> None:
    labels, predicted = shifted_labels(), SEGMENTATION.label_map
    counts = count_case(labelled(labels), SEGMENTATION, measure(SEGMENTATION), 0.5)
    region = calibration_region(predicted, labels, PHANTOM.geometry.spacing_mm)
    wrong = (predicted != labels)[region]
    levels = np.minimum((SEGMENTATION.uncertainty[region] * UNCERTAINTY_LEVELS).astype(int), UNCERTAINTY_LEVELS - 1)
    for which, chosen in enumerate((wrong, ~wrong)):
        np.testing.assert_array_equal(
            counts.uncertainty[which], np.bincount(levels[chosen], minlength=UNCERTAINTY_LEVELS)
        )
    assert SEGMENTATION.probabilities is not None
    for index in range(5):
        mask, truth = predicted == index + 1, labels == index + 1
        assert counts.class_uncertainty[index].sum() == (mask | truth).sum()
        assert counts.class_uncertainty[index][1].sum() == (mask & truth).sum()
        of_class = SEGMENTATION.probabilities[index][region]
        expected = np.bincount(of_class[truth[region]], minlength=256)
        np.testing.assert_array_equal(counts.class_probability[index][1], expected)
        if truth.any():
            assert counts.dice[index] == pytest.approx(2 * (mask & truth).sum() / (mask.sum() + truth.sum()))
        else:
            assert np.isnan(counts.dice[index])
    assert counts.confidence.sum() == region.sum()


def test_region_reaches_as_far_as_it_says() -> None:
    predicted = np.zeros((9, 40, 40), dtype=np.uint8)
    predicted[4, 20, 20] = 1
    found = np.argwhere(calibration_region(predicted, np.zeros_like(predicted), (5.0, 2.5, 1.0)))
    assert found.min(axis=0).tolist() == [2, 16, 10]
    assert found.max(axis=0).tolist() == [6, 24, 30]


def test_voxels_whose_labels_are_incomplete_count_for_their_own_class_alone() -> None:
    counts = count_case(labelled(shifted_labels(), known=0b00001), SEGMENTATION, measure(SEGMENTATION), 0.5)
    assert counts.uncertainty.sum() == counts.confidence.sum() == 0
    assert counts.class_uncertainty[0][1].sum() > 0
    volume = counts.volumes[0]
    assert volume is not None
    assert volume.labelled_ml == pytest.approx((shifted_labels() == 1).sum() * PHANTOM.geometry.voxel_volume_ml)
    assert counts.volumes[1] is None


def case(patient: str, score: float, dice: float, volume: VolumeObservation | None = None) -> CaseCounts:
    nothing = np.zeros((2, 4), dtype=np.int64)
    return CaseCounts(
        patient=patient,
        confidence=nothing,
        uncertainty=nothing,
        class_probability=nothing[None],
        class_uncertainty=nothing[None],
        dice=np.array([dice]),
        volumes=(volume,),
        score=score,
    )


def test_risk_coverage_by_hand() -> None:
    curve = risk_coverage(np.array([0.3, 0.1, 0.3, 0.5]), np.array([0.8, 1.0, 0.6, 0.0]))
    assert [(p.score, p.coverage) for p in curve] == [(0.1, 0.25), (0.3, 0.75), (0.5, 1.0)]
    assert [p.risk for p in curve] == pytest.approx([0.0, 0.2, 0.4])


def test_rank_correlation_agrees_with_scipy_and_patients_are_numbered() -> None:
    scores, dice = [0.1, 0.4, 0.2, 0.5, 0.3], [0.9, 0.6, 0.7, 0.5, 0.8]
    cases = [case(f"patient {index // 2}", *pair) for index, pair in enumerate(zip(scores, dice, strict=True))]
    found = case_figures(cases)
    assert found.spearman.value == pytest.approx(spearmanr(scores, dice).statistic)
    assert [point.patient for point in found.points] == [1, 1, 2, 2, 3]
    assert found.points[4].case == "case 5 of 5"
    assert "patient 0" not in found.model_dump_json()


def ranked(patients: int) -> list[CaseCounts]:
    """The surer, the better: Dice falls from 1.0 by 0.04 from case to case."""
    return [case(str(index), 0.05 * index, 1.0 - 0.04 * index) for index in range(patients)]


def test_score_limits_follow_from_the_accepted_risks() -> None:
    limits, reason = score_limits(case_figures(ranked(15)), AcceptedRisk(accept=0.1, review=0.2))
    assert reason == ""
    assert limits is not None
    # The mean risk up to case k is 0.02 k.
    assert (limits.review, limits.reject) == pytest.approx((0.05 * 5, 0.05 * 10))


@pytest.mark.parametrize(
    ("cases", "reason"),
    [
        pytest.param(ranked(9), "too few patients: 9, and at least 10 are needed.", id="few"),
        pytest.param([case(str(i), 0.5, 0.5) for i in range(12)], "does not tell good cases from bad", id="constant"),
        pytest.param([case(str(i), 0.1 * (i % 4), 0.5 + 0.01 * i) for i in range(12)], "does not tell", id="no order"),
        pytest.param([case(str(i), 0.05 * i, 0.5 - 0.02 * i) for i in range(12)], "even the surest cases", id="bad"),
    ],
)
def test_no_score_limits_without_grounds(cases: list[CaseCounts], reason: str) -> None:
    limits, found = score_limits(case_figures(cases), AcceptedRisk())
    assert limits is None
    assert reason in found


def observed(labelled_ml: float, doubtful_ml: float = 10.0) -> VolumeObservation:
    return VolumeObservation(100.0, labelled_ml, doubtful_ml)


def test_conformal_factor_is_the_ranked_error_of_patients() -> None:
    # Errors of 1, 2 … 19 times the doubtful volume: of 20 with a new one, 0.9 are 18.
    errors = [(str(number), observed(100.0 + 10.0 * number)) for number in range(1, 20)]
    assert conformal_factor(errors) == pytest.approx(18.0)
    assert conformal_factor(errors[:9]) == pytest.approx(9.0)
    assert conformal_factor(errors[:8]) is None
    assert conformal_factor([*errors, ("1", observed(1000.0))]) == pytest.approx(19.0)  # the worst case of a patient
    assert conformal_factor([(str(n), observed(101.0, 0.0)) for n in range(20)]) is None
    assert conformal_factor([(str(n), observed(100.0, 0.0)) for n in range(20)]) == 0.0


def test_conformal_intervals_cover_new_patients_as_often_as_promised() -> None:
    generator = np.random.default_rng(3)

    def patients(number: int) -> list[VolumeObservation]:
        doubt = generator.uniform(1.0, 30.0, number)
        return [observed(100.0 + 0.7 * d * e, d) for d, e in zip(doubt, generator.standard_t(4, number), strict=True)]

    held = []
    for _ in range(200):
        factor = conformal_factor([(str(index), item) for index, item in enumerate(patients(30))])
        assert factor is not None
        held += [abs(item.labelled_ml - item.predicted_ml) <= factor * item.doubtful_ml for item in patients(20)]
    assert 0.88 < np.mean(held) < 0.95  # 28 of 31 are promised; 4000 draws of 200 factors


def class_named(name: str) -> SegmentClass:
    return SegmentClass.model_validate(
        {
            "label": 1,
            "name": name,
            "category": {"value": "1", "scheme": "SCT", "meaning": "x"},
            "type": {"value": "1", "scheme": "SCT", "meaning": "x"},
            "colour_rgb": (1, 2, 3),
        }
    )


def test_factor_is_fitted_with_enough_patients_alone_and_coverage_is_measured_on_held_out_ones() -> None:
    cases = [case(str(index), 0.5, 0.5, observed(100.0 + 10.0 * index)) for index in range(12)]
    (fitted,) = fitted_intervals(cases, [class_named("a")]).classes
    assert fitted.factor == pytest.approx(11.0)  # rank 12 of 12: ceil(13 × 0.9)
    assert (fitted.cases, fitted.patients, fitted.covered_with_factor_1) == (12, 12, 2)
    assert fitted.covered == 11  # all but the one with the largest error
    (few,) = fitted_intervals(cases[:9], [class_named("a")]).classes
    assert (few.factor, few.covered, few.covered_with_factor_1, few.cases) == (None, None, 2, 9)
