"""Polygons around masks: filled again, by whatever rule, they are the mask."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from matplotlib.path import Path as Polygon
from scipy import ndimage

from ucseg_runtime.polygons import fill_even_odd, outlines

Mask = npt.NDArray[np.bool_]


def from_rows(*rows: str) -> Mask:
    return np.array([[pixel == "#" for pixel in row] for row in rows])


MASKS = {
    "one pixel": from_rows("...", ".#.", "..."),
    "row": from_rows(".....", ".###.", "....."),
    "up to the border": from_rows("##", "##"),
    "touching at a corner": from_rows("#..", ".#.", "..#"),
    "one-pixel hole": from_rows("###", "#.#", "###"),
    "island in a hole": from_rows("#######", "#.....#", "#..#..#", "#.....#", "#######"),
    "two holes": from_rows("#####", "#.#.#", "#####"),
    "holes that touch at a corner": from_rows("#####", "#.###", "##.##", "#####"),
    "open at a corner": from_rows(".####", "#.#.#", "#####"),
    "nothing": from_rows("...", "..."),
    **{f"blobs {seed}": ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=(40, 52)), 2) > 0
       for seed in range(4)},
    **{f"noise {seed}": np.random.default_rng(seed).random((23, 31)) > 0.45 for seed in range(4)},
}  # fmt: skip


@pytest.fixture(params=MASKS.values(), ids=MASKS.keys())
def mask(request: pytest.FixtureRequest) -> Mask:
    chosen: Mask = request.param
    return chosen


def pixels_inside(polygon: npt.NDArray[np.float64], shape: tuple[int, ...]) -> Mask:
    """By matplotlib, which knows nothing of ours."""
    centres = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), axis=-1).reshape(-1, 2)
    return Polygon(np.concatenate([polygon, polygon[:1]]), closed=True).contains_points(centres).reshape(shape)


def test_even_odd_over_all_polygons_gives_the_mask_back(mask: Mask) -> None:
    np.testing.assert_array_equal(fill_even_odd(outlines(mask), mask.shape), mask)


def test_union_and_exclusive_or_of_single_polygons_give_the_mask_back(mask: Mask) -> None:
    union, odd = np.zeros_like(mask), np.zeros_like(mask)
    for polygon in outlines(mask):
        inside = pixels_inside(polygon, mask.shape)
        union |= inside
        odd ^= inside
    np.testing.assert_array_equal(union, mask)
    np.testing.assert_array_equal(odd, mask)


def test_lines_keep_away_from_the_centres_of_pixels(mask: Mask) -> None:
    for shift in np.array([(0.3, 0.0), (-0.3, 0.0), (0.0, 0.3), (0.0, -0.3), (0.2, 0.2), (-0.2, -0.2)]):
        moved = [polygon + shift for polygon in outlines(mask)]
        np.testing.assert_array_equal(fill_even_odd(moved, mask.shape), mask)


def test_area_of_a_disc_is_that_of_its_pixels() -> None:
    y, x = np.mgrid[:101, :101]
    disc = np.hypot(y - 50, x - 50) < 40
    (polygon,) = outlines(disc)
    y0, x0 = polygon.T
    area = 0.5 * abs(np.dot(y0, np.roll(x0, 1)) - np.dot(x0, np.roll(y0, 1)))

    assert area == pytest.approx(disc.sum(), rel=1e-3)
