"""What a segmentation must look like over its image, and how far a picture is from that.

An image is drawn in grey, so everything with a hue is overlay, and its hue says which segment it belongs to.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ucseg_runtime.manifest import SegmentClass

LEAST_CHROMA = 10.0
"""Length of a colour's difference from its own grey, of 255, from which on it is no grey."""
SAME_HUE_COSINE = 0.95
"""Two differences from grey that are nearer than this (18 degrees) are one hue; the closest classes are 32 apart."""
UNKNOWN = 255
"""Label of what is drawn in a hue that no class has."""
WINDOW_CENTRE_HU, WINDOW_WIDTH_HU = 40.0, 400.0
"""What the phantom's files ask for."""
LARGEST_OFFSET = 2

Picture = npt.NDArray[np.uint8]
Labels = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class SegmentShown:
    """How a segment was drawn.

    Attributes:
        iou: Of the pixels in its hue and those where it must be, in [0, 1].
        colour_error: Largest difference of its outline from its colour over the three channels, of 255.
    """

    iou: float
    colour_error: float


@dataclass(frozen=True)
class Comparison:
    """A picture against what it must show.

    Attributes:
        iou: Of all coloured pixels and all that must be, in [0, 1].
        segments: By label, those that must be in the picture.
    """

    iou: float
    segments: Mapping[int, SegmentShown]

    @property
    def worst_iou(self) -> float:
        """The least of them all."""
        return min([self.iou, *(item.iou for item in self.segments.values())])

    @property
    def worst_colour_error(self) -> float:
        """The largest over the segments."""
        return max((item.colour_error for item in self.segments.values()), default=0.0)


def fitted(plane: Labels, pixel_spacing_mm: Sequence[float], canvas: tuple[int, int]) -> Labels:
    """A plane as a viewer draws it that fits the whole image into its canvas: rows down, columns to the right.

    Args:
        plane: Values of one slice, shape (y, x).
        pixel_spacing_mm: Along (y, x).
        canvas: Height and width in pixels.

    Returns:
        The value under each pixel's centre, shape `canvas`; 0 beside the image.
    """
    extent_mm = np.array(plane.shape) * pixel_spacing_mm
    pixel_mm = float((extent_mm / canvas).max())
    indices = []
    for size, extent, spacing, pixels in zip(plane.shape, extent_mm, pixel_spacing_mm, canvas, strict=True):
        place_mm = (np.arange(pixels) + 0.5 - pixels / 2) * pixel_mm + extent / 2
        indices.append(np.clip(np.floor(place_mm / spacing).astype(int), -1, size))
    drawn: Labels = np.pad(plane, 1)[np.ix_(indices[0] + 1, indices[1] + 1)]
    return drawn


def compare(picture: Picture, expected: Labels, classes: Sequence[SegmentClass]) -> Comparison:
    """Find the overlay in a picture by its colours.

    Args:
        picture: RGB, shape (height, width, 3).
        expected: Label under each pixel, shape (height, width).
        classes: With their colours.
    """
    drawn = _drawn_labels(picture, classes)
    return Comparison(
        iou=_iou(drawn > 0, expected > 0),
        segments={
            item.label: SegmentShown(
                _iou(drawn == item.label, expected == item.label),
                _colour_error(picture[expected == item.label], item.colour_rgb),
            )
            for item in classes
            if (expected == item.label).any()
        },
    )


def image_offset(picture: Picture, hu: npt.NDArray[np.int16], pixel_spacing_mm: Sequence[float]) -> tuple[int, int]:
    """By how many voxels along (y, x) an image lies beside its place: the shift that looks most like the picture.

    Args:
        picture: RGB, shape (height, width, 3), without an overlay.
        hu: The slice, shape (y, x).
        pixel_spacing_mm: Along (y, x).
    """
    lowest = WINDOW_CENTRE_HU - WINDOW_WIDTH_HU / 2
    grey = np.clip((hu - lowest) / WINDOW_WIDTH_HU * 255.0, 0.0, 255.0).astype(np.uint8)
    canvas = (picture.shape[0], picture.shape[1])

    def difference(shift: tuple[int, int]) -> float:
        expected = fitted(np.roll(grey, shift, axis=(0, 1)), pixel_spacing_mm, canvas)
        return float(np.abs(picture[..., 0] - expected.astype(np.float64)).mean())

    shifts = range(-LARGEST_OFFSET, LARGEST_OFFSET + 1)
    return min(itertools.product(shifts, shifts), key=difference)


def _drawn_labels(picture: Picture, classes: Sequence[SegmentClass]) -> Labels:
    chroma = _chroma(picture)
    length = np.linalg.norm(chroma, axis=-1)
    hues = _chroma(np.array([item.colour_rgb for item in classes]))
    hues /= np.linalg.norm(hues, axis=-1, keepdims=True)
    cosines = chroma @ hues.T / np.maximum(length, 1e-6)[..., None]  # (height, width, classes)
    labels: Labels = np.array([item.label for item in classes], dtype=np.uint8)[cosines.argmax(axis=-1)]
    labels[cosines.max(axis=-1) < SAME_HUE_COSINE] = UNKNOWN
    labels[length < LEAST_CHROMA] = 0
    return labels


def _chroma(colours: npt.NDArray[np.integer]) -> npt.NDArray[np.float64]:
    """Difference of each colour from the grey of its mean."""
    chroma: npt.NDArray[np.float64] = colours - colours.mean(axis=-1, keepdims=True)
    return chroma


def _colour_error(pixels: Picture, colour_rgb: Sequence[int]) -> float:
    """The outline is opaque, so the hundredth of a segment's pixels with the most hue is in its own colour."""
    length = np.linalg.norm(_chroma(pixels), axis=-1)
    outline = np.median(pixels[length >= np.quantile(length, 0.99)], axis=0)
    return float(np.abs(outline - colour_rgb).max())


def _iou(first: npt.NDArray[np.bool_], second: npt.NDArray[np.bool_]) -> float:
    union = int((first | second).sum())
    return float((first & second).sum() / union) if union else 1.0
