"""Summaries against NumPy and by hand; what is undefined is counted and never averaged."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from ucseg_runtime.errors import InputError
from ucseg_training.metrics import MaskScores
from ucseg_training.paper_protocol import VoxelScores
from ucseg_training.scoring import MEAN_OF_CLASSES, ScoreRow, class_means, score_row, summarise

NAN = math.nan


def _rows(values: dict[tuple[str, str], dict[str, float]], output: str = "fused") -> list[ScoreRow]:
    return [ScoreRow(case, segment, output, scores) for (case, segment), scores in values.items()]


def test_mean_and_spread_are_those_of_the_sample() -> None:
    values = [0.91, 0.4, 0.77, 0.63]
    (summary,) = summarise(ScoreRow(f"case {n}", "liver", "fused", {"dice": v}) for n, v in enumerate(values))
    assert (summary.segment, summary.output, summary.score) == ("liver", "fused", "dice")
    assert summary.mean == pytest.approx(np.mean(values))
    assert summary.standard_deviation == pytest.approx(np.std(values, ddof=1))
    assert (summary.count, summary.undefined) == (4, 0)


def test_undefined_scores_are_counted_and_left_out_of_the_mean() -> None:
    rows = _rows(
        {
            ("P", "liver"): {"dice": 0.0, "hd95_mm": NAN},
            ("Q", "liver"): {"dice": 1.0, "hd95_mm": 3.0},
            ("R", "liver"): {"dice": 0.5, "hd95_mm": 5.0},
        }
    )
    overlap, distance = summarise(rows)
    assert (overlap.mean, overlap.count, overlap.undefined) == (pytest.approx(0.5), 3, 0)
    assert (distance.mean, distance.count, distance.undefined) == (pytest.approx(4.0), 2, 1)
    assert distance.standard_deviation == pytest.approx(math.sqrt(2.0))


def test_score_that_is_never_defined_has_no_mean_and_one_value_has_no_spread() -> None:
    never, once = summarise(
        _rows({("P", "liver"): {"hd95_mm": NAN, "dice": NAN}, ("Q", "liver"): {"hd95_mm": NAN, "dice": 0.25}})
    )
    assert math.isnan(never.mean)
    assert (never.count, never.undefined) == (0, 2)
    assert once.mean == 0.25
    assert math.isnan(once.standard_deviation)
    assert (once.count, once.undefined) == (1, 1)


def test_classes_and_outputs_are_summarised_apart_in_order_of_appearance() -> None:
    rows = [
        ScoreRow(case, segment, output, {"dice": dice, "jaccard": dice / 2})
        for output, case, segment, dice in (
            ("mean", "P", "spleen", 0.1),
            ("fused", "P", "spleen", 0.2),
            ("fused", "P", "liver", 0.4),
            ("fused", "Q", "spleen", 0.4),
        )
    ]
    found = [(row.output, row.segment, row.score, round(row.mean, 9), row.count) for row in summarise(rows)]
    assert found == [
        ("mean", "spleen", "dice", 0.1, 1),
        ("mean", "spleen", "jaccard", 0.05, 1),
        ("fused", "spleen", "dice", 0.3, 2),
        ("fused", "spleen", "jaccard", 0.15, 2),
        ("fused", "liver", "dice", 0.4, 1),
        ("fused", "liver", "jaccard", 0.2, 1),
    ]


def test_nothing_is_summarised_to_nothing() -> None:
    assert summarise([]) == ()
    assert class_means([]) == ()


def test_rows_carry_every_score_under_its_name() -> None:
    in_mm = score_row("P", "liver", "fused", MaskScores(0.9, 0.8, 3.0, 1.0, 1500.0, 1400.0))
    assert in_mm.as_json() == {
        "case": "P",
        "segment": "liver",
        "output": "fused",
        "dice": 0.9,
        "jaccard": 0.8,
        "hd95_mm": 3.0,
        "assd_mm": 1.0,
        "predicted_ml": 1500.0,
        "truth_ml": 1400.0,
    }
    in_voxels = score_row("P", "liver", "fused", VoxelScores(0.9, 0.8, 4.0, 2.0))
    assert in_voxels.scores == {"dice": 0.9, "jaccard": 0.8, "hd95_voxels": 4.0, "asd_voxels": 2.0}


def test_undefined_scores_are_null_in_json() -> None:
    row = ScoreRow("P", "liver", "fused", {"dice": 0.0, "hd95_mm": NAN})
    (_, distance) = summarise([row])
    assert json.loads(json.dumps(row.as_json(), allow_nan=False))["hd95_mm"] is None
    assert json.loads(json.dumps(distance.as_json(), allow_nan=False)) == {
        "segment": "liver",
        "output": "fused",
        "score": "hd95_mm",
        "mean": None,
        "standard_deviation": None,
        "count": 0,
        "undefined": 1,
    }


def test_class_means_are_per_case_and_their_mean_is_that_of_the_protocol() -> None:
    dice = {
        ("P", "RV"): 0.9,
        ("P", "Myo"): 0.6,
        ("P", "LV"): 0.3,
        ("Q", "RV"): 0.5,
        ("Q", "Myo"): 0.5,
        ("Q", "LV"): 0.2,
    }
    means = class_means(_rows({key: {"dice": value} for key, value in dice.items()}))
    assert [(row.case, row.segment, round(row.scores["dice"], 9)) for row in means] == [
        ("P", MEAN_OF_CLASSES, 0.6),
        ("Q", MEAN_OF_CLASSES, 0.4),
    ]
    assert summarise(means)[0].mean == pytest.approx(0.5)


def test_class_mean_is_undefined_where_one_class_is() -> None:
    rows = _rows({("P", "RV"): {"hd95_mm": 2.0, "dice": 0.8}, ("P", "LV"): {"hd95_mm": NAN, "dice": 0.0}})
    (mean,) = class_means(rows)
    assert math.isnan(mean.scores["hd95_mm"])
    assert mean.scores["dice"] == pytest.approx(0.4)


def test_class_means_of_different_classes_are_refused_within_one_output_only() -> None:
    complete = _rows({("P", "RV"): {"dice": 0.8}, ("P", "LV"): {"dice": 0.8}})
    (mean, other) = class_means([*complete, ScoreRow("P", "RV", "mean", {"dice": 0.1})])
    assert (mean.output, other.output) == ("fused", "mean")
    with pytest.raises(InputError, match=r"case 'Q' was scored for the classes \['RV'\]; expected \['LV', 'RV'\]"):
        class_means([*complete, ScoreRow("Q", "RV", "fused", {"dice": 0.1})])


@pytest.mark.parametrize(
    ("second", "message"),
    [
        pytest.param(ScoreRow("P", "liver", "fused", {"dice": 0.2}), "two rows for 'liver'", id="counted twice"),
        pytest.param(ScoreRow("Q", "liver", "fused", {"asd_voxels": 2.0}), "asd_voxels; expected dice", id="units"),
        pytest.param(ScoreRow("Q", "liver", "fused", {"dice": math.inf}), "infinite", id="infinite"),
    ],
)
def test_rows_that_do_not_belong_together_are_an_input_error(second: ScoreRow, message: str) -> None:
    rows = [ScoreRow("P", "liver", "fused", {"dice": 0.1}), second]
    for function in (summarise, class_means):
        with pytest.raises(InputError, match=message):
            function(rows)
