"""What is measured of a segment: known answers, and agreement with slow references."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest
from scipy.spatial.distance import pdist

from tests.phantoms import OBLIQUE, CtPhantom
from tests.results import CLASSES, nothing_found, segmentation_of, segmentation_on
from ucseg_runtime.diameter import largest_diameter_mm
from ucseg_runtime.segmentation import UNCERTAINTY_SCALE, measure, stored_uncertainty

PHANTOM = CtPhantom()


def diameter_by_all_pairs(labels: npt.NDArray[np.uint8], label: int, phantom: CtPhantom) -> float:
    """Largest distance of all vertices of the mesh: halfway between a voxel inside and a neighbour outside."""
    mask = np.pad(labels == label, 1)
    vertices = []
    for axis in range(3):
        for step in (-1, 1):
            outside = ~np.roll(mask, -step, axis)
            offset = np.zeros(3)
            offset[axis] = 0.5 * step
            vertices.append(np.argwhere(mask & outside) - 1 + offset)
    return float(pdist(phantom.geometry.lps_from_index(np.concatenate(vertices))).max())


@pytest.mark.parametrize("orientation", [CtPhantom().orientation, OBLIQUE])
@pytest.mark.parametrize("label", [1, 2, 3, 4])
def test_diameter_is_that_of_all_pairs_of_mesh_vertices(
    label: int, orientation: tuple[float, float, float, float, float, float]
) -> None:
    phantom = replace(PHANTOM, orientation=orientation)

    found = largest_diameter_mm(phantom.labels, label, phantom.geometry)

    assert found == pytest.approx(diameter_by_all_pairs(phantom.labels, label, phantom), rel=1e-9)


@pytest.mark.parametrize(
    ("corner", "diameter_mm"),
    [
        ((0, 0, 0), 2.5),  # one voxel: its longest side
        ((0, 0, 9), 10.0),  # ten voxels of 1 mm in a row
        ((4, 0, 0), 12.5),  # five voxels of 2.5 mm on top of each other
    ],
)
def test_diameter_of_a_bar_is_its_length(corner: tuple[int, int, int], diameter_mm: float) -> None:
    assert PHANTOM.spacing_mm == (2.5, 1.25, 1.0)
    labels = np.zeros(PHANTOM.shape, dtype=np.uint8)
    labels[tuple(slice(1, 2 + side) for side in corner)] = 1

    assert largest_diameter_mm(labels, 1, PHANTOM.geometry) == pytest.approx(diameter_mm)


def test_diameter_of_a_segment_in_two_parts_spans_both() -> None:
    labels = np.zeros(PHANTOM.shape, dtype=np.uint8)
    labels[2, 5, 3] = labels[2, 5, 40] = 1

    assert largest_diameter_mm(labels, 1, PHANTOM.geometry) == pytest.approx(38.0)


def test_percentile_is_the_least_stored_value_that_95_percent_do_not_exceed() -> None:
    labels = np.zeros(PHANTOM.shape, dtype=np.uint8)
    labels[3, 4, :40] = 2
    segmentation = segmentation_on(PHANTOM.geometry, labels)
    values = np.zeros(PHANTOM.shape, dtype=np.float32)
    values[3, 4, :40] = np.linspace(0.0, 1.0, 40)[::-1]

    measured = measure(replace(segmentation, uncertainty=values))[1]

    assert measured.uncertainty_p95 == round(37 / 39 * UNCERTAINTY_SCALE) / UNCERTAINTY_SCALE  # the 38th of 40


def test_figures_agree_with_numpy_on_the_whole_segment() -> None:
    segmentation = segmentation_of(PHANTOM)
    stored = stored_uncertainty(segmentation.uncertainty)

    for item in measure(segmentation)[:-1]:
        inside = PHANTOM.labels == item.label
        assert item.voxels == inside.sum()
        assert item.mean_uncertainty == pytest.approx(segmentation.uncertainty[inside].mean(dtype=np.float64))
        expected = np.percentile(stored[inside], 95, method="inverted_cdf") / UNCERTAINTY_SCALE
        assert item.uncertainty_p95 == pytest.approx(expected, abs=1e-12)


def test_a_segment_that_was_not_found_has_no_size_and_no_uncertainty() -> None:
    measurements = measure(nothing_found(PHANTOM))

    assert len(measurements) == len(CLASSES)
    for item in measurements:
        assert (item.voxels, item.volume_ml, item.largest_diameter_mm) == (0, 0.0, 0.0)
        assert np.isnan(item.mean_uncertainty)
        assert np.isnan(item.uncertainty_p95)
