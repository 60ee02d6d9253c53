"""The case score: 0 inside of all ranges, never better when something gets worse, and a sentence for each finding."""

from __future__ import annotations

import numpy as np
import pytest
from pydantic import ValidationError

from tests.phantoms import CtPhantom
from tests.results import CLASSES, segmentation_of
from ucseg_runtime.case_figures import case_figures
from ucseg_runtime.case_score import score_case
from ucseg_runtime.decision import BUILT_IN_LIMITS, outcome_of
from ucseg_runtime.segmentation import measure, ready_to_write
from ucseg_runtime.training_ranges import TrainingRanges, ranges_over
from ucseg_runtime.volume import Volume

FIGURES = {
    "slice_spacing_mm": 2.5,
    "slices": 100.0,
    "air": 0.4,
    "hu_p50": 40.0,
    "noise_hu": 10.0,
    "found": 2.0,
    "present/1": 1.0,
    "present/2": 1.0,
    "volume_ml/1": 1000.0,
    "uncertainty/1": 0.1,
    "border_uncertainty/1": 0.2,
    "subnet_dice/1": 0.9,
    "left_mm/1-2": -60.0,
}
RANGES = ranges_over([FIGURES])

STEPS = {
    "slice_spacing_mm": (3.0, 5.0, 10.0),
    "slices": (80.0, 40.0, 5.0),
    "air": (0.5, 0.7, 0.9),
    "hu_p50": (80.0, 200.0, 1000.0),
    "noise_hu": (12.0, 30.0, 200.0),
    "volume_ml/1": (800.0, 300.0, 10.0),
    "uncertainty/1": (0.15, 0.3, 0.8),
    "border_uncertainty/1": (0.25, 0.5, 0.9),
    "subnet_dice/1": (0.85, 0.5, 0.0),
    "left_mm/1-2": (-40.0, 10.0, 60.0),
}


def test_figures_of_a_training_case_are_sure() -> None:
    scored = score_case(FIGURES, RANGES, CLASSES)

    assert (scored.score, scored.findings) == (0.0, ())


@pytest.mark.parametrize("key", STEPS)
def test_the_score_rises_with_every_step_out_of_a_range(key: str) -> None:
    scores = [score_case({**FIGURES, key: value}, RANGES, CLASSES).score for value in (FIGURES[key], *STEPS[key])]

    assert scores == sorted(set(scores)), "each step is strictly worse"
    assert scores[-1] >= 0.75


@pytest.mark.parametrize("key", ["noise_hu", "uncertainty/1", "border_uncertainty/1"])
def test_less_noise_and_uncertainty_than_in_training_is_nothing_wrong(key: str) -> None:
    assert score_case({**FIGURES, key: 0.0}, RANGES, CLASSES).score == 0.0


def test_more_agreement_than_in_training_is_nothing_wrong() -> None:
    assert score_case({**FIGURES, "subnet_dice/1": 1.0}, RANGES, CLASSES).score == 0.0


def test_every_unit_is_one_half() -> None:
    for key, value in (("hu_p50", 140.0), ("volume_ml/1", 500.0), ("volume_ml/1", 2000.0), ("left_mm/1-2", -10.0)):
        assert score_case({**FIGURES, key: value}, RANGES, CLASSES).score == pytest.approx(0.5)


def test_groups_add_up_and_checks_of_one_group_do_not() -> None:
    one = score_case({**FIGURES, "hu_p50": 140.0}, RANGES, CLASSES).score
    same_group = score_case({**FIGURES, "hu_p50": 140.0, "air": 0.5}, RANGES, CLASSES).score
    other_group = score_case({**FIGURES, "hu_p50": 140.0, "volume_ml/1": 500.0}, RANGES, CLASSES).score

    assert same_group == one
    assert other_group == pytest.approx(0.75)


def test_random_worsening_never_lowers_the_score() -> None:
    generator = np.random.default_rng(7)
    for _ in range(200):
        figures, last = dict(FIGURES), 0.0
        for _ in range(6):
            key = str(generator.choice(list(STEPS)))
            outwards = 1.0 if STEPS[key][0] > FIGURES[key] else -1.0
            if key in ("volume_ml/1", "slices"):
                figures[key] *= float(generator.uniform(0.5, 1.0))
            else:
                figures[key] += outwards * float(generator.uniform(0.0, 0.3)) * abs(FIGURES[key])
            score = score_case(figures, RANGES, CLASSES).score
            assert 0.0 <= last <= score < 1.0
            last = score


