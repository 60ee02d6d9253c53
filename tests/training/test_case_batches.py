"""Batches from patients in memory: shapes, both streams, weights, and nothing but the number decides."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.training_phantom import block_case, tiny_spec
from ucseg_runtime.intensity import ZScore
from ucseg_training.data.augment import AugmentSpec
from ucseg_training.data.case_batches import CaseBatches, CaseSampling
from ucseg_training.errors import TrainingError

SPEC = tiny_spec()
SAMPLING = CaseSampling(
    tile_shape=SPEC.tiling.tile_shape,
    num_classes=3,
    preprocessing=SPEC.preprocessing,
    augment=AugmentSpec(enhancement_hu={1: (-50.0, 50.0)}),
    labelled_weights={"P": 1.0, "Q": 0.5},
)
CASES = [block_case("P"), block_case("Q")]


def test_labelled_tiles_of_a_step_are_one_batch() -> None:
    batch = CaseBatches(CASES, replace(SAMPLING, labelled_tiles=3)).draw(0)
    assert (batch.labelled.shape, batch.labelled.dtype) == ((3, 1, 32, 32, 32), torch.float32)
    assert batch.target.allowed.shape == (3, 3, 32, 32, 32)
    assert batch.unlabelled is None
    assert batch.labelled.min() >= -1.0, "modality units must have gone through the intensity rule"
    assert batch.labelled.max() <= 1.0


def test_unlabelled_tiles_come_from_their_own_cases() -> None:
    bright = replace(block_case("U"), voxels=np.full((24, 40, 42), 900.0, np.float32))
    sampling = replace(SAMPLING, unlabelled_weights={"U": 1.0}, unlabelled_tiles=5)
    batch = CaseBatches([*CASES, bright], sampling).draw(3)
    assert batch.unlabelled is not None
    assert batch.unlabelled.shape == (5, 1, 32, 32, 32)
    assert batch.unlabelled.max() > 0.7
    assert batch.labelled.max() < 0.7


def test_cases_are_drawn_by_their_weights() -> None:
    cases = [
        replace(block_case(name), voxels=np.full((24, 40, 42), hu, np.float32)) for name, hu in (("P", 0), ("Q", 500))
    ]
    still = AugmentSpec(enhancement_hu={}, shift_hu=0.0, gain=0.0, noise_hu=0.0, round_field=0.0)
    sampling = replace(SAMPLING, labelled_weights={"P": 3.0, "Q": 1.0}, augment=still, labelled_tiles=200)
    batch = CaseBatches(cases, replace(sampling, tile_shape=(4, 4, 4))).draw(0)
    brightest = batch.labelled.flatten(1).max(dim=1).values
    assert float((brightest > 0.25).float().mean()) == pytest.approx(0.25, abs=0.1)  # 200 draws: three deviations


def test_rule_that_looks_at_the_volume_sees_all_of_the_case() -> None:
    voxels = np.zeros((24, 40, 42), np.float32)
    voxels[:, 20:] = 100.0
    still = AugmentSpec(enhancement_hu={}, shift_hu=0.0, gain=0.0, noise_hu=0.0, round_field=0.0)
    rule = SPEC.preprocessing.model_copy(update={"intensity": ZScore(kind="z_score"), "padding_value": 0.0})
    sampling = replace(SAMPLING, labelled_weights={"P": 1.0}, augment=still, preprocessing=rule, labelled_tiles=40)
    batch = CaseBatches([replace(block_case("P"), voxels=voxels)], replace(sampling, tile_shape=(4, 4, 4))).draw(0)
    middles = batch.labelled.flatten(1).mean(dim=1).abs()
    assert float(middles.median()) == pytest.approx(1.0, abs=0.01), "a tile of one value must not become 0"


def test_a_batch_depends_on_its_number_seed_and_stream_alone() -> None:
    batches = CaseBatches(CASES, SAMPLING)
    batches.draw(7)
    again = CaseBatches(CASES, SAMPLING).draw(4).labelled
    assert torch.equal(batches.draw(4).labelled, again)
    for other in (replace(SAMPLING, seed=43), replace(SAMPLING, stream=1)):
        assert not torch.equal(CaseBatches(CASES, other).draw(4).labelled, again)
    assert not torch.equal(batches.draw(5).labelled, again)


def test_cases_without_a_weight_are_never_drawn() -> None:
    poison = replace(block_case("held out"), voxels=np.full((24, 40, 42), np.nan, np.float32))
    sampling = replace(SAMPLING, labelled_weights={"P": 1.0, "zero": 0.0})
    batches = CaseBatches([poison, *CASES, replace(poison, name="zero")], sampling)
    assert all(torch.isfinite(batches.draw(number).labelled).all() for number in range(20))


def test_description_tells_other_voxels_labels_and_ranges_apart() -> None:
    described = CaseBatches(CASES, SAMPLING).describe()
    assert described == CaseBatches(CASES, SAMPLING).describe()
    brighter = [replace(CASES[0], voxels=CASES[0].voxels + 1), CASES[1]]
    relabelled = [replace(CASES[0], label_map=np.zeros_like(CASES[0].label_map)), CASES[1]]
    assert described != CaseBatches(brighter, SAMPLING).describe()
    assert described != CaseBatches(relabelled, SAMPLING).describe()
    assert described != CaseBatches(CASES, replace(SAMPLING, augment=AugmentSpec(enhancement_hu={}))).describe()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        pytest.param(
            {"labelled_weights": {"P": 1.0, "R": 1.0}}, "2 labelled .*; 1 of them are not there: R", id="gone"
        ),
        pytest.param({"labelled_weights": {}}, "^0 labelled cases", id="no cases"),
        pytest.param({"labelled_weights": {"P": 0.0}}, "^0 labelled cases", id="no weight"),
        pytest.param({"unlabelled_weights": {"R": 1.0}}, "1 unlabelled .* not there: R", id="unlabelled gone"),
    ],
)
def test_batches_without_their_cases_are_refused(changes: dict[str, dict[str, float]], message: str) -> None:
    with pytest.raises(TrainingError, match=message):
        CaseBatches(CASES, replace(SAMPLING, **changes))
