"""How case scores go with Dice, and from which score on cases are to be reviewed or rejected."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import rankdata

from ucseg_export.calibration.bootstrap import estimate
from ucseg_export.calibration.counts import CaseCounts
from ucseg_runtime.arrays import Float64Array
from ucseg_runtime.calibration import (
    FEWEST_PATIENTS,
    CaseFigures,
    CasePoint,
    CoveragePoint,
    ScoreLimits,
)

_FEWEST_CASES = 3
"""Two cases are always in perfect order or in its reverse."""


@dataclass(frozen=True)
class AcceptedRisk:
    """Mean of 1 − Dice that cases below a limit may have.

    Attributes:
        accept: Of all cases that are accepted without review.
        review: Of all cases that are not rejected; at least `accept`.
    """

    accept: float = 0.1
    review: float = 0.25


def case_figures(counts: Sequence[CaseCounts]) -> CaseFigures:
    """Score and Dice of every case, their rank correlation, and the risk–coverage curve."""
    numbers = {patient: number for number, patient in enumerate(dict.fromkeys(c.patient for c in counts), start=1)}
    points = tuple(
        CasePoint(
            case=f"case {ordinal} of {len(counts)}",
            patient=numbers[case.patient],
            score=case.score,
            dice=None if np.isnan(case.mean_dice) else case.mean_dice,
        )
        for ordinal, case in enumerate(counts, start=1)
    )
    shown = [point for point in points if point.dice is not None]
    scores, dice = (np.array([getattr(point, name) for point in shown]) for name in ("score", "dice"))
    owner = np.array([point.patient - 1 for point in shown], dtype=np.intp)

    def correlation(weights: Float64Array) -> Float64Array:
        return np.array([_spearman(*(np.repeat(v, row[owner].astype(int)) for v in (scores, dice))) for row in weights])

    return CaseFigures(
        points=points,
        spearman=estimate(correlation, len(numbers)),
        risk_coverage=risk_coverage(scores, dice),
    )


def risk_coverage(scores: Float64Array, dice: Float64Array) -> tuple[CoveragePoint, ...]:
    """Coverage and risk for every score as the limit, ascending; cases of one score go together.

    Args:
        scores: float64, shape (cases,), in [0, 1].
        dice: The same.
    """
    return tuple(
        CoveragePoint(
            score=float(limit),
            coverage=float((scores <= limit).mean()),
            risk=float(np.clip((1.0 - dice[scores <= limit]).mean(), 0.0, 1.0)),
        )
        for limit in np.unique(scores)
    )


def score_limits(figures: CaseFigures, risk: AcceptedRisk) -> tuple[ScoreLimits | None, str]:
    """Limits for the case score, or why there are none.

    The limit for review is the greatest score such that cases up to it have at most the accepted risk, that for
    rejection the same with the risk that reviewers are to see.

    Args:
        figures: Of the cases.
        risk: What is accepted.
    """
    patients = len({point.patient for point in figures.points if point.dice is not None})
    if patients < FEWEST_PATIENTS:
        return None, f"too few patients: {patients}, and at least {FEWEST_PATIENTS} are needed."
    spearman = figures.spearman
    if spearman.value is None or spearman.high is None or spearman.high >= 0.0:
        return None, "the score does not tell good cases from bad ones: its rank correlation with Dice is not below 0."
    review, reject = (_limit(figures.risk_coverage, accepted) for accepted in (risk.accept, risk.review))
    if review is None or reject is None:
        return None, f"even the surest cases have a greater risk than {risk.accept:g}."
    return ScoreLimits(review=review, reject=reject), ""


def _limit(curve: Sequence[CoveragePoint], accepted: float) -> float | None:
    return max((point.score for point in curve if point.risk <= accepted), default=None)


def _spearman(scores: Float64Array, dice: Float64Array) -> float:
    """Rank correlation; NaN for too few cases, or where all are equal, as in a resample of one patient.

    scipy's own takes ten times as long, most of it for a test that nobody asks for.
    """
    if len(scores) < _FEWEST_CASES:
        return float("nan")
    ranks = [rankdata(values) - (len(values) + 1) / 2 for values in (scores, dice)]
    scale = math.sqrt(math.prod(float(values @ values) for values in ranks))
    return float(ranks[0] @ ranks[1]) / scale if scale > 0.0 else float("nan")