def test_each_expected_class_that_is_missing_makes_it_worse() -> None:
    one = score_case({**FIGURES, "present/1": 0.0, "found": 1.0}, RANGES, CLASSES)
    both = score_case({**FIGURES, "present/1": 0.0, "present/2": 0.0, "found": 0.0}, RANGES, CLASSES)

    assert one.score == pytest.approx(0.5)
    assert both.score == pytest.approx(0.8)
    assert [finding.text for finding in one.findings] == ["Not found: liver; every training case has it."]
    assert [finding.text for finding in both.findings] == ["Not found: liver, spleen; every training case has them."]


def test_the_score_does_not_fall_when_more_is_missing() -> None:
    """One expected class is missing, and before it more of the others than ever in training."""
    ranges = TrainingRanges(cases=2, figures={"found": (4.0, 5.0), "present/1": (1.0, 1.0), "present/2": (0.0, 1.0)})
    few = score_case({"found": 1.0, "present/1": 1.0, "present/2": 0.0}, ranges, CLASSES)
    none = score_case({"found": 0.0, "present/1": 0.0, "present/2": 0.0}, ranges, CLASSES)

    assert few.score == pytest.approx(0.9)
    assert none.score > few.score


def test_an_empty_result_is_never_accepted() -> None:
    for ranges in (None, TrainingRanges(cases=1, figures={"present/1": (1.0, 1.0)})):
        scored = score_case({"found": 0.0, "present/1": 0.0, "present/2": 0.0}, ranges, CLASSES)
        assert outcome_of(scored.score, BUILT_IN_LIMITS) == "review"


def test_a_class_that_some_training_cases_lack_is_not_expected() -> None:
    ranges = ranges_over([FIGURES, {**FIGURES, "present/2": 0.0, "found": 1.0}])

    assert score_case({**FIGURES, "present/2": 0.0, "found": 1.0}, ranges, CLASSES).score == 0.0


def test_findings_name_classes_value_and_range_the_worst_first() -> None:
    figures = {**FIGURES, "volume_ml/1": 3000.0, "left_mm/1-2": 55.0, "hu_p50": 50.0}

    found = score_case(figures, RANGES, CLASSES).findings

    assert [(finding.check, finding.limit) for finding in found] == [
        ("left_mm/liver-spleen", -60.0),
        ("volume_ml/liver", 1000.0),
        ("hu_p50", 40.0),
    ]
    assert [finding.text for finding in found] == [
        "How far liver lies left of spleen is 55 mm; in training -60 to -60 mm.",
        "The volume of liver is 3000.0 ml; in training 1000.0 to 1000.0 ml.",
        "The median of all but air is 50 HU; in training 40 to 40 HU.",
    ]


def test_every_figure_that_is_measured_can_be_scored() -> None:
    phantom = CtPhantom(shape=(16, 18, 20), spacing_mm=(12.0, 12.0, 12.0))
    segmentation = segmentation_of(phantom)
    figures = case_figures(
        Volume(phantom.hu, phantom.geometry, "CT"), ready_to_write(segmentation), measure(segmentation)
    )
    far_out = {key: 1000.0 * value + 1000.0 for key, value in figures.items()}

    found = score_case(far_out, ranges_over([figures]), CLASSES).findings

    silent = {key for key in figures if key.startswith("present")} | {"found"}
    assert len(found) == len(set(figures) - silent)


def test_without_ranges_uncertainty_agreement_and_presence_are_checked_alone() -> None:
    wrong = {**FIGURES, "hu_p50": 3000.0, "volume_ml/1": 1.0, "left_mm/1-2": 500.0}

    assert score_case(wrong, None, CLASSES).score == 0.0
    for key, value in (("uncertainty/1", 0.5), ("border_uncertainty/1", 0.7), ("subnet_dice/1", 0.2), ("found", 0.0)):
        assert score_case({**FIGURES, key: value}, None, CLASSES).score >= 0.5


def test_ranges_hold_the_least_and_the_greatest_of_each_figure() -> None:
    ranges = ranges_over([{"slices": 3.0, "air": 0.1}, {"slices": 1.0}, {"slices": 2.0}])

    assert ranges == TrainingRanges(cases=3, figures={"air": (0.1, 0.1), "slices": (1.0, 3.0)})


def test_ranges_the_wrong_way_round_are_refused() -> None:
    with pytest.raises(ValidationError, match="the least value of slices is above its greatest"):
        TrainingRanges(cases=1, figures={"slices": (3.0, 1.0)})


def test_figures_of_later_versions_are_left_alone() -> None:
    ranges = TrainingRanges(cases=1, figures={**RANGES.figures, "colour": (0.0, 1.0)})

    assert score_case(FIGURES, ranges, CLASSES).score == 0.0
