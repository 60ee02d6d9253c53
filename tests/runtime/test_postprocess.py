"""Restoring: labels are those of a slow reference, ties go to background, and clean-up keeps what it should."""

from __future__ import annotations

import numpy as np
import pytest

from tests.fake_backend import FAKE_ENGINE
from tests.model_phantom import ModelPhantom, manifest_fields
from tests.volume_phantom import STRAIGHT, centred_geometry, orientations
from ucseg_runtime.backends.graphs import GRAPHS
from ucseg_runtime.errors import BackendError
from ucseg_runtime.geometry import VolumeGeometry
from ucseg_runtime.manifest import Manifest, Postprocessing
from ucseg_runtime.postprocess import Restoration, remove_small_components
from ucseg_runtime.preprocess import Prepared, preprocess
from ucseg_runtime.resampling import axis_weights
from ucseg_runtime.segmentation import Segmentation
from ucseg_runtime.stitching import Stitched
from ucseg_runtime.volume import Volume

AXIAL = STRAIGHT[:, ::-1]
THREE_CLASSES = ModelPhantom(spacing_mm=(2.0, 2.0, 2.0))
BINARY = ModelPhantom(centres=(0.0, 1.0), activation="sigmoid")


def manifest_of(phantom: ModelPhantom) -> Manifest:
    return Manifest.model_validate(manifest_fields(phantom, dict.fromkeys(GRAPHS, b"")))


def prepared_on(geometry: VolumeGeometry, manifest: Manifest) -> Prepared:
    return preprocess(Volume(np.zeros(geometry.shape, np.int16), geometry, "CT"), manifest.preprocessing)


def restored(
    geometry: VolumeGeometry, phantom: ModelPhantom, probabilities: np.ndarray, *, keep_probabilities: bool = False
) -> Segmentation:
    manifest = manifest_of(phantom)
    prepared = prepared_on(geometry, manifest)
    uncertainty = np.linspace(0, 1, int(np.prod(prepared.spatial_shape)), dtype=np.float32)
    restoration = Restoration(prepared, geometry, manifest, keep_probabilities=keep_probabilities)
    restoration.add(Stitched(0, probabilities, uncertainty.reshape(prepared.spatial_shape)))
    return restoration.finish(FAKE_ENGINE)


