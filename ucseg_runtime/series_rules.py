"""Rules by which a series is chosen, from the manifest of a model and from the user: one grammar, `WHAT=VALUE`.

=============  =============================================================================================
body-part      (0018,0015), one of the words given
contrast       ``with`` or ``without``: whether (0018,0010) Contrast/Bolus Agent is filled in
description    (0008,103E) Series Description or (0018,1030) Protocol Name; ``*`` and ``?`` as for file names,
               without them the text may stand anywhere; case does not matter
modality       (0008,0060), one of the words given
plane          ``axial``, ``coronal``, ``sagittal`` or ``oblique``, from the slices' normal
slices         number, or ``LOW..HIGH`` with either end open
thickness      (0018,0050) of the thickest slice in mm, ``LOW..HIGH`` likewise
=============  =============================================================================================

A comma separates alternatives. Descriptions can hold patient data: they are matched and never shown.
"""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal, TypeAlias

Plane: TypeAlias = Literal["axial", "coronal", "sagittal", "oblique"]
Source: TypeAlias = Literal["model", "user"]

PLANES: tuple[Plane, ...] = ("axial", "coronal", "sagittal", "oblique")
_CONTRAST = ("with", "without")


@dataclass(frozen=True)
class SeriesTraits:
    """What rules look at.

    Attributes:
        modality: (0008,0060); may be empty.
        body_part: (0018,0015); may be empty.
        descriptions: Series Description and Protocol Name of every file, each text once. Never shown.
        plane: Of the slices; empty where they have no common orientation.
        slices: Number of slice images.
        thickness_mm: Of the thickest slice; NaN where a file does not say it.
        has_contrast: Whether a file names a contrast agent.
    """

    modality: str
    body_part: str
    descriptions: tuple[str, ...]
    plane: Plane | Literal[""]
    slices: int
    thickness_mm: float
    has_contrast: bool

    def __repr__(self) -> str:
        return f"SeriesTraits({self.modality}, {self.slices} slices)"  # never the descriptions


@dataclass(frozen=True)
class SeriesRule:
    """One rule.

    Attributes:
        what: Word before the equals sign.
        value: Text after it.
        excludes: Whether series that fit are left out, and not those that do not.
        source: Who wants it.
    """

    what: str
    value: str
    excludes: bool
    source: Source

    def __post_init__(self) -> None:
        _MATCHERS[self.what](self.value, _NOTHING)  # a value without meaning is a ValueError now, not on the first scan

    @property
    def text(self) -> str:
        """How people see the rule. What they wrote of descriptions is left out: it can be copied from a patient."""
        value = "…" if self.what == "description" else self.value
        owner = "model" if self.source == "model" else "caller"
        return f"{'exclude' if self.excludes else 'choose'} {self.what}={value} ({owner})"

    def judge(self, traits: SeriesTraits) -> Judgement:
        """Whether a series passes, and what was found."""
        fits, found = _MATCHERS[self.what](self.value, traits)
        return Judgement(self.text, fits != self.excludes, found)


@dataclass(frozen=True)
class Judgement:
    """What one rule says of one series.

    Attributes:
        rule: Text of the rule.
        passed: Whether the series may be used as far as this rule is concerned.
        found: What the series has, free of patient data.
    """

    rule: str
    passed: bool
    found: str


def rules_from_texts(choose: Iterable[str], exclude: Iterable[str], source: Source) -> tuple[SeriesRule, ...]:
    """Parse rules.

    Args:
        choose: Rules that a series must fit.
        exclude: Rules that it must not fit.
        source: Who wants them.

    Raises:
        ValueError: A rule has another form, or its value no meaning.
    """
    return tuple(
        _rule(text, excludes, source) for texts, excludes in ((choose, False), (exclude, True)) for text in texts
    )


def plane_of(normal: tuple[float, float, float]) -> Plane:
    """The plane of slices with this normal in LPS; oblique beyond 35 degrees, so that a tilted head scan is axial."""
    length = math.hypot(*normal)
    cosines = [abs(part) / length for part in normal]
    axis = cosines.index(max(cosines))
    planes: tuple[Plane, ...] = ("sagittal", "coronal", "axial")
    return planes[axis] if cosines[axis] >= math.cos(math.radians(35.0)) else "oblique"


def _rule(text: str, excludes: bool, source: Source) -> SeriesRule:
    what, separator, value = (part.strip() for part in text.partition("="))
    if not separator or not value or what not in _MATCHERS:
        raise ValueError(f"a rule is WHAT=VALUE, with WHAT one of {', '.join(sorted(_MATCHERS))}")
    try:
        return SeriesRule(what, value, excludes, source)
    except ValueError as error:
        raise ValueError(f"the rule on {what}: {error}") from error


_Match: TypeAlias = tuple[bool, str]
_NOTHING = SeriesTraits("", "", (), "", 0, math.nan, False)


def _alternatives(value: str) -> list[str]:
    return [part.strip().lower() for part in value.split(",") if part.strip()]


def _is_word(value: str, found: str) -> bool:
    return found.lower() in _alternatives(value)


def _modality(value: str, traits: SeriesTraits) -> _Match:
    return _is_word(value, traits.modality), f"modality {traits.modality or 'missing'}"


def _body_part(value: str, traits: SeriesTraits) -> _Match:
    return _is_word(value, traits.body_part), f"body part {traits.body_part or 'missing'}"


def _description(value: str, traits: SeriesTraits) -> _Match:
    patterns = [text if set(text) & set("*?") else f"*{text}*" for text in _alternatives(value)]
    patterns = [text.replace("[", "[[]") for text in patterns]  # no character classes: brackets are common in names
    fits = any(fnmatch.fnmatchcase(text.lower(), pattern) for text in traits.descriptions for pattern in patterns)
    if not traits.descriptions:
        return fits, "no description"
    return fits, f"a description that {'fits' if fits else 'does not fit'}"


def _plane(value: str, traits: SeriesTraits) -> _Match:
    unknown = set(_alternatives(value)) - set(PLANES)
    if unknown:
        raise ValueError(f"a plane is one of {', '.join(PLANES)}")
    return _is_word(value, traits.plane), f"plane {traits.plane or 'not known'}"


def _slices(value: str, traits: SeriesTraits) -> _Match:
    low, high = _range(value)
    return low <= traits.slices <= high, f"{traits.slices} slices"


def _thickness(value: str, traits: SeriesTraits) -> _Match:
    low, high = _range(value)
    if math.isnan(traits.thickness_mm):
        return False, "thickness missing"
    return low <= traits.thickness_mm <= high, f"thickness {traits.thickness_mm:g} mm"


def _contrast(value: str, traits: SeriesTraits) -> _Match:
    if value.lower() not in _CONTRAST:
        raise ValueError("contrast is with or without")
    found = "with" if traits.has_contrast else "without"
    return value.lower() == found, f"{found} contrast agent in the header"


def _range(value: str) -> tuple[float, float]:
    low, separator, high = value.partition("..")
    try:
        ends = (float(low or "-inf"), float(high or "inf")) if separator else (float(value), float(value))
    except ValueError:
        raise ValueError("a range is NUMBER, LOW..HIGH, LOW.. or ..HIGH") from None
    if not ends[0] <= ends[1]:
        raise ValueError("the low end of a range is above its high end")
    return ends


_MATCHERS: Mapping[str, Callable[[str, SeriesTraits], _Match]] = MappingProxyType(
    {
        "body-part": _body_part,
        "contrast": _contrast,
        "description": _description,
        "modality": _modality,
        "plane": _plane,
        "slices": _slices,
        "thickness": _thickness,
    }
)
