"""How uncertainty and segments go on over the frames of a clip, and what is said of the clip as a whole."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ucseg_runtime.arrays import BoolArray, Float32Array, UInt8Array
from ucseg_runtime.manifest import SegmentClass

_DECIMALS = 6


@dataclass(frozen=True)
class FrameOrigin:
    """Which frame of which file.

    Attributes:
        file: Number of the file within the series, from 1, in the order of the frames.
        frame: Number of the frame within the file, from 1.
        time_s: Since the first frame of the file, in s; NaN where the file does not say.
    """

    file: int
    frame: int
    time_s: float


@dataclass(frozen=True)
class SegmentFigures:
    """One segment in one frame.

    Attributes:
        area_px: Pixels.
        area_mm2: In mm²; NaN where the size of one of its pixels is not known.
        mean_uncertainty: Over its pixels, in [0, 1]; NaN for an empty one.
    """

    area_px: int
    area_mm2: float
    mean_uncertainty: float


@dataclass(frozen=True)
class FrameFigures:
    """One frame.

    Attributes:
        mean_uncertainty: Over all pixels, in [0, 1].
        uncertainty_p95: The 95th percentile over all pixels, linear between sorted values.
        segments: In the order of the classes.
    """

    mean_uncertainty: float
    uncertainty_p95: float
    segments: tuple[SegmentFigures, ...]


@dataclass(frozen=True)
class ClipMeasurement:
    """One segment over a whole clip.

    Attributes:
        label: Value in the label maps.
        name: Name of the class.
        frames: Number of frames that show it.
        largest_area_px: Pixels in the frame where it is largest.
        largest_area_mm2: The largest area that is known in mm²; NaN where none is.
        mean_uncertainty: Over all of its pixels, in [0, 1]; NaN where it is nowhere.
    """

    label: int
    name: str
    frames: int
    largest_area_px: int
    largest_area_mm2: float
    mean_uncertainty: float


def figures_of_frame(
    labels: UInt8Array, uncertainty: Float32Array, areas_mm2: Float32Array, classes: Sequence[SegmentClass]
) -> FrameFigures:
    """Measure one frame.

    Args:
        labels: uint8, shape (rows, columns).
        uncertainty: float32, same shape, in [0, 1].
        areas_mm2: float32, same shape: area of every pixel, NaN where it is not known.
        classes: Of the model.
    """
    return FrameFigures(
        mean_uncertainty=float(uncertainty.mean(dtype=np.float64)),
        uncertainty_p95=float(np.percentile(uncertainty, 95.0)),
        segments=tuple(_segment(np.equal(labels, item.label), uncertainty, areas_mm2) for item in classes),
    )


@dataclass(frozen=True)
class Timeline:
    """The figures of all frames of a clip, in order.

    Attributes:
        origins: Which frame each one is.
        figures: As many.
        classes: Of the model.
    """

    origins: tuple[FrameOrigin, ...]
    figures: tuple[FrameFigures, ...]
    classes: tuple[SegmentClass, ...]

    def columns(self) -> dict[str, list[float | int | None]]:
        """One list for each figure, by name; None where a figure is not known or has no meaning."""
        columns: dict[str, list[float | int | None]] = {
            "frame": list(range(1, len(self.figures) + 1)),
            "file": [origin.file for origin in self.origins],
            "frame_of_file": [origin.frame for origin in self.origins],
            "time_s": [_rounded(origin.time_s) for origin in self.origins],
            "mean_uncertainty": [_rounded(figure.mean_uncertainty) for figure in self.figures],
            "uncertainty_p95": [_rounded(figure.uncertainty_p95) for figure in self.figures],
        }
        for index, item in enumerate(self.classes):
            segments = [figure.segments[index] for figure in self.figures]
            columns[f"{item.name} area_px"] = [segment.area_px for segment in segments]
            columns[f"{item.name} area_mm2"] = [_rounded(segment.area_mm2) for segment in segments]
            columns[f"{item.name} mean_uncertainty"] = [_rounded(segment.mean_uncertainty) for segment in segments]
        return columns

    def as_csv(self) -> str:
        """`columns` as comma-separated values, one line for each frame; nothing where a figure is not known."""
        columns = self.columns()
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows(zip(*columns.values(), strict=True))
        return text.getvalue()

    def measurements(self) -> tuple[ClipMeasurement, ...]:
        """One for each class, in the order of the labels, those found nowhere included."""
        return tuple(self._measurement(index, item) for index, item in enumerate(self.classes))

    def _measurement(self, index: int, item: SegmentClass) -> ClipMeasurement:
        shown = [figure.segments[index] for figure in self.figures if figure.segments[index].area_px]
        pixels = sum(segment.area_px for segment in shown)
        known = [segment.area_mm2 for segment in shown if not math.isnan(segment.area_mm2)]
        return ClipMeasurement(
            label=item.label,
            name=item.name,
            frames=len(shown),
            largest_area_px=max((segment.area_px for segment in shown), default=0),
            largest_area_mm2=max(known, default=math.nan),
            mean_uncertainty=sum(segment.area_px * segment.mean_uncertainty for segment in shown) / pixels
            if pixels
            else math.nan,
        )


def _segment(mask: BoolArray, uncertainty: Float32Array, areas_mm2: Float32Array) -> SegmentFigures:
    inside = uncertainty[mask]
    return SegmentFigures(
        area_px=int(inside.size),
        area_mm2=float(areas_mm2[mask].sum(dtype=np.float64)),
        mean_uncertainty=float(inside.mean(dtype=np.float64)) if inside.size else math.nan,
    )


def _rounded(value: float) -> float | None:
    return None if math.isnan(value) else round(value, _DECIMALS)
