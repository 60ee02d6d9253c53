"""Contours: a pixel is inside where its centre is, holes stay open, and contours of another image are refused."""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np
import numpy.typing as npt
import pytest
from pydicom.dataset import Dataset

from tests.dataset_phantom import structure_set
from tests.phantoms import AXIAL, OBLIQUE, CtPhantom
from ucseg_runtime.errors import GeometryError, InputError
from ucseg_runtime.polygons import fill_even_odd
from ucseg_training.data.rtstruct import labels_from_rtstruct
from ucseg_training.data.source import SourceImage

Points = npt.NDArray[np.float64]
NAMES = {"liver": 1, "spleen": 2}
RECTANGLE = np.array([[2.5, 3.5], [2.5, 9.5], [7.5, 9.5], [7.5, 3.5]])


def random_polygon(seed: int, corners: int) -> Points:
    """A star around the middle of a 30 x 40 plane, in no special place of the pixel grid."""
    rng = np.random.default_rng(seed)
    angles = np.sort(rng.uniform(0, 2 * np.pi, corners))
    radii = rng.uniform(3.0, 13.0, corners)
    return np.stack([15.3 + radii * np.sin(angles), 19.7 + 1.4 * radii * np.cos(angles)], axis=1)


@pytest.mark.parametrize("seed", range(8))
def test_pixels_are_those_whose_centre_lies_inside(seed: int) -> None:
    polygon = random_polygon(seed, 5 + 3 * seed)
    contour = np.float32(polygon[:, ::-1]).reshape(-1, 1, 2)  # OpenCV wants (x, y)
    expected = [[cv2.pointPolygonTest(contour, (x, y), False) > 0 for x in range(40)] for y in range(30)]
    np.testing.assert_array_equal(fill_even_odd([polygon], (30, 40)), expected)


def test_rectangle_between_the_centres_has_known_pixels() -> None:
    expected = np.zeros((12, 14), bool)
    expected[3:8, 4:10] = True
    np.testing.assert_array_equal(fill_even_odd([RECTANGLE], (12, 14)), expected)
    np.testing.assert_array_equal(fill_even_odd([RECTANGLE[::-1]], (12, 14)), expected)


def test_contour_inside_another_is_a_hole_and_one_inside_that_is_not() -> None:
    shrunk = [5.0 + (RECTANGLE - 5.0) * factor for factor in (0.6, 0.3)]
    both = fill_even_odd([RECTANGLE, shrunk[0]], (12, 14))
    outer, hole, island = (fill_even_odd([polygon], (12, 14)) for polygon in (RECTANGLE, *shrunk))
    assert hole.any()
    np.testing.assert_array_equal(both, outer & ~hole)
    np.testing.assert_array_equal(fill_even_odd([RECTANGLE, *shrunk], (12, 14)), (outer & ~hole) | island)


def test_neighbours_share_a_border_and_no_pixel() -> None:
    left = np.array([[1.0, 1.0], [1.0, 5.0], [8.0, 5.0], [8.0, 1.0]])  # borders on the centres
    right = left + (0.0, 4.0)
    planes = [fill_even_odd([polygon], (10, 12)).astype(int) for polygon in (left, right)]
    assert (planes[0] + planes[1]).max() == 1
    assert planes[0].sum() == planes[1].sum() == 7 * 4


def test_contour_that_reaches_outside_is_cut_off() -> None:
    wide = np.array([[-5.5, -5.5], [-5.5, 50.0], [50.0, 50.0], [50.0, -5.5]])
    assert fill_even_odd([wide], (6, 7)).all()
    assert not fill_even_odd([wide + 100.0], (6, 7)).any()


@pytest.mark.parametrize("corners", [0, 1, 2])
def test_contour_without_area_has_no_pixels(corners: int) -> None:
    assert not fill_even_odd([RECTANGLE[:corners]], (12, 14)).any()


# Structure sets


def image_of(phantom: CtPhantom) -> SourceImage:
    voxels = phantom.hu.astype(np.float32)[None]
    return SourceImage(voxels, phantom.geometry, phantom.frame_of_reference_uid)


