"""Between which values the figures of a model's training cases lay: what `case_score` compares every case with."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, field_validator

Range = tuple[FiniteFloat, FiniteFloat]
"""Least and greatest value, in the unit of the figure."""


class TrainingRanges(BaseModel):
    """Optional part of the manifest.

    Attributes:
        cases: Training cases that were measured.
        figures: Range of each figure over those cases that have it, by its key; see `case_figures` for keys and units.
            A key that this version does not know is left alone.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    cases: Annotated[int, Field(ge=1)]
    figures: dict[str, Range]

    @field_validator("figures")
    @classmethod
    def _ascending(cls, figures: dict[str, Range]) -> dict[str, Range]:
        wrong = [key for key, (low, high) in figures.items() if low > high]
        if wrong:
            raise ValueError(f"the least value of {', '.join(sorted(wrong))} is above its greatest")
        return figures


def ranges_over(cases: Iterable[Mapping[str, float]]) -> TrainingRanges:
    """The ranges of figures over several cases.

    Args:
        cases: Figures of each case by key; at least one case. Not every case has every figure.

    Raises:
        ValueError: There is no case, or a value is not finite.
    """
    measured = tuple(cases)
    values: dict[str, list[float]] = {}
    for figures in measured:
        for key, value in figures.items():
            values.setdefault(key, []).append(value)
    return TrainingRanges(
        cases=len(measured), figures={key: (min(found), max(found)) for key, found in sorted(values.items())}
    )
