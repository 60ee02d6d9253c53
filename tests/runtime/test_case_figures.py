"""What is measured of a case: known answers on phantoms."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest

from tests.phantoms import CtPhantom, all_orientations
from tests.results import nothing_found, segmentation_of, segmentation_on
from ucseg_runtime.case_figures import case_figures, image_figures
from ucseg_runtime.segmentation import Segmentation, measure, ready_to_write
from ucseg_runtime.volume import Volume

PHANTOM = CtPhantom()
LARGE = replace(PHANTOM, shape=(16, 18, 20), spacing_mm=(12.0, 12.0, 12.0))
"""With organs of 5 ml and more."""
CUBE = (slice(2, 7), slice(5, 12), slice(10, 20))


def figures_of(segmentation: Segmentation, phantom: CtPhantom = PHANTOM) -> Mapping[str, float]:
    volume = Volume(phantom.hu, phantom.geometry, "CT")
    return case_figures(volume, ready_to_write(segmentation), measure(segmentation))


def ct(voxels: npt.NDArray[np.float32], modality: str = "CT") -> Mapping[str, float]:
    return image_figures(Volume(voxels, CtPhantom(shape=voxels.shape).geometry, modality))


def cube(uncertainty: npt.NDArray[np.float32]) -> Segmentation:
    """Label 1 in a box, with the given uncertainty everywhere."""
    labels = np.zeros(PHANTOM.shape, dtype=np.uint8)
    labels[CUBE] = 1
    return replace(segmentation_on(PHANTOM.geometry, labels), uncertainty=uncertainty)


def test_grid_of_the_phantom() -> None:
    found = image_figures(Volume(PHANTOM.hu, PHANTOM.geometry, "CT"))

    assert {key: found[key] for key in ("slice_spacing_mm", "pixel_spacing_mm", "slices")} == {
        "slice_spacing_mm": 2.5,
        "pixel_spacing_mm": 1.25,
        "slices": 10.0,
    }
    extents = [found[f"extent_{direction}_mm"] for direction in ("left", "back", "up")]
    assert extents == pytest.approx([48 * 1.0, 40 * 1.25, 10 * 2.5])


def test_percentiles_leave_air_out_and_are_in_hu() -> None:
    voxels = np.full((10, 20, 100), -1000.0, dtype=np.float32)
    voxels[:, :, :50] = np.linspace(0.0, 100.0, 50, dtype=np.float32)

    found = ct(voxels)

    assert found["air"] == pytest.approx(0.5)
    assert [found[f"hu_p{percent:02}"] for percent in (5, 25, 50, 75, 95)] == pytest.approx(
        [5.0, 25.0, 50.0, 75.0, 95.0], abs=1.1
    )


def test_padding_below_air_counts_as_air() -> None:
    voxels = np.full((4, 20, 100), -2000.0, dtype=np.float32)
    voxels[:, :, :50] = 40.0

    assert ct(voxels)["air"] == pytest.approx(0.5)
    assert ct(voxels)["hu_p05"] == 40.0


@pytest.mark.parametrize("deviation_hu", [5.0, 40.0])
def test_noise_is_its_standard_deviation_whatever_lies_below(deviation_hu: float) -> None:
    steps = np.repeat(np.arange(10, dtype=np.float32) * 30.0, 40)
    noise = np.random.default_rng(1).normal(0.0, deviation_hu, (10, 50, 400))

    assert ct((steps + noise).astype(np.float32))["noise_hu"] == pytest.approx(deviation_hu, rel=0.05)


def test_an_image_of_air_alone_has_no_percentiles() -> None:
    found = ct(np.full((4, 20, 20), -1000.0, dtype=np.float32))

    assert found["air"] == 1.0
    assert not [key for key in found if key.startswith(("hu_", "noise"))]


def test_intensities_of_other_modalities_are_left_alone() -> None:
    found = ct(np.ones((4, 20, 20), dtype=np.float32), modality="MR")

    assert sorted(found) == [
        *("extent_back_mm", "extent_left_mm", "extent_up_mm"),
        *("pixel_spacing_mm", "slice_spacing_mm", "slices"),
    ]


def test_uncertainty_inside_and_at_the_border_are_told_apart() -> None:
    uncertainty = np.full(PHANTOM.shape, 0.8, dtype=np.float32)
    inner = tuple(slice(part.start + 1, part.stop - 1) for part in CUBE)
    uncertainty[inner] = 0.2

    found = figures_of(cube(uncertainty))

    assert found["uncertainty/1"] == pytest.approx(0.2, abs=1e-5)
    assert found["border_uncertainty/1"] == pytest.approx(0.8, abs=1e-5)


def test_the_end_of_the_image_is_no_border() -> None:
    labels = np.ones(PHANTOM.shape, dtype=np.uint8)

    found = figures_of(segmentation_on(PHANTOM.geometry, labels))

    assert "border_uncertainty/1" not in found
    assert found["uncertainty/1"] == pytest.approx(0.5, abs=1e-4)


def test_a_segment_of_one_voxel_is_all_border() -> None:
    labels = np.zeros(PHANTOM.shape, dtype=np.uint8)
    labels[5, 20, 20] = 1

    found = figures_of(segmentation_on(PHANTOM.geometry, labels))

    assert "uncertainty/1" not in found
    assert 0.0 < found["border_uncertainty/1"] < 1.0


def test_classes_that_are_not_found_have_no_place_and_no_volume() -> None:
    found = figures_of(segmentation_of(LARGE), LARGE)

    assert found["found"] == 4.0
    assert [found[f"present/{label}"] for label in range(1, 6)] == [1.0, 1.0, 1.0, 1.0, 0.0]
    assert "volume_ml/5" not in found
    assert not [key for key in found if key.startswith(("left_mm", "up_mm")) and "5" in key]


def test_nothing_found_at_all() -> None:
    found = figures_of(nothing_found(PHANTOM))

    assert found["found"] == 0.0
    assert not [key for key in found if key.startswith("uncertainty")]


def test_places_are_those_of_the_patient_whatever_the_orientation() -> None:
    for phantom in (replace(LARGE, orientation=other.orientation, flip=other.flip) for other in all_orientations()):
        found = figures_of(segmentation_of(phantom), phantom)

        # The liver is on the patient's right, the spleen on the left; the spine is behind, the lung above.
        assert found["left_mm/1-2"] < 0.0
        assert found["back_mm/1-3"] < 0.0
        assert found["up_mm/1-4"] < 0.0


def test_a_few_voxels_far_away_do_not_move_a_segment() -> None:
    labels = LARGE.labels
    before = figures_of(segmentation_on(LARGE.geometry, labels), LARGE)
    labels[0, 0, :2] = 1

    after = figures_of(segmentation_on(LARGE.geometry, labels), LARGE)

    assert after["left_mm/1-2"] == before["left_mm/1-2"]


def test_small_segments_have_no_place() -> None:
    assert not [key for key in figures_of(segmentation_of(PHANTOM)) if key.startswith("left_mm")]


def test_slabs_of_memory_do_not_change_counts() -> None:
    """Sums slice by slice equal those of the whole array."""
    segmentation = segmentation_of(PHANTOM)
    found = figures_of(segmentation)
    for item in measure(segmentation)[:-1]:
        mask = segmentation.label_map == item.label
        padded = np.pad(segmentation.label_map, 1, mode="edge")
        border = np.zeros(mask.shape, dtype=bool)
        for axis in range(3):
            for step in (-1, 1):
                border |= np.roll(padded, step, axis)[1:-1, 1:-1, 1:-1] != segmentation.label_map
        for key, part in (("uncertainty", mask & ~border), ("border_uncertainty", mask & border)):
            if part.any():
                expected = float(segmentation.uncertainty[part].mean())
                assert found[f"{key}/{item.label}"] == pytest.approx(expected, abs=1e-4)