def softmax_like(shape: tuple[int, int, int], classes: int = 3) -> np.ndarray:
    """Random probabilities, most of them background, that sum to 1."""
    values = np.random.default_rng(0).random((classes, *shape), dtype=np.float32) ** 4
    values[0, shape[0] // 3 :, : shape[1] // 2] += 5.0
    return values / values.sum(axis=0)


def slow_resample(values: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """One channel in double precision, all axes at once."""
    z, y, x = (axis_weights(s, t).astype(np.float64) for s, t in zip(values.shape, shape, strict=True))
    return np.einsum("az,by,cx,zyx->abc", z, y, x, values, optimize=True)


@pytest.mark.parametrize(
    ("shape", "spacing"),
    [
        pytest.param((9, 30, 33), (5.0, 0.8, 0.7), id="finer in plane, coarser slices"),
        pytest.param((30, 12, 10), (1.0, 3.0, 3.5), id="finer slices, coarser in plane"),
        pytest.param((20, 20, 20), (2.0, 2.0, 2.0), id="equal grids"),
    ],
)
def test_labels_and_uncertainty_equal_the_slow_reference(
    shape: tuple[int, int, int], spacing: tuple[float, float, float]
) -> None:
    geometry = centred_geometry(shape, spacing, AXIAL)
    grid = prepared_on(geometry, manifest_of(THREE_CLASSES)).spatial_shape
    probabilities = softmax_like(grid)
    result = restored(geometry, THREE_CLASSES, probabilities)
    scores = np.stack([slow_resample(channel, shape) for channel in probabilities])
    best_two = np.sort(scores, axis=0)[-2:]
    clear = best_two[1] - best_two[0] > 1e-5  # nearer than this, float32 may decide either way
    assert clear.mean() > 0.99
    np.testing.assert_array_equal(result.label_map[clear], scores.argmax(axis=0)[clear])
    assert set(np.unique(result.label_map)) == {0, 1, 2}
    ramp = np.linspace(0, 1, int(np.prod(grid))).reshape(grid)
    np.testing.assert_allclose(result.uncertainty, slow_resample(ramp, shape), atol=1e-5)


def test_results_have_the_promised_types_and_the_source_geometry() -> None:
    geometry = centred_geometry((9, 30, 33), (5.0, 0.8, 0.7), AXIAL)
    grid = prepared_on(geometry, manifest_of(THREE_CLASSES)).spatial_shape
    result = restored(geometry, THREE_CLASSES, softmax_like(grid))
    assert result.geometry is geometry
    assert (result.label_map.dtype, result.label_map.shape) == (np.uint8, geometry.shape)
    assert (result.uncertainty.dtype, result.uncertainty.shape) == (np.float32, geometry.shape)
    assert result.label_map.flags.c_contiguous
    assert result.uncertainty.flags.c_contiguous
    assert result.probabilities is None
    assert result.engine == FAKE_ENGINE


@pytest.mark.parametrize("direction", list(orientations(STRAIGHT)))
def test_every_voxel_returns_to_its_place_from_any_orientation(direction: np.ndarray) -> None:
    geometry = centred_geometry((4, 5, 6), (2.0, 2.0, 2.0), direction)
    prepared = prepared_on(geometry, manifest_of(THREE_CLASSES))
    source = np.random.default_rng(0).integers(0, 3, size=geometry.shape)
    oriented = prepared.orientation.apply(source)
    one_hot = (np.arange(3).reshape(3, 1, 1, 1) == oriented).astype(np.float32)
    result = restored(geometry, THREE_CLASSES, one_hot, keep_probabilities=True)
    np.testing.assert_array_equal(result.label_map, source)
    assert result.probabilities is not None
    for label in (1, 2):
        np.testing.assert_array_equal(result.probabilities[label - 1], (source == label) * 255)


def test_missing_slices_are_refused() -> None:
    geometry = centred_geometry((20, 20, 20), (2.0, 2.0, 2.0), AXIAL)
    manifest = manifest_of(THREE_CLASSES)
    restoration = Restoration(prepared_on(geometry, manifest), geometry, manifest)
    with pytest.raises(BackendError, match="results of 0 slices of the model grid were stitched; it has 20"):
        restoration.finish(FAKE_ENGINE)
    restoration.add(Stitched(0, softmax_like((19, 20, 20)), np.zeros((19, 20, 20), np.float32)))
    with pytest.raises(BackendError, match="results of 19 slices of the model grid were stitched; it has 20"):
        restoration.finish(FAKE_ENGINE)


def test_background_wins_a_tie_and_then_the_lower_label() -> None:
    geometry = centred_geometry((1, 1, 3), (2.0, 2.0, 2.0), AXIAL)
    probabilities = np.array([[0.4, 0.2, 0.3], [0.4, 0.4, 0.3], [0.2, 0.4, 0.4]], dtype=np.float32)
    result = restored(geometry, THREE_CLASSES, probabilities.reshape(3, 1, 1, 3))
    np.testing.assert_array_equal(result.label_map.ravel(), [0, 1, 2])


def test_sigmoid_foreground_needs_more_than_one_half() -> None:
    geometry = centred_geometry((1, 1, 3), (2.0, 2.0, 2.0), AXIAL)
    above = np.nextafter(np.float32(0.5), np.float32(1))
    probabilities = np.array([0.5, above, 0.4], dtype=np.float32).reshape(1, 1, 1, 3)
    result = restored(geometry, BINARY, probabilities, keep_probabilities=True)
    np.testing.assert_array_equal(result.label_map.ravel(), [0, 1, 0])
    assert result.probabilities is not None
    np.testing.assert_array_equal(result.probabilities.ravel(), [128, 128, 102])


def test_constant_half_stays_background_on_a_finer_grid() -> None:
    geometry = centred_geometry((7, 31, 29), (1.3, 0.7, 0.7), AXIAL)
    grid = prepared_on(geometry, manifest_of(BINARY)).spatial_shape
    result = restored(geometry, BINARY, np.full((1, *grid), 0.5, dtype=np.float32))
    assert not result.label_map.any()


def test_clean_up_runs_on_the_source_grid() -> None:
    phantom = ModelPhantom(largest_component=(1,))
    geometry = centred_geometry((1, 1, 6), (2.0, 2.0, 2.0), AXIAL)
    one = np.array([1, 0, 1, 1, 0, 1], dtype=np.float32)
    probabilities = np.stack([1 - one, one, np.zeros_like(one)]).reshape(3, 1, 1, 6)
    result = restored(geometry, phantom, probabilities)
    np.testing.assert_array_equal(result.label_map.ravel(), [0, 0, 1, 1, 0, 0])


def cleaned(label_map: np.ndarray, voxel_volume_ml: float = 0.001, **spec: object) -> np.ndarray:
    result = label_map.astype(np.uint8)
    remove_small_components(result, Postprocessing.model_validate(spec), voxel_volume_ml)
    return result


def test_voxels_that_touch_at_a_corner_are_one_component() -> None:
    labels = np.zeros((3, 3, 3))
    labels[0, 0, 0] = labels[1, 1, 1] = labels[2, 2, 2] = 1
    np.testing.assert_array_equal(cleaned(labels, largest_component=(1,)), labels)


def test_of_equally_large_components_the_first_in_index_order_is_kept() -> None:
    labels = np.zeros((1, 1, 7))
    labels[..., [0, 1, 3, 4, 6]] = 1
    assert cleaned(labels, largest_component=(1,)).ravel().tolist() == [1, 1, 0, 0, 0, 0, 0]


def test_components_below_the_least_volume_are_removed_and_those_at_it_stay() -> None:
    labels = np.zeros((1, 1, 9))
    labels[..., [0, 2, 3, 5, 6, 7]] = 2
    result = cleaned(labels, voxel_volume_ml=0.5, smallest_component_ml={2: 1.0})
    assert result.ravel().tolist() == [0, 0, 2, 2, 0, 2, 2, 2, 0]


def test_largest_component_below_the_least_volume_is_removed_too() -> None:
    labels = np.zeros((1, 1, 4))
    labels[..., 1] = 1
    assert not cleaned(labels, voxel_volume_ml=0.5, largest_component=(1,), smallest_component_ml={1: 1.0}).any()


def test_clean_up_of_one_label_leaves_the_others_alone() -> None:
    labels = np.array([1, 2, 1, 1, 2, 3, 2]).reshape(1, 1, 7)
    assert cleaned(labels, largest_component=(1,)).ravel().tolist() == [0, 2, 1, 1, 2, 3, 2]


@pytest.mark.parametrize("spec", [{}, {"largest_component": (1, 2)}], ids=["no clean-up", "labels that do not occur"])
def test_clean_up_without_work_changes_nothing(spec: dict[str, object]) -> None:
    labels = np.array([0, 3, 0, 3, 0]).reshape(1, 1, 5)
    np.testing.assert_array_equal(cleaned(labels, **spec), labels)
