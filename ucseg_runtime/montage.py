"""One picture of a result: outlines on the images beside the uncertainty. No text of the source images gets into it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeAlias

import cv2
import numpy as np
import numpy.typing as npt

from ucseg_runtime.arrays import BoolArray, UInt8Array
from ucseg_runtime.errors import OutputError
from ucseg_runtime.manifest import SegmentClass
from ucseg_runtime.segmentation import Segmentation
from ucseg_runtime.upright import View, fullest, some_mask, upright
from ucseg_runtime.volume import Volume

AXIAL_VIEWS = 6

Colour: TypeAlias = tuple[int, int, int]
"""Blue, green, red, as OpenCV has them."""

_COLUMNS = 3
_CELL_PX = 320
_GAP_PX = 4
BLOCK_GAP_PX = 20
_HEADING_PX = 40
_TINT = 0.18
_FAINT_OUTLINE = 0.35
_WHITE: Colour = (255, 255, 255)
INK: Colour = (225, 225, 225)
FAINT: Colour = (140, 140, 140)
PANEL: Colour = (28, 28, 28)


def montage_png(volume: Volume, segmentation: Segmentation) -> bytes:
    """A PNG of axial views over the extent of the segments, one coronal and one sagittal view, all of it twice.

    On the left the image (CT from −160 to 240 HU, others from the 1st to the 99th percentile), each segment outlined
    and tinted in its colour; on the right the uncertainty from 0 to 1 as a heat map, the segments outlined faintly.

    Args:
        volume: The image.
        segmentation: Its result, on the same grid; the uncertainty in float32.

    Raises:
        OutputError: The picture cannot be encoded.
    """
    encoded, data = cv2.imencode(".png", montage(volume, segmentation))
    if not encoded:
        raise OutputError("the picture could not be encoded as PNG.")
    return data.tobytes()


def montage(volume: Volume, segmentation: Segmentation) -> UInt8Array:
    """The picture of `montage_png`: uint8, shape (rows, columns, 3), blue-green-red."""
    views = _views(volume, segmentation)
    colours = {item.label: bgr(item) for item in segmentation.classes}
    images = [image_cell(view, colours) for view in views]
    heats = [heat_cell(view, list(colours)) for view in views]
    left = block("Segmentation", [*images, legend(segmentation.classes)])
    right = block("Uncertainty", [*heats, colour_bar()])
    gap = np.full((len(left), BLOCK_GAP_PX, 3), PANEL, dtype=np.uint8)
    return np.hstack([left, gap, right])


def bgr(item: SegmentClass) -> Colour:
    """The colour of a class."""
    red, green, blue = item.colour_rgb
    return blue, green, red


def _views(volume: Volume, segmentation: Segmentation) -> list[View]:
    """Axial views from the feet up, then the coronal and the sagittal plane with most voxels of any segment."""
    shown = upright(volume, segmentation)
    slices, y, x = _chosen_planes(shown.labels)
    return [*(shown.axial(z) for z in slices), shown.coronal(y), shown.sagittal(x)]


def _chosen_planes(labels: npt.NDArray[np.generic]) -> tuple[list[int], int, int]:
    """Axial indices spread over the segments, and the fullest coronal and sagittal index.

    The whole volume counts where nothing was found. Every second voxel along each axis is looked at, which is enough
    to choose.
    """
    mask = some_mask(labels)
    occupied = 2 * np.flatnonzero(mask.any(axis=(1, 2)))
    first, last = int(occupied[0]), int(occupied[-1])
    steps = (np.arange(AXIAL_VIEWS) + 0.5) / AXIAL_VIEWS
    slices = [round(first + step * (last - first)) for step in steps.tolist()]
    return slices, fullest(mask.sum(axis=(0, 2))), fullest(mask.sum(axis=(0, 1)))


def _heat(uncertainty: npt.NDArray[np.generic]) -> UInt8Array:
    levels = np.clip(uncertainty.astype(np.float32) * 255.0, 0.0, 255.0).astype(np.uint8)
    return np.asarray(cv2.applyColorMap(levels, cv2.COLORMAP_INFERNO), dtype=np.uint8)


def image_cell(view: View, colours: Mapping[int, Colour]) -> UInt8Array:
    """The image with each segment outlined and tinted."""
    picture = np.asarray(_resized(view, view.image), dtype=np.uint8)
    if picture.ndim == 2:
        picture = np.asarray(cv2.cvtColor(picture, cv2.COLOR_GRAY2BGR), dtype=np.uint8)
    for label, colour in colours.items():
        mask = _resized_mask(view, label)
        picture[mask] = np.rint((1.0 - _TINT) * picture[mask] + _TINT * np.array(colour))
        _outline(picture, mask, colour)
    return _centred(picture, view.sides)


def heat_cell(view: View, labels: Sequence[int]) -> UInt8Array:
    """The uncertainty; outlines are faint, because it is highest just below them."""
    picture = _heat(_resized(view, view.uncertainty))
    outlined = picture.copy()
    for label in labels:
        _outline(outlined, _resized_mask(view, label), _WHITE)
    blended = cv2.addWeighted(picture, 1.0 - _FAINT_OUTLINE, outlined, _FAINT_OUTLINE, 0.0)
    return _centred(np.asarray(blended, dtype=np.uint8), view.sides)


def _centred(picture: UInt8Array, sides: tuple[str, str]) -> UInt8Array:
    """A square cell around a picture, with letters for the sides of the patient."""
    height, width = picture.shape[:2]
    cell = np.zeros((_CELL_PX, _CELL_PX, 3), dtype=np.uint8)
    top, left = (_CELL_PX - height) // 2, (_CELL_PX - width) // 2
    cell[top : top + height, left : left + width] = picture
    write_text(cell, sides[0], (6, _CELL_PX // 2), FAINT)
    write_text(cell, sides[1], (_CELL_PX - 16, _CELL_PX // 2), FAINT)
    return cell


def _resized(view: View, plane: npt.NDArray[np.generic]) -> npt.NDArray[np.generic]:
    """A plane at its true proportions, as large as a cell allows."""
    height, width = _size_px(view)
    # Averaging is right for shrinking and makes blocks when enlarging.
    interpolation = cv2.INTER_AREA if height < plane.shape[0] else cv2.INTER_LINEAR
    return np.asarray(cv2.resize(plane, (width, height), interpolation=interpolation))


def _resized_mask(view: View, label: int) -> BoolArray:
    """One segment at the resolution of the cell, its border smoothed."""
    height, width = _size_px(view)
    mask = (view.labels == label).astype(np.uint8) * 255
    return np.asarray(cv2.resize(mask, (width, height), interpolation=cv2.INTER_LINEAR) > 127)


def _size_px(view: View) -> tuple[int, int]:
    height_mm, width_mm = (side * step for side, step in zip(view.labels.shape, view.pixel_mm, strict=True))
    scale = _CELL_PX / max(height_mm, width_mm)
    return max(1, round(height_mm * scale)), max(1, round(width_mm * scale))


def _outline(picture: UInt8Array, mask: BoolArray, colour: Colour) -> None:
    """Draw the borders of a mask of the same size; changes `picture`."""
    contours, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
    cv2.drawContours(picture, contours, -1, colour, 1, cv2.LINE_AA)


def block(title: str, cells: Sequence[UInt8Array]) -> UInt8Array:
    """Cells in rows of three under a heading."""
    rows = [np.hstack([_framed(cell) for cell in cells[i : i + _COLUMNS]]) for i in range(0, len(cells), _COLUMNS)]
    heading = np.full((_HEADING_PX, rows[0].shape[1], 3), PANEL, dtype=np.uint8)
    write_text(heading, title, (14, 27), INK, scale=0.65)
    return np.vstack([heading, *rows])


def _framed(cell: UInt8Array) -> UInt8Array:
    side = _CELL_PX + _GAP_PX
    bordered = np.full((side, side, 3), PANEL, dtype=np.uint8)
    bordered[_GAP_PX // 2 : -_GAP_PX // 2, _GAP_PX // 2 : -_GAP_PX // 2] = cell
    return bordered


def legend(classes: Sequence[SegmentClass]) -> UInt8Array:
    """A cell with the colours and names of the classes."""
    cell = np.full((_CELL_PX, _CELL_PX, 3), PANEL, dtype=np.uint8)
    step = min(28, (_CELL_PX - 50) // max(1, len(classes)))
    for row, item in enumerate(classes):
        top = 20 + row * step
        cv2.rectangle(cell, (20, top), (20 + 22, top + max(3, step // 2)), bgr(item), cv2.FILLED)
        write_text(cell, item.name, (54, top + max(3, step // 2)), INK, scale=min(0.5, step / 40))
    write_text(cell, "Research use only", (20, _CELL_PX - 16), FAINT)
    return cell


def colour_bar() -> UInt8Array:
    """A cell with the colours of the uncertainty."""
    cell = np.full((_CELL_PX, _CELL_PX, 3), PANEL, dtype=np.uint8)
    ramp = np.tile(np.linspace(0.0, 1.0, _CELL_PX - 40, dtype=np.float32), (18, 1))
    cell[24:42, 20 : _CELL_PX - 20] = _heat(ramp)
    write_text(cell, "0", (18, 62), INK)
    write_text(cell, "1 = least sure", (_CELL_PX - 150, 62), INK)
    write_text(cell, "Not calibrated", (20, _CELL_PX - 16), FAINT)
    return cell


def write_text(picture: UInt8Array, text: str, origin: tuple[int, int], colour: Colour, scale: float = 0.45) -> None:
    """Write on a picture from `origin` (x, y) on; what is not ASCII becomes a question mark."""
    plain = text.encode("ascii", "replace").decode()
    cv2.putText(picture, plain, origin, cv2.FONT_HERSHEY_SIMPLEX, scale, colour, 1, cv2.LINE_AA)
