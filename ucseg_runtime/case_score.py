"""How far the figures of a case lie outside the ranges of the training cases, as one score.

Each figure has an *excess*: 0 inside its range, else how far outside, in units of its kind: so many HU or mm, or
factors of so much for sizes. A unit is what a reader would call a lot. Severity = excess² / (1 + excess²): 0 inside,
one half at one unit, near 1 far away, and forgiving just outside, since ranges of few cases are narrow. Of each group
of checks (geometry, intensity, presence, volume, place, uncertainty, agreement) the greatest severity counts, and

    score = 1 − Π (1 − severity of the group)

So the score is 0 where everything is inside, never falls when one figure moves further out, and rises when another
group goes wrong as well. The units are fixed by judgement, not fitted.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

from ucseg_runtime.manifest import SegmentClass
from ucseg_runtime.training_ranges import Range, TrainingRanges

Group = Literal["geometry", "intensity", "presence", "volume", "place", "uncertainty", "agreement"]


@dataclass(frozen=True)
class _Kind:
    """What a figure is and when it counts as wrong.

    Attributes:
        group: Whose greatest severity counts.
        unit: Excess of 1: a difference, or where `ratio` is set a factor above 1.
        words: What it is; ``{0}`` and ``{1}`` are names of classes.
        symbol: Unit of the value in sentences.
        digits: Decimals in sentences.
        ratio: Whether sizes are compared, by factors.
        sides: On which side of its range it is wrong.
    """

    group: Group
    unit: float
    words: str
    symbol: str = ""
    digits: int = 0
    ratio: bool = False
    sides: Literal["both", "above", "below"] = "both"


_KINDS = MappingProxyType(
    {
        "slice_spacing_mm": _Kind("geometry", 2.0, "The distance of slices", " mm", 2, ratio=True),
        "pixel_spacing_mm": _Kind("geometry", 2.0, "The distance of pixels", " mm", 2, ratio=True),
        "slices": _Kind("geometry", 2.0, "The number of slices", ratio=True),
        "extent_left_mm": _Kind("geometry", 2.0, "The extent from right to left", " mm", ratio=True),
        "extent_back_mm": _Kind("geometry", 2.0, "The extent from front to back", " mm", ratio=True),
        "extent_up_mm": _Kind("geometry", 2.0, "The extent from foot to head", " mm", ratio=True),
        "air": _Kind("intensity", 0.2, "The share of air", "", 2),
        "hu_p05": _Kind("intensity", 100.0, "The 5th percentile of all but air", " HU"),
        "hu_p25": _Kind("intensity", 100.0, "The 25th percentile of all but air", " HU"),
        "hu_p50": _Kind("intensity", 100.0, "The median of all but air", " HU"),
        "hu_p75": _Kind("intensity", 100.0, "The 75th percentile of all but air", " HU"),
        "hu_p95": _Kind("intensity", 100.0, "The 95th percentile of all but air", " HU"),
        "noise_hu": _Kind("intensity", 2.0, "The noise", " HU", ratio=True, sides="above"),
        "found": _Kind("presence", 1.0, "The number of segments that were found", sides="below"),
        "present": _Kind("presence", 1.0, "{0}", sides="below"),
        "volume_ml": _Kind("volume", 2.0, "The volume of {0}", " ml", 1, ratio=True),
        "left_mm": _Kind("place", 50.0, "How far {0} lies left of {1}", " mm"),
        "back_mm": _Kind("place", 50.0, "How far {0} lies behind {1}", " mm"),
        "up_mm": _Kind("place", 50.0, "How far {0} lies above {1}", " mm"),
        "uncertainty": _Kind("uncertainty", 0.1, "The mean uncertainty inside {0}", "", 3, sides="above"),
        "border_uncertainty": _Kind(
            "uncertainty", 0.1, "The mean uncertainty at the border of {0}", "", 3, sides="above"
        ),
        "subnet_dice": _Kind("agreement", 0.2, "The Dice coefficient between the subnets of {0}", "", 2, sides="below"),
    }
)

_BUILT_IN: Mapping[str, Range] = MappingProxyType(
    {
        "found": (1.0, 255.0),
        "uncertainty": (0.0, 0.3),
        "border_uncertainty": (0.0, 0.5),
        "subnet_dice": (0.7, 1.0),
    }
)
"""Of models whose manifest has no ranges of training cases."""

GRID_FIGURES = ("slice_spacing_mm", "pixel_spacing_mm", "slices")
"""Figures that a case on another grid than it was acquired on has no longer."""

_LEAST_SIZE = 1e-6
"""Below any size that is compared by factors."""


@dataclass(frozen=True)
class Finding:
    """One figure outside its range.

    Attributes:
        check: Key of the figure, labels replaced by names: ``volume_ml/liver``.
        group: Of checks.
        value: Of this case.
        limit: The end of the range that it is beyond.
        severity: In (0, 1).
        text: A sentence for people.
    """

    check: str
    group: Group
    value: float
    limit: float
    severity: float
    text: str


@dataclass(frozen=True)
class CaseScore:
    """How sure it is that something is wrong with a case.

    Attributes:
        score: 0 = every figure is inside its range … 1 = far outside. No probability.
        findings: Every figure outside its range, the worst first.
    """

    score: float
    findings: tuple[Finding, ...]


def score_case(
    figures: Mapping[str, float], ranges: TrainingRanges | None, classes: Sequence[SegmentClass]
) -> CaseScore:
    """Compare the figures of a case with the ranges of the training cases.

    Args:
        figures: See `case_figures`.
        ranges: Of the manifest; None: built-in ranges for the uncertainty, for the agreement of the subnets and for
            that something was found, and nothing else.
        classes: Of the model.
    """
    names = {str(item.label): item.name for item in classes}
    missing = _missing(figures, ranges, names)
    findings = [*_found_outside(figures, ranges, names)]
    if missing is not None:  # says more than the number of those that were found, unless that is worse
        findings = [item for item in findings if item.check != "found" or item.severity > missing.severity]
        findings.append(missing)
    findings.sort(key=lambda finding: (-finding.severity, finding.check))
    worst: dict[Group, float] = {}
    for finding in findings:
        worst[finding.group] = max(worst.get(finding.group, 0.0), finding.severity)
    return CaseScore(1.0 - math.prod(1.0 - severity for severity in worst.values()), tuple(findings))


def _found_outside(
    figures: Mapping[str, float], ranges: TrainingRanges | None, names: Mapping[str, str]
) -> Iterator[Finding]:
    known = ranges.figures if ranges is not None else {}
    for key, value in figures.items():
        name, _, labels = key.partition("/")
        allowed = known.get(key) or (_BUILT_IN.get(name) if ranges is None else None)
        if allowed is None or name == "present":
            continue
        kind = _KINDS[name]
        limit, excess = _excess(kind, value, allowed)
        if excess > 0.0:
            of = [names[label] for label in labels.split("-")] if labels else []
            yield Finding(
                check="/".join([name, "-".join(of)]) if of else name,
                group=kind.group,
                value=value,
                limit=limit,
                severity=_severity(excess),
                text=_sentence(kind, of, value, allowed, ranges),
            )


def _missing(figures: Mapping[str, float], ranges: TrainingRanges | None, names: Mapping[str, str]) -> Finding | None:
    """Classes that every training case had and this one has not; each of them is one unit."""
    if ranges is None:
        return None
    missing = [
        names[label]
        for key, (least, _) in sorted(ranges.figures.items())
        for name, _, label in [key.partition("/")]
        if name == "present" and least == 1.0 and figures.get(key) == 0.0 and label in names
    ]
    if not missing:
        return None
    return Finding(
        check="missing",
        group="presence",
        value=float(len(missing)),
        limit=0.0,
        severity=_severity(float(len(missing))),
        text=f"Not found: {', '.join(missing)}; every training case has {'it' if len(missing) == 1 else 'them'}.",
    )


def _excess(kind: _Kind, value: float, allowed: Range) -> tuple[float, float]:
    """The end of the range that the value is beyond, and how far, in units; 0 inside."""
    low, high = allowed
    for limit, beyond, side in ((high, value > high, "above"), (low, value < low, "below")):
        if beyond and kind.sides in ("both", side):
            if kind.ratio:
                sizes = max(value, _LEAST_SIZE), max(limit, _LEAST_SIZE)
                return limit, abs(math.log(sizes[0] / sizes[1])) / math.log(kind.unit)
            return limit, abs(value - limit) / kind.unit
    return high, 0.0


def _severity(excess: float) -> float:
    return excess**2 / (1.0 + excess**2)


def _sentence(kind: _Kind, of: Sequence[str], value: float, allowed: Range, ranges: TrainingRanges | None) -> str:
    subject = kind.words.format(*of)
    low, high = (f"{end:.{kind.digits}f}" for end in allowed)
    if ranges is None:
        expected = f"expected {'at least ' + low if kind.sides == 'below' else 'at most ' + high}{kind.symbol}"
    else:
        expected = f"in training {low} to {high}{kind.symbol}"
    return f"{subject} is {value:.{kind.digits}f}{kind.symbol}; {expected}."
