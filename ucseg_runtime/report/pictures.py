"""Pictures that need no viewer: three planes for print and for browsers without WebGL, and one for lists."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from ucseg_runtime.arrays import UInt8Array
from ucseg_runtime.errors import OutputError
from ucseg_runtime.manifest import SegmentClass
from ucseg_runtime.montage import bgr, heat_cell, image_cell
from ucseg_runtime.upright import Upright, View, fullest_planes

PREVIEW_PX = 128


@dataclass(frozen=True)
class Picture:
    """A picture and what is to be seen on it.

    Attributes:
        png: The file.
        title: Which plane; counted as the sliders of the viewer do, on the image's own grid.
    """

    png: bytes
    title: str


def three_planes(shown: Upright, classes: tuple[SegmentClass, ...]) -> tuple[Picture, Picture, Picture]:
    """The axial, the coronal and the sagittal plane with most of the segments.

    On the left is the image with outlines, on the right the uncertainty.

    Raises:
        OutputError: A picture cannot be encoded.
    """
    z, y, x = fullest_planes(shown.labels)
    slices, rows, columns = shown.geometry.shape
    return (
        Picture(_png(_both(shown.axial(z), classes)), f"Axial, slice {z + 1} of {slices} from the feet"),
        Picture(_png(_both(shown.coronal(y), classes)), f"Coronal, slice {rows - y} of {rows} from the back"),
        Picture(_png(_both(shown.sagittal(x), classes)), f"Sagittal, slice {columns - x} of {columns} from the left"),
    )


def preview_png(shown: Upright, classes: tuple[SegmentClass, ...]) -> bytes:
    """The axial plane with most of the segments, a PNG of 128 × 128.

    Raises:
        OutputError: It cannot be encoded.
    """
    z, _, _ = fullest_planes(shown.labels)
    cell = image_cell(shown.axial(z), {item.label: bgr(item) for item in classes})
    small = cv2.resize(cell, (PREVIEW_PX, PREVIEW_PX), interpolation=cv2.INTER_AREA)
    return _png(np.asarray(small, dtype=np.uint8))


def _both(view: View, classes: tuple[SegmentClass, ...]) -> UInt8Array:
    colours = {item.label: bgr(item) for item in classes}
    return np.hstack([image_cell(view, colours), heat_cell(view, list(colours))])


def _png(picture: UInt8Array) -> bytes:
    encoded, data = cv2.imencode(".png", picture)
    if not encoded:
        raise OutputError("a picture of the report could not be encoded as PNG.")
    return data.tobytes()
