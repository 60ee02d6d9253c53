"""Labels: placed on the grid of their image or refused, read by what their values mean, divided by largest share."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from tests.dataset_phantom import dataset, plane_fields
from tests.volume_phantom import OBLIQUE, STRAIGHT, centred_geometry
from ucseg_runtime.errors import GeometryError, InputError
from ucseg_runtime.geometry import VolumeGeometry
from ucseg_training.data.dataset_spec import DatasetSpec
from ucseg_training.data.label_grid import majority_labels, onto_image_grid, require_same_grid, straight_geometry
from ucseg_training.data.label_values import labels_from_values

SHAPE = (4, 5, 6)
IMAGE = centred_geometry(SHAPE, (3.0, 1.0, 2.0), OBLIQUE[:, ::-1])
LABELS = np.random.default_rng(0).integers(0, 3, SHAPE, dtype=np.uint8)
TURNS = [
    (axes, flips)
    for axes in itertools.permutations(range(3))
    for count in range(4)
    for flips in itertools.combinations(range(3), count)
]


def moved(geometry: VolumeGeometry, **change: Any) -> VolumeGeometry:  # noqa: ANN401
    """The grid shifted by (z, y, x) voxels, stretched along x, or turned about z by an angle in radians."""
    affine = geometry.affine.copy()
    affine[:3, 3] += affine[:3, :3] @ np.asarray(change.get("shift", (0, 0, 0)), dtype=float)
    affine[:3, 2] *= change.get("stretch", 1.0)
    angle = change.get("angle", 0.0)
    turn = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    affine[:3, :3] = turn @ affine[:3, :3]
    return VolumeGeometry(affine, geometry.shape)


# Grids


@pytest.mark.parametrize(("axes", "flips"), TURNS)
def test_label_whose_axes_run_otherwise_comes_back(axes: tuple[int, int, int], flips: tuple[int, ...]) -> None:
    turned = np.flip(LABELS.transpose(axes), flips)
    found = onto_image_grid(turned, IMAGE.permuted(axes).flipped(flips), IMAGE)
    np.testing.assert_array_equal(found, LABELS)


@pytest.mark.parametrize(("axes", "flips"), TURNS[::5])
def test_part_of_the_grid_is_filled_up_where_that_is_allowed(
    axes: tuple[int, int, int], flips: tuple[int, ...]
) -> None:
    box = np.s_[1:3, 0:4, 2:6]
    affine = IMAGE.affine.copy()
    affine[:3, 3] = IMAGE.lps_from_index((1, 0, 2))
    part = VolumeGeometry(affine, (2, 4, 4)).permuted(axes).flipped(flips)
    turned = np.flip(LABELS[box].transpose(axes), flips)
    expected = np.zeros_like(LABELS)
    expected[box] = LABELS[box]
    np.testing.assert_array_equal(onto_image_grid(turned, part, IMAGE, part=True), expected)
    with pytest.raises(GeometryError, match="another grid"):
        onto_image_grid(turned, part, IMAGE)


def test_single_slice_has_its_place_whatever_its_thickness() -> None:
    affine = IMAGE.affine.copy()
    affine[:3, 3] = IMAGE.lps_from_index((2, 0, 0))
    affine[:3, 0] *= 2.5
    found = onto_image_grid(LABELS[2:3], VolumeGeometry(affine, (1, 5, 6)), IMAGE, part=True)
    np.testing.assert_array_equal(found[2], LABELS[2])
    assert found.sum() == LABELS[2].sum()


@pytest.mark.parametrize(
    "change",
    [
        pytest.param({"shift": (0, 0, 0.2)}, id="a fifth of a voxel to the side"),
        pytest.param({"shift": (0.5, 0, 0)}, id="half a slice"),
        pytest.param({"shift": (1, 0, 0)}, id="a whole slice"),
        pytest.param({"stretch": 1.05}, id="five per cent larger"),
        pytest.param({"angle": 0.1}, id="turned by six degrees"),
        pytest.param({"angle": 0.8}, id="turned by forty-six degrees"),
    ],
)
@pytest.mark.parametrize("part", [False, True])
def test_label_on_another_grid_is_refused(change: dict[str, Any], part: bool) -> None:
    with pytest.raises(GeometryError, match=r"another grid than the image: 4 x 5 x 6 voxels of 3 x 1 x .* mm"):
        onto_image_grid(LABELS, moved(IMAGE, **change), IMAGE, part=part)


def test_rounding_in_headers_is_no_other_grid() -> None:
    found = onto_image_grid(LABELS, moved(IMAGE, shift=(0.004, -0.004, 0.004), angle=1e-4), IMAGE)
    np.testing.assert_array_equal(found, LABELS)


@pytest.mark.parametrize("shape", [(4, 5, 7), (4, 6, 5), (5, 5, 6)])
def test_label_of_another_shape_is_refused(shape: tuple[int, int, int]) -> None:
    with pytest.raises(GeometryError, match="another grid"):
        onto_image_grid(np.zeros(shape, np.uint8), VolumeGeometry(IMAGE.affine, shape), IMAGE)


def test_channels_have_to_share_a_grid() -> None:
    require_same_grid(IMAGE, moved(IMAGE, shift=(0, 0.01, 0)), "its channels")
    with pytest.raises(InputError, match="its channels lie on different grids"):
        require_same_grid(IMAGE, moved(IMAGE, shift=(0, 0.3, 0)), "its channels")


def test_image_without_geometry_lies_along_the_patient() -> None:
    geometry = straight_geometry((2, 3, 4), (3.0, 1.0, 0.5))
    assert geometry.spacing_mm == (3.0, 1.0, 0.5)
    np.testing.assert_array_equal(geometry.direction, STRAIGHT[:, ::-1])
    np.testing.assert_array_equal(geometry.lps_from_index((1, 2, 3)), (1.5, 2.0, 3.0))


# Fewer and more voxels


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        pytest.param([2, 2, 0, 0, 1, 1], [2, 0, 1], id="pairs keep their label"),
        pytest.param([0, 1], [0], id="background wins a tie"),
        pytest.param([2, 1], [1], id="the lowest label wins a tie"),
        pytest.param([0, 0, 1, 1, 1, 1, 1, 0], [0, 1, 1, 1], id="one voxel of two is outweighed by its neighbours"),
        pytest.param([0, 3, 1, 3], [3], id="the largest share wins, not the first"),
        pytest.param([1, 2], [1, 1, 2, 2], id="finer"),
        pytest.param([2, 0, 1], [2, 0, 1], id="the same grid"),
    ],
)
def test_voxel_has_the_label_of_its_largest_share(labels: list[int], expected: list[int]) -> None:
    found = majority_labels(np.array(labels, np.uint8).reshape(1, 1, -1), (1, 1, len(expected)))
    assert found.ravel().tolist() == expected
    assert found.dtype == np.uint8


# Values


@pytest.mark.parametrize("dtype", ["u1", "i2", "i8", "f4", "f8", "?"])
def test_values_of_any_type_are_labels(dtype: str) -> None:
    stored = np.array([[0, 1], [1, 0]]).astype(dtype)
    found = labels_from_values(stored, dataset())
    assert found.dtype == np.uint8
    assert found.tolist() == [[0, 1], [1, 0]]


def test_values_are_mapped_and_may_be_left_out() -> None:
    spec = dataset(labels={"kind": "values", "values": {255: 1, 4: 2, 9: 0}})
    assert labels_from_values(np.array([0, 4, 9, 255], np.int16), spec).tolist() == [0, 2, 0, 1]


@pytest.mark.parametrize(
    ("stored", "reason"),
    [
        (np.array([0, 1, 3, 7]), "belong to no class: 3, 7; expected 0, 1, 2"),
        (np.array([-1.0, 1.0]), "belong to no class: -1"),
        (np.arange(40), "belong to no class: 3, 4, 5, 6, 7 …"),
        (np.array([0.0, 0.5]), "not whole numbers"),
        (np.array([0.0, np.nan]), "not finite"),
        (np.array([1j]), "holds complex128; expected numbers"),
    ],
)
def test_values_that_belong_to_no_class_are_refused(stored: npt.NDArray[np.generic], reason: str) -> None:
    with pytest.raises(InputError, match=reason):
        labels_from_values(stored, dataset())


def test_mask_is_what_is_brighter_than_half() -> None:
    spec = DatasetSpec.model_validate(plane_fields())
    stored = np.array([0, 3, 127, 128, 250, 255], np.uint8)
    assert labels_from_values(stored, spec).tolist() == [0, 0, 0, 1, 1, 1]
    assert labels_from_values(np.zeros(3, np.uint8), spec).tolist() == [0, 0, 0]


def test_mask_of_ones_is_not_taken_for_an_empty_one() -> None:
    with pytest.raises(InputError, match="no value of the label is above 127; the greatest is 1"):
        labels_from_values(np.array([0, 1], np.uint8), DatasetSpec.model_validate(plane_fields()))
