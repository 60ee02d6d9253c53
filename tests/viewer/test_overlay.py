"""The comparison of pictures itself, on pictures that are painted here."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

from tests.results import CLASSES
from tests.viewer.cases import SERIES, WRONG_MASKS
from tests.viewer.overlay import Labels, Picture, compare, fitted, image_offset
from tests.viewer.viewing import is_as_expected

PHANTOM = SERIES["axial"]
CANVAS = (320, 400)
SLICE = 9
LABELS = PHANTOM.labels


def on_canvas(labels: Labels) -> Labels:
    return fitted(labels[SLICE], PHANTOM.spacing_mm[1:], CANVAS)


def painted(labels: Labels, colours: npt.NDArray[np.uint8]) -> Picture:
    """Grey, with every label's colour half over it, and opaque in a corner as an outline is."""
    picture = np.full((*CANVAS, 3), 96, dtype=np.uint8)
    for label in np.unique(labels[labels > 0]):
        place = np.argwhere(labels == label)
        picture[tuple(place.T)] = (96 + colours[label - 1].astype(int)) // 2
        picture[tuple(place[: max(len(place) // 20, 1)].T)] = colours[label - 1]
    return picture


COLOURS = np.array([item.colour_rgb for item in CLASSES], dtype=np.uint8)


def test_plane_fills_the_canvas_along_its_longer_side_and_is_centred() -> None:
    plane = np.array([[1, 2], [3, 4]], dtype=np.uint8)

    drawn = fitted(plane, (2.0, 1.0), (8, 8))  # 4 mm high, 2 mm wide: 2 pixels per mm

    np.testing.assert_array_equal(drawn[:4], np.tile([0, 0, 1, 1, 2, 2, 0, 0], (4, 1)))
    np.testing.assert_array_equal(drawn[4:], np.tile([0, 0, 3, 3, 4, 4, 0, 0], (4, 1)))


def test_right_picture_is_as_expected_in_every_pixel() -> None:
    shown = compare(painted(on_canvas(LABELS), COLOURS), on_canvas(LABELS), CLASSES)

    assert shown.worst_iou == 1.0
    assert shown.worst_colour_error == 0.0
    assert set(shown.segments) == {1, 2, 3, 4}, "the fifth class is not in the phantom"


@pytest.mark.parametrize("mistake", WRONG_MASKS)
def test_mask_that_is_mirrored_or_shifted_by_two_voxels_is_not_as_expected(mistake: str) -> None:
    picture = painted(on_canvas(WRONG_MASKS[mistake](LABELS)), COLOURS)

    assert not is_as_expected(compare(picture, on_canvas(LABELS), CLASSES))


def test_colours_of_neighbouring_segments_are_not_as_expected() -> None:
    """As OHIF 3.13 draws a label map whose first segment is the background."""
    neighbours = np.concatenate([np.zeros((1, 3), np.uint8), COLOURS[:-1]])

    shown = compare(painted(on_canvas(LABELS), neighbours), on_canvas(LABELS), CLASSES)

    assert shown.segments[1].iou == 0.0, "black has no hue"
    assert shown.worst_colour_error > 50.0


def test_other_shade_of_the_same_hue_is_not_as_expected() -> None:
    shown = compare(painted(on_canvas(LABELS), COLOURS // 2), on_canvas(LABELS), CLASSES)

    assert shown.worst_iou == 1.0
    assert not is_as_expected(shown)


def test_empty_picture_is_not_as_expected() -> None:
    shown = compare(np.full((*CANVAS, 3), 96, dtype=np.uint8), on_canvas(LABELS), CLASSES)

    assert shown.iou == 0.0
    assert not is_as_expected(shown)


def test_empty_slice_is_as_expected_when_nothing_is_drawn() -> None:
    nothing = np.zeros(CANVAS, dtype=np.uint8)

    assert is_as_expected(compare(painted(nothing, COLOURS), nothing, CLASSES))
    assert not is_as_expected(compare(painted(on_canvas(LABELS), COLOURS), nothing, CLASSES))


@pytest.mark.parametrize("offset", [(0, 0), (1, 0), (0, -2)])
def test_offset_of_an_image_is_found(offset: tuple[int, int]) -> None:
    hu = PHANTOM.hu[SLICE]
    grey = np.clip((np.roll(hu, offset, axis=(0, 1)) + 160.0) / 400.0 * 255.0, 0.0, 255.0).astype(np.uint8)
    picture = np.repeat(fitted(grey, PHANTOM.spacing_mm[1:], CANVAS)[..., None], 3, axis=-1)

    assert image_offset(picture, hu, PHANTOM.spacing_mm[1:]) == offset
