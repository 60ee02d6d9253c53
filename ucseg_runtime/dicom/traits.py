"""What rules about the choice of a series look at, from the headers of its files."""

from __future__ import annotations

import math

from ucseg_runtime.dicom.instances import Cosines, Series
from ucseg_runtime.series_rules import SeriesTraits, plane_of


def traits_of(series: Series) -> SeriesTraits:
    """The traits of a series, in an order that depends on its files' content alone."""
    wordings = [instance.wording for instance in series.instances]
    descriptions = sorted({text for wording in wordings for text in wording.descriptions})
    thicknesses = [wording.thickness_mm for wording in wordings]
    orientation = series.instances[0].placement.orientation
    return SeriesTraits(
        modality=series.modality,
        body_part=next((wording.body_part for wording in wordings if wording.body_part), ""),
        descriptions=tuple(descriptions),
        plane="" if orientation is None or not any(_normal(orientation)) else plane_of(_normal(orientation)),
        slices=series.number_of_instances,
        thickness_mm=math.nan if any(map(math.isnan, thicknesses)) else max(thicknesses),
        has_contrast=any(wording.has_contrast for wording in wordings),
    )


def _normal(orientation: Cosines) -> tuple[float, float, float]:
    a, b, c, d, e, f = orientation
    return b * f - c * e, c * d - a * f, a * e - b * d
