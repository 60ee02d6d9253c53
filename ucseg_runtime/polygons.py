"""Masks to polygons and back."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np

from ucseg_runtime.arrays import BoolArray, Float64Array


def outlines(mask: BoolArray) -> list[Float64Array]:
    """Closed polygons around a mask, halfway between the pixels inside and outside.

    The centre of every pixel lies at least 0.35 pixels away from every line, so that any reader which asks for centres
    gets the mask back. Areas are those of the pixels, but for corners, of which an eighth of a pixel is cut off or
    filled in. Pixels that touch at a corner belong together.

    A hole is joined to the outline around it by a way there and back, the keyhole: the result is right whether a reader
    takes several polygons together by union, by exclusive or, by the even-odd or by the non-zero winding rule.

    Args:
        mask: bool, shape (y, x).

    Returns:
        Corners (y, x), float64, shape (corners, 2), in pixels; a pixel's centre has whole coordinates. The first corner
        is not repeated at the end.

    Source: DICOM PS3.3 C.8.8.6.3, inner and outer contours.
    """
    doubled = _doubled(mask)
    contours, hierarchy = cv2.findContours(doubled, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
    if not contours:
        return []
    parents = hierarchy[0][:, 3].tolist()
    polygons = [0.5 * contour.reshape(-1, 2)[:, ::-1] - 1.0 for contour in contours]
    found = {number: polygon for number, polygon in enumerate(polygons) if parents[number] < 0}
    for hole, parent in zip(polygons, parents, strict=True):
        if parent >= 0:
            found[parent] = _joined(found[parent], hole)
    return list(found.values())


def _doubled(mask: BoolArray) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    """Where the linearly interpolated mask is at least one half, at half steps; a margin of one pixel around.

    Pixel (y, x) is element (2 y + 2, 2 x + 2).
    """
    padded = np.pad(mask, 1).astype(np.uint8)
    doubled = np.zeros([2 * side - 1 for side in padded.shape], dtype=np.uint8)
    doubled[::2, ::2] = padded
    doubled[1::2, ::2] = padded[:-1] | padded[1:]
    doubled[::2, 1::2] = padded[:, :-1] | padded[:, 1:]
    four = padded[:-1, :-1] + padded[1:, :-1] + padded[:-1, 1:] + padded[1:, 1:]
    doubled[1::2, 1::2] = four >= 2
    return doubled


def _joined(outer: Float64Array, hole: Float64Array) -> Float64Array:
    """A polygon around `outer`, from its corner next to the hole to the hole, around it, and back the same way."""
    distance = np.square(outer[:, None] - hole).sum(axis=-1)
    at_outer, at_hole = (int(place) for place in np.unravel_index(int(distance.argmin()), distance.shape))
    around = np.roll(hole, -at_hole, axis=0)
    way = _way_between_pixels(outer[at_outer], hole[at_hole])
    return np.concatenate([outer[: at_outer + 1], way, around, around[:1], way[::-1], outer[at_outer:]])


def _way_between_pixels(start: Float64Array, end: Float64Array) -> Float64Array:
    """Corners of a way along the borders of pixels: on a line through centres, readers disagree what is inside."""
    first, last = np.floor(start) + 0.5, np.floor(end) + 0.5
    return np.array([first, (first[0], last[1]), last])


def fill_even_odd(polygons: Sequence[Float64Array], shape: tuple[int, ...]) -> BoolArray:
    """Which pixel centres lie inside an odd number of closed polygons.

    Args:
        polygons: Corners (y, x), shape (corners, 2), in pixels; a pixel's centre has whole coordinates. The last corner
            is joined to the first.
        shape: Of the plane, (y, x).

    Returns:
        bool, of that shape. A centre on a lower or right border belongs to the neighbour, so that polygons which share
        a border share no pixel.
    """
    rows, columns = shape
    crossings = np.zeros((rows, columns + 1), dtype=np.int64)
    for polygon in polygons:
        y0, x0 = polygon.T
        y1, x1 = np.roll(polygon, -1, axis=0).T
        first = np.clip(np.ceil(np.minimum(y0, y1)), 0, rows).astype(np.int64)
        stop = np.clip(np.ceil(np.maximum(y0, y1)), 0, rows).astype(np.int64)
        count = stop - first  # rows whose centre line each edge crosses
        edge = np.repeat(np.arange(len(polygon)), count)
        row = np.arange(len(edge)) - np.repeat(np.cumsum(count) - count, count) + first[edge]
        x = x0[edge] + (row - y0[edge]) * (x1[edge] - x0[edge]) / (y1[edge] - y0[edge])
        np.add.at(crossings, (row, np.clip(np.ceil(x), 0, columns).astype(np.int64)), 1)
    inside: BoolArray = np.cumsum(crossings, axis=1)[:, :columns] % 2 == 1
    return inside
