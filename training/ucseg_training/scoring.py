"""Scores of many cases: one row per case and class, and what they amount to per class."""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from ucseg_runtime.errors import InputError
from ucseg_training.metrics import MaskScores
from ucseg_training.paper_protocol import VoxelScores

MEAN_OF_CLASSES = "mean of classes"
"""Stands for the class in the rows of `class_means`."""


@dataclass(frozen=True)
class ScoreRow:
    """All scores of one class in one case.

    Attributes:
        case: Name of the case in the reports.
        segment: Name of the class.
        output: Which output of the trio was scored.
        scores: Name of the score, with its unit, to its value; NaN where it is not defined.
    """

    case: str
    segment: str
    output: str
    scores: Mapping[str, float]

    def as_json(self) -> dict[str, str | float | None]:
        """One flat JSON object; what is not defined becomes null, since JSON knows no NaN."""
        where = {"case": self.case, "segment": self.segment, "output": self.output}
        return {**where, **{name: _null_if_undefined(value) for name, value in self.scores.items()}}


@dataclass(frozen=True)
class Summary:
    """One score of one class over all cases.

    Attributes:
        segment: Name of the class.
        output: Which output of the trio was scored.
        score: Name of the score, with its unit.
        mean: Over the cases where it is defined; NaN where there is none.
        standard_deviation: Of the same cases, of the sample (divided by their number − 1); NaN for fewer than two.
        count: Cases in which the score is defined.
        undefined: Cases in which it is not; a mean says little without this number.
    """

    segment: str
    output: str
    score: str
    mean: float
    standard_deviation: float
    count: int
    undefined: int

    def as_json(self) -> dict[str, str | float | None]:
        """One flat JSON object; what is not defined becomes null."""
        values: dict[str, str | float] = dataclasses.asdict(self)
        return {
            name: _null_if_undefined(value) if isinstance(value, float) else value for name, value in values.items()
        }


def score_row(case: str, segment: str, output: str, scores: MaskScores | VoxelScores) -> ScoreRow:
    """The row of one comparison; the fields of the scores become its columns."""
    return ScoreRow(case, segment, output, dataclasses.asdict(scores))


def summarise(rows: Iterable[ScoreRow]) -> tuple[Summary, ...]:
    """Mean and spread of every score over the cases, per class and output, in order of appearance.

    Raises:
        InputError: A case has two rows of one class and output, rows hold different scores, or a score is infinite.
    """
    groups: dict[tuple[str, str], list[ScoreRow]] = {}
    for row in _checked(rows):
        groups.setdefault((row.output, row.segment), []).append(row)
    return tuple(
        _summary(segment, output, name, [row.scores[name] for row in group])
        for (output, segment), group in groups.items()
        for name in group[0].scores
    )


def summarise_as_paper(rows: Iterable[ScoreRow]) -> tuple[Summary, ...]:
    """As `summarise`; for several classes followed by their mean, taken in each case first. Raises as `class_means`."""
    found = list(rows)
    means = class_means(found) if len({row.segment for row in found}) > 1 else ()
    return summarise(found) + summarise(means)


def class_means(rows: Iterable[ScoreRow]) -> tuple[ScoreRow, ...]:
    """One row per case and output: the mean over its classes, which the ACDC protocol averages over the cases.

    A score that is not defined for one of the classes is not defined for their mean: a mean over the others would be
    better the more is missed.

    Raises:
        InputError: As for `summarise`; or the cases of an output do not hold the same classes.
    """
    groups: dict[tuple[str, str], list[ScoreRow]] = {}
    for row in _checked(rows):
        groups.setdefault((row.output, row.case), []).append(row)
    _require_same_classes(groups)
    return tuple(
        ScoreRow(
            case,
            MEAN_OF_CLASSES,
            output,
            {name: math.fsum(row.scores[name] for row in group) / len(group) for name in group[0].scores},
        )
        for (output, case), group in groups.items()
    )


def _checked(rows: Iterable[ScoreRow]) -> list[ScoreRow]:
    checked = list(rows)
    seen: set[tuple[str, str, str]] = set()
    for row in checked:
        key = (row.case, row.segment, row.output)
        if key in seen:
            raise InputError(
                f"case {row.case!r} has two rows for {row.segment!r} of output {row.output!r}; expected one.",
                hint="Give every case a name of its own.",
            )
        seen.add(key)
        if row.scores.keys() != checked[0].scores.keys():
            raise InputError(
                f"case {row.case!r} has the scores {', '.join(row.scores)}; expected {', '.join(checked[0].scores)} "
                "as in the first row.",
                hint="Do not mix scores in mm with those of the paper's protocol.",
            )
        if any(math.isinf(value) for value in row.scores.values()):
            raise InputError(f"case {row.case!r} has an infinite score for {row.segment!r}; undefined ones are NaN.")
    return checked


def _require_same_classes(groups: Mapping[tuple[str, str], Sequence[ScoreRow]]) -> None:
    first: dict[str, set[str]] = {}
    for (output, case), group in groups.items():
        classes = {row.segment for row in group}
        expected = first.setdefault(output, classes)
        if classes != expected:
            raise InputError(
                f"case {case!r} was scored for the classes {sorted(classes)}; expected {sorted(expected)} as in the "
                "first case.",
                hint="Means over different classes cannot be compared: summarise per class, or score every class.",
            )


def _summary(segment: str, output: str, score: str, values: Sequence[float]) -> Summary:
    defined = [value for value in values if not math.isnan(value)]
    return Summary(
        segment=segment,
        output=output,
        score=score,
        mean=math.fsum(defined) / len(defined) if defined else math.nan,
        standard_deviation=statistics.stdev(defined) if len(defined) > 1 else math.nan,
        count=len(defined),
        undefined=len(values) - len(defined),
    )


def _null_if_undefined(value: float) -> float | None:
    return None if math.isnan(value) else value
