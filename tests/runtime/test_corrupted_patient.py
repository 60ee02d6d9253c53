"""Patient A, spoilt step by step: the case score of the shipped model rises with every step."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from benchmarks.corruptions import flipped, inverted, truncated, windowed, with_noise, with_offset
from ucseg_runtime.backends import open_backend
from ucseg_runtime.config import InferenceOptions
from ucseg_runtime.decision import Decision, decide
from ucseg_runtime.dicom.reader import read_volume
from ucseg_runtime.dicom.selection import select_series
from ucseg_runtime.dicom.series import scan
from ucseg_runtime.geometry import VolumeGeometry
from ucseg_runtime.model_folder import default_model_folder, load_model
from ucseg_runtime.pipeline import segment_volume
from ucseg_runtime.segmentation import measure, ready_to_write
from ucseg_runtime.volume import Volume

pytestmark = pytest.mark.real_data

Decide = Callable[[Volume], Decision]


@pytest.fixture(scope="module")
def patient(patient_a_folder: Path) -> Volume:
    """Every fourth voxel of patient A within slices: 2.8 mm, about the model's own grid."""
    volume = read_volume(select_series(scan(patient_a_folder), "CT").chosen)
    voxels, affine = volume.voxels[:, ::4, ::4], volume.geometry.affine.copy()
    affine[:, 1:3] *= 4.0
    return Volume(voxels, VolumeGeometry(affine, voxels.shape), "CT")


@pytest.fixture(scope="module")
def decided() -> Iterator[Decide]:
    """What the shipped model's decision is, on one engine for all."""
    model, options = load_model(default_model_folder()), InferenceOptions()
    with open_backend(model, options) as backend:

        def decided_on(volume: Volume) -> Decision:
            segmentation = segment_volume(volume, model.manifest, backend, options)
            return decide(volume, ready_to_write(segmentation), measure(segmentation), model)

        yield decided_on


@pytest.fixture(scope="module")
def clean(patient: Volume, decided: Decide) -> Decision:
    return decided(patient)


def test_the_patient_as_acquired_is_accepted(clean: Decision) -> None:
    assert clean.outcome == "accept"
    assert not clean.calibrated


@pytest.mark.parametrize(
    ("change", "steps"),
    [
        pytest.param(with_noise, (200.0,), id="noise"),
        pytest.param(with_offset, (300.0, 1024.0), id="intercept"),
        pytest.param(windowed, (400.0,), id="burnt-in window"),
        pytest.param(truncated, (0.3,), id="field of view"),
        pytest.param(inverted, (1.0,), id="other modality"),
        pytest.param(with_noise, (60.0, 200.0), id="noise in steps", marks=pytest.mark.long),
        pytest.param(truncated, (0.6, 0.3), id="field of view in steps", marks=pytest.mark.long),
        pytest.param(inverted, (0.4, 1.0), id="other modality in steps", marks=pytest.mark.long),
    ],
)
def test_each_step_makes_the_score_worse(
    change: Callable[[Volume, float], Volume],
    steps: tuple[float, ...],
    patient: Volume,
    clean: Decision,
    decided: Decide,
) -> None:
    found = [clean, *(decided(change(patient, amount)) for amount in steps)]

    scores = [decision.score for decision in found]
    assert scores == sorted(scores)
    assert scores[-1] > clean.score + 0.2
    assert found[-1].outcome != "accept"
    assert found[-1].reasons


@pytest.mark.parametrize("axis", [0, 2], ids=["upside down", "left is right"])
def test_images_that_run_the_wrong_way_are_noticed_by_the_place_of_organs(
    axis: int, patient: Volume, clean: Decision, decided: Decide
) -> None:
    found = decided(flipped(patient, axis))

    assert found.score > clean.score + 0.2
    assert found.outcome != "accept"
    assert any(reason.check.startswith(("left_mm/", "up_mm/")) for reason in found.reasons)