@pytest.mark.parametrize("orientation", [AXIAL, OBLIQUE, (0.0, 1.0, 0.0, 0.0, 0.0, -1.0)])
def test_contours_in_millimetres_fall_on_their_slices(orientation: tuple[float, ...]) -> None:
    phantom = CtPhantom(shape=(6, 20, 24), orientation=orientation)  # type: ignore[arg-type]  # six numbers
    regions = {
        "Liver ": [(1, RECTANGLE), (2, RECTANGLE), (2, 5.0 + (RECTANGLE - 5.0) * 0.6)],
        "SPLEEN": [(2, RECTANGLE + 4.0)],
        "body": [(0, RECTANGLE)],
    }
    expected = np.zeros(phantom.shape, np.uint8)
    expected[1, 3:8, 4:10] = expected[2, 3:8, 4:10] = 1
    expected[2, 4:7, 5:8] = 0
    expected[2, 7:12, 8:14] = 2  # over the corner of the liver
    np.testing.assert_array_equal(
        labels_from_rtstruct(structure_set(phantom, regions), image_of(phantom), NAMES), expected
    )


def test_greater_label_has_the_voxel_where_regions_overlap() -> None:
    phantom = CtPhantom()
    regions = {"spleen": [(1, RECTANGLE)], "liver": [(1, RECTANGLE + 1.0)]}
    found = labels_from_rtstruct(structure_set(phantom, regions), image_of(phantom), NAMES)
    assert ((found == 2).sum(), (found == 1).sum()) == (30, 30 - 20)


def test_region_without_contours_is_an_absent_class() -> None:
    phantom = CtPhantom()
    structures = structure_set(phantom, {"liver": [(1, RECTANGLE)], "spleen": []})
    del structures.ROIContourSequence[0]  # of the spleen
    found = labels_from_rtstruct(structures, image_of(phantom), NAMES)
    assert set(np.unique(found)) == {0, 1}


def other_frame(structures: Dataset) -> None:
    structures.StructureSetROISequence[0].ReferencedFrameOfReferenceUID = "1.2.3"


def no_spleen(structures: Dataset) -> None:
    del structures.StructureSetROISequence[1]


def open_contour(structures: Dataset) -> None:
    structures.ROIContourSequence[0].ContourSequence[0].ContourGeometricType = "OPEN_PLANAR"


def no_corners(structures: Dataset) -> None:
    structures.ROIContourSequence[0].ContourSequence[0].ContourData = []


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (other_frame, "belongs to another frame of reference"),
        (no_spleen, "describes nothing called 'spleen'"),
        (open_contour, "of the kind OPEN_PLANAR"),
        (no_corners, "has no corners"),
    ],
)
def test_structure_set_that_says_too_little_is_refused(damage: Callable[[Dataset], None], reason: str) -> None:
    phantom = CtPhantom()
    structures = structure_set(phantom, {"liver": [(1, RECTANGLE)], "spleen": [(1, RECTANGLE)]})
    damage(structures)
    with pytest.raises(InputError, match=reason):
        labels_from_rtstruct(structures, image_of(phantom), NAMES)


@pytest.mark.parametrize("z", [1.4, -1.0, 10.0])
def test_contour_between_or_beyond_the_slices_is_refused(z: float) -> None:
    phantom = CtPhantom()
    structures = structure_set(phantom, {"liver": [(z, RECTANGLE)], "spleen": []})
    with pytest.raises(GeometryError, match="not on one of the image's slices"):
        labels_from_rtstruct(structures, image_of(phantom), NAMES)


def test_tilted_contour_is_refused() -> None:
    phantom = CtPhantom()
    structures = structure_set(phantom, {"liver": [(1, RECTANGLE)], "spleen": []})
    contour = structures.ROIContourSequence[1].ContourSequence[0]
    points = np.array(contour.ContourData, dtype=float).reshape(-1, 3)
    points[0, 2] += 2.0
    contour.ContourData = [f"{value:.4f}" for value in points.ravel()]
    with pytest.raises(GeometryError, match="not on one of the image's slices"):
        labels_from_rtstruct(structures, image_of(phantom), NAMES)
