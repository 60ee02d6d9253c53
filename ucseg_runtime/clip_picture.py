"""One picture of a clip's result: outlines and uncertainty of a few frames, and below them the time line."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np

from ucseg_runtime.arrays import Float32Array, Float64Array, UInt8Array
from ucseg_runtime.errors import OutputError
from ucseg_runtime.manifest import SegmentClass
from ucseg_runtime.montage import (
    BLOCK_GAP_PX,
    FAINT,
    INK,
    PANEL,
    Colour,
    bgr,
    block,
    colour_bar,
    heat_cell,
    image_cell,
    legend,
    write_text,
)
from ucseg_runtime.timeline import Timeline
from ucseg_runtime.upright import View

SHOWN_FRAMES = 5

_PLOT_PX = 260
_MARGIN_PX = 60
_MEAN: Colour = (90, 200, 250)
_P95: Colour = (60, 90, 230)


class ClipPicture:
    """Collects the frames that are shown while a clip is segmented, so that none of them is read twice.

    Args:
        frames: Number of frames of the clip.
        classes: Of the model.
    """

    def __init__(self, frames: int, classes: Sequence[SegmentClass]) -> None:
        spread = np.linspace(0, frames - 1, min(frames, SHOWN_FRAMES)).round().astype(int)
        self._shown = frozenset(spread.tolist())
        self._classes = tuple(classes)
        self._cells: list[tuple[UInt8Array, UInt8Array]] = []  # the image and the uncertainty of a frame

    def add(self, frame: int, image: UInt8Array, labels: UInt8Array, uncertainty: Float32Array) -> None:
        """Take a frame if it is one of those that are shown.

        Args:
            frame: Place in the clip, from 0.
            image: uint8, shape (channels, rows, columns); red, green, blue, or grey.
            labels: uint8, shape (rows, columns).
            uncertainty: float32, same shape, in [0, 1].
        """
        if frame not in self._shown:
            return
        shown = np.ascontiguousarray(np.moveaxis(image[::-1], 0, -1)) if len(image) == 3 else image[0]
        view = View(shown, labels, uncertainty, (1.0, 1.0), (str(frame + 1), ""))
        colours = {item.label: bgr(item) for item in self._classes}
        self._cells.append((image_cell(view, colours), heat_cell(view, list(colours))))

    def png(self, timeline: Timeline) -> bytes:
        """The picture, once all frames were added.

        Raises:
            OutputError: It cannot be encoded.
        """
        images, heats = [image for image, _ in self._cells], [heat for _, heat in self._cells]
        left = block("Segmentation", [*_filled(images), legend(self._classes)])
        right = block("Uncertainty", [*_filled(heats), colour_bar()])
        gap = np.full((len(left), BLOCK_GAP_PX, 3), PANEL, dtype=np.uint8)
        upper = np.hstack([left, gap, right])
        encoded, data = cv2.imencode(".png", np.vstack([upper, _plot(timeline, upper.shape[1])]))
        if not encoded:
            raise OutputError("the picture could not be encoded as PNG.")
        return data.tobytes()


def _filled(cells: Sequence[UInt8Array]) -> list[UInt8Array]:
    """As many cells as there would be for a long clip: rows of a block are full."""
    missing = SHOWN_FRAMES - len(cells)
    return [*cells, *(np.full_like(cells[0], PANEL) for _ in range(missing))]


def _plot(timeline: Timeline, width: int) -> UInt8Array:
    """Uncertainty from 0 to 1, and the area of each segment as a share of the largest, over the frames."""
    panel = np.full((_PLOT_PX, width, 3), PANEL, dtype=np.uint8)
    left, right, top, bottom = _MARGIN_PX, width - _MARGIN_PX, 50, _PLOT_PX - 40
    cv2.rectangle(panel, (left, top), (right, bottom), FAINT, 1)
    write_text(panel, "1", (left - 18, top + 5), FAINT)
    write_text(panel, "0", (left - 18, bottom + 5), FAINT)
    write_text(panel, "frame 1", (left, bottom + 24), FAINT)
    write_text(panel, f"{len(timeline.figures)}", (right - 30, bottom + 24), FAINT)
    figures = timeline.figures
    lines: list[tuple[str, Colour, Float64Array]] = [
        ("mean uncertainty", _MEAN, np.array([figure.mean_uncertainty for figure in figures])),
        ("95th percentile of the uncertainty", _P95, np.array([figure.uncertainty_p95 for figure in figures])),
    ]
    for index, item in enumerate(timeline.classes):
        areas = np.array([figure.segments[index].area_px for figure in figures], dtype=np.float64)
        largest = int(areas.max())
        lines.append((f"area of {item.name}, at most {largest} px", bgr(item), areas / max(largest, 1)))
    x = left
    for text, colour, values in lines:
        _draw_line(panel, values, colour, (left, right, top, bottom))
        cv2.line(panel, (x, 25), (x + 24, 25), colour, 2, cv2.LINE_AA)
        write_text(panel, text, (x + 32, 30), INK)
        x += 60 + 9 * len(text)
    return panel


def _draw_line(panel: UInt8Array, values: Float64Array, colour: Colour, frame: tuple[int, int, int, int]) -> None:
    left, right, top, bottom = frame
    x = np.linspace(left, right, len(values)) if len(values) > 1 else np.array([(left + right) / 2])
    points = np.stack([x, bottom - values * (bottom - top)], axis=-1).round().astype(np.int32)
    if len(points) == 1:
        cv2.circle(panel, (int(points[0, 0]), int(points[0, 1])), 3, colour, cv2.FILLED, cv2.LINE_AA)
    else:
        cv2.polylines(panel, [points], False, colour, 1, cv2.LINE_AA)
