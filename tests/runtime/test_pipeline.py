"""The whole flow on phantoms: boxes of known place and tissue come back where they are."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.fake_backend import FAKE_ENGINE, FakeBackend
from tests.model_phantom import ModelPhantom
from tests.volume_phantom import BOXES, OBLIQUE, STRAIGHT, Box, centred_geometry, depth_mm, orientations, volume_of
from ucseg_runtime.backends import Backend, open_backend
from ucseg_runtime.config import EngineChoice, InferenceOptions
from ucseg_runtime.errors import BackendError
from ucseg_runtime.geometry import VolumeGeometry
from ucseg_runtime.model_folder import Model, load_model
from ucseg_runtime.pipeline import segment_volume
from ucseg_runtime.segmentation import Segmentation
from ucseg_runtime.volume import Volume

OPTIONS = InferenceOptions(engine="openvino", precision="f32", threads=1, gate=False)
AXIAL = STRAIGHT[:, ::-1]
SHAPE = (18, 44, 50)
SPACING_MM = (3.3, 1.5, 1.2)
BOUNDARY_MM = 4.0
"""Where tissue of two kinds meets, the 2 mm model grid and the 3.3 mm slices blur it; the phantom knows no more."""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return load_model(ModelPhantom(tile_shape=(16, 24, 20)).write(tmp_path_factory.mktemp("models") / "phantom"))


@pytest.fixture(scope="module")
def backend(model: Model) -> Iterator[Backend]:
    with open_backend(model, OPTIONS) as ready:
        yield ready


def assert_boxes_in_place(result: Segmentation, geometry: VolumeGeometry) -> None:
    depths = {box.label: depth_mm(geometry, box) for box in BOXES}
    for label, depth in depths.items():
        inside = depth > BOUNDARY_MM
        assert inside.sum() > 50, "the phantom must have voxels to judge"
        assert (result.label_map[inside] == label).all()
    outside = np.max(list(depths.values()), axis=0) < -BOUNDARY_MM
    assert outside.sum() > 1000, "the phantom must have background to judge"
    assert (result.label_map[outside] == 0).all()


@pytest.mark.parametrize(
    "direction",
    [
        pytest.param(direction, id=f"{name} {number}")
        for name, rotation in (("straight", STRAIGHT), ("oblique", OBLIQUE))
        for number, direction in enumerate(orientations(rotation))
    ],
)
def test_boxes_come_back_in_place_from_any_orientation(model: Model, backend: Backend, direction: np.ndarray) -> None:
    geometry = centred_geometry(SHAPE, SPACING_MM, direction)
    result = segment_volume(volume_of(geometry), model.manifest, backend, OPTIONS)
    assert result.geometry is geometry
    assert result.label_map.shape == SHAPE
    assert_boxes_in_place(result, geometry)


def test_uncertainty_is_that_of_the_tissue(model: Model, backend: Backend) -> None:
    geometry = centred_geometry(SHAPE, SPACING_MM, AXIAL)
    result = segment_volume(volume_of(geometry), model.manifest, backend, OPTIONS)
    for box in BOXES:
        image = np.full((1, 1, 1, 1, 1), box.hu / 100, dtype=np.float32)
        logits = ModelPhantom().fused_logits(image)
        expected = 3 / (np.logaddexp(0, logits) + 1).sum()
        np.testing.assert_allclose(result.uncertainty[depth_mm(geometry, box) > BOUNDARY_MM], expected, atol=1e-4)


@pytest.mark.parametrize("shape", [(4, 6, 5), (1, 9, 60), (1, 1, 1)], ids=str)
def test_volume_smaller_than_a_tile_is_padded(model: Model, backend: Backend, shape: tuple[int, int, int]) -> None:
    geometry = centred_geometry(shape, (2.0, 2.0, 2.0), AXIAL)
    volume = volume_of(geometry, boxes=(), background_hu=50.0)
    result = segment_volume(volume, model.manifest, backend, OPTIONS)
    assert (result.label_map == 1).all()


@pytest.mark.parametrize("engine", ["openvino", "onnxruntime"])
def test_threads_and_batch_size_do_not_change_the_result(model: Model, engine: EngineChoice) -> None:
    volume = volume_of(centred_geometry(SHAPE, SPACING_MM, AXIAL))
    results = []
    for threads, batch_size in ((1, 1), (2, 1), (1, 3), (2, 100)):
        options = InferenceOptions(engine=engine, precision="f32", threads=threads, batch_size=batch_size, gate=False)
        with open_backend(model, options) as backend:
            results.append(segment_volume(volume, model.manifest, backend, options))
    for result in results[1:]:
        np.testing.assert_array_equal(result.label_map, results[0].label_map)
        np.testing.assert_allclose(result.uncertainty, results[0].uncertainty, atol=1e-6)


def test_engines_agree_on_every_voxel(model: Model) -> None:
    volume = volume_of(centred_geometry(SHAPE, SPACING_MM, AXIAL))
    label_maps = []
    for engine in ("openvino", "onnxruntime"):
        options = InferenceOptions(engine=engine, precision="f32", gate=False)
        with open_backend(model, options) as backend:
            result = segment_volume(volume, model.manifest, backend, options)
        assert result.engine.name == engine
        label_maps.append(result.label_map)
    np.testing.assert_array_equal(*label_maps)


def test_sigmoid_model_marks_the_bright_box_alone(tmp_path: Path) -> None:
    binary = ModelPhantom(centres=(0.0, 1.5), activation="sigmoid")
    model = load_model(binary.write(tmp_path / "binary"))
    geometry = centred_geometry(SHAPE, SPACING_MM, AXIAL)
    options = InferenceOptions(engine="openvino", keep_probabilities=True, gate=False)
    with open_backend(model, options) as backend:
        result = segment_volume(volume_of(geometry), model.manifest, backend, options)
    inside = depth_mm(geometry, BOXES[1]) > BOUNDARY_MM
    assert (result.label_map[inside] == 1).all()
    assert (result.label_map[depth_mm(geometry, BOXES[1]) < -BOUNDARY_MM] == 0).all()
    assert result.probabilities is not None
    assert result.probabilities.shape == (1, *SHAPE)
    assert result.probabilities[0][inside].min() > 250


def test_probabilities_are_returned_only_on_request(model: Model, backend: Backend) -> None:
    geometry = centred_geometry(SHAPE, SPACING_MM, AXIAL)
    volume = volume_of(geometry)
    assert segment_volume(volume, model.manifest, backend, OPTIONS).probabilities is None
    result = segment_volume(volume, model.manifest, backend, InferenceOptions(keep_probabilities=True))
    assert result.probabilities is not None
    assert result.probabilities.dtype == np.uint8
    assert result.probabilities.shape == (2, *SHAPE)
    for label in (1, 2):
        decided = result.probabilities[label - 1] > 128
        assert (result.label_map[decided] == label).all()


def patient_in_much_air() -> Volume:
    """Tissue of 60 mm across in a field of view of 300 mm."""
    geometry = centred_geometry((18, 150, 150), (3.0, 2.0, 2.0), AXIAL)
    patient = Box(0, -100.0, (0.0, 0.0, 0.0), (30.0, 30.0, 30.0))
    return volume_of(geometry, (patient, *BOXES), background_hu=-1000.0)


def test_air_around_the_patient_is_not_looked_at_and_counts_as_background(model: Model) -> None:
    volume = patient_in_much_air()
    spared, whole = FakeBackend(model.manifest, all_label_1), FakeBackend(model.manifest, all_label_1)
    found = segment_volume(volume, model.manifest, spared, InferenceOptions())
    everywhere = segment_volume(volume, model.manifest, whole, InferenceOptions(skip_air=False))
    assert sum(spared.batch_sizes) < sum(whole.batch_sizes) / 4
    assert (everywhere.label_map == 1).all()
    patient = volume.voxels > -1000
    assert (found.label_map[patient] == 1).all()
    assert np.allclose(found.uncertainty[patient], 0.25)
    assert (found.label_map[:, :20] == 0).all()
    assert (found.uncertainty[:, :20] == 0.0).all()


def test_sigmoid_model_has_no_foreground_in_skipped_air(tmp_path: Path) -> None:
    model = load_model(ModelPhantom(centres=(0.0, 1.5), activation="sigmoid").write(tmp_path / "binary"))
    fake = FakeBackend(model.manifest, np.ones_like)
    found = segment_volume(patient_in_much_air(), model.manifest, fake, InferenceOptions(keep_probabilities=True))
    assert found.probabilities is not None
    assert (found.label_map[:, 75, 75] == 1).all()
    assert (found.label_map[:, :10] == 0).all()
    assert (found.probabilities[0, :, :10] == 0).all()


def test_other_modalities_are_looked_at_whole(model: Model) -> None:
    volume = patient_in_much_air()
    fake = FakeBackend(model.manifest, all_label_1)
    found = segment_volume(replace(volume, modality="MR"), model.manifest, fake, InferenceOptions())
    assert (found.label_map == 1).all()


def test_progress_counts_tiles_up_to_all_of_them(model: Model) -> None:
    fake = FakeBackend(model.manifest, constant_background)
    calls: list[tuple[int, int]] = []
    volume = volume_of(centred_geometry(SHAPE, SPACING_MM, AXIAL))
    result = segment_volume(
        volume, model.manifest, fake, InferenceOptions(batch_size=5), lambda done, total: calls.append((done, total))
    )
    total = sum(fake.batch_sizes)
    assert total % 5, "the last batch must be smaller"
    assert [done for done, _ in calls] == list(np.cumsum(fake.batch_sizes))
    assert {seen for _, seen in calls} == {total}
    assert max(fake.batch_sizes) == 5
    assert result.engine == FAKE_ENGINE


def test_engine_that_returns_nan_is_an_error_that_names_the_tile(model: Model) -> None:
    seen: list[int] = []

    def nan_in_the_third(tile: np.ndarray) -> np.ndarray:
        seen.append(1)
        probabilities = constant_background(tile)
        probabilities[0, 0, 0, 0] = np.nan if len(seen) == 3 else 1.0
        return probabilities

    volume = volume_of(centred_geometry(SHAPE, SPACING_MM, AXIAL))
    with pytest.raises(BackendError, match="tile 3 of"):
        segment_volume(volume, model.manifest, FakeBackend(model.manifest, nan_in_the_third), OPTIONS)


def all_label_1(tile: np.ndarray) -> np.ndarray:
    probabilities = np.zeros((3, *tile.shape[1:]), dtype=np.float32)
    probabilities[1] = 1.0
    return probabilities


def constant_background(tile: np.ndarray) -> np.ndarray:
    probabilities = np.zeros((3, *tile.shape[1:]), dtype=np.float32)
    probabilities[0] = 1.0
    return probabilities
