"""Agreement is measured through the deployed flow, class by class, where presence is known."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch

from tests.fake_backend import FakeBackend
from tests.training_phantom import AIR_HU, BLOCK_HU, BLOCKS, TINY, block_case, tiny_model_spec, tiny_spec
from ucseg_runtime.errors import ModelError
from ucseg_runtime.manifest import ModelSpec
from ucseg_training import evaluate as module
from ucseg_training.checkpoint import save_checkpoint
from ucseg_training.data.case import Case
from ucseg_training.data.sample import Sample, sample_from_case
from ucseg_training.evaluate import evaluate, evaluate_as_paper, evaluate_sample, load_scorable
from ucseg_training.nets import DualNet
from ucseg_training.torch_backend import DECIDED

Array = npt.NDArray[np.float32]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("run") / "trio.safetensors"
    save_checkpoint(path, DualNet(TINY).state_dict(), TINY, 1, tiny_model_spec())
    return path


def _by_intensity(tile: Array) -> Array:
    """Perfect for the blocks: each class owns the intensities near its own."""
    inputs = np.array([-1.0, *(hu / 1000.0 for hu in BLOCK_HU.values())], dtype=np.float32).reshape(-1, 1, 1, 1)
    nearest = np.abs(tile - inputs).argmin(axis=0)
    return np.stack([nearest == label for label in range(3)]).astype(np.float32)


def _without_class_2(tile: Array) -> Array:
    probabilities = _by_intensity(tile)
    probabilities[0] += probabilities[2]
    probabilities[2] = 0.0
    return probabilities


@pytest.fixture
def rig(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[Array], Array]], None]:
    """Replaces the networks by a function of the tile."""

    def rigged(probabilities: Callable[[Array], Array]) -> None:
        def backend(_: DualNet, spec: ModelSpec, *__: object, **___: object) -> FakeBackend:
            return FakeBackend(spec, probabilities)

        monkeypatch.setattr(module, "TorchBackend", backend)

    return rigged


def _fused(checkpoint: Path, case: Case) -> dict[str, float]:
    return {row.segment: row.scores["dice"] for row in evaluate(checkpoint, [case], ["fused"])}


def test_network_that_is_right_scores_one_in_every_class_of_every_output(
    checkpoint: Path, rig: Callable[[Callable[[Array], Array]], None]
) -> None:
    rig(_by_intensity)
    rows = list(evaluate(checkpoint, [block_case("P"), block_case("Q")]))
    assert [(row.case, row.output, row.segment) for row in rows] == [
        (case, output, segment) for case in ("P", "Q") for output in DECIDED for segment in ("block 1", "block 2")
    ]
    for row in rows:
        ml = 14 * 24 * 18 * 0.027 if row.segment == "block 1" else 12 * 24 * 14 * 0.027
        perfect = {"dice": 1.0, "jaccard": 1.0, "hd95_mm": 0.0, "assd_mm": 0.0, "predicted_ml": ml, "truth_ml": ml}
        assert row.scores == pytest.approx(perfect)


def test_score_does_not_depend_on_the_grid_that_the_case_lies_on(
    checkpoint: Path, rig: Callable[[Callable[[Array], Array]], None]
) -> None:
    rig(_by_intensity)
    coarse = block_case()
    fine = replace(
        coarse,
        voxels=coarse.voxels.repeat(2, axis=0),
        label_map=coarse.label_map.repeat(2, axis=0),
        known=coarse.known.repeat(2, axis=0),
        geometry=coarse.geometry.regridded((48, 40, 42)),
    )
    flipped = replace(
        fine,
        **{name: np.ascontiguousarray(getattr(fine, name)[:, ::-1]) for name in ("voxels", "label_map", "known")},
        geometry=fine.geometry.flipped((1,)),
    )
    assert _fused(checkpoint, flipped) == {"block 1": 1.0, "block 2": 1.0}


def test_missed_class_scores_zero_and_the_other_one_keeps_its_score(
    checkpoint: Path, rig: Callable[[Callable[[Array], Array]], None]
) -> None:
    rig(_without_class_2)
    assert _fused(checkpoint, block_case()) == {"block 1": 1.0, "block 2": 0.0}


def test_class_is_scored_only_where_its_presence_is_known(
    checkpoint: Path, rig: Callable[[Callable[[Array], Array]], None]
) -> None:
    rig(_by_intensity)
    case = block_case()
    label_map, known = case.label_map.copy(), case.known.copy()
    upper_half = np.s_[10:18, 4:28, 2:20]
    label_map[upper_half] = 0
    half_labelled = replace(case, label_map=label_map)
    lower, upper = 6, 8
    expected = 2 * lower / (lower + lower + upper)
    assert _fused(checkpoint, half_labelled) == pytest.approx({"block 1": expected, "block 2": 1.0})
    known[upper_half] = 0b10
    assert _fused(checkpoint, replace(half_labelled, known=known)) == {"block 1": 1.0, "block 2": 1.0}


def test_labelled_voxels_count_even_where_the_known_bits_are_not_set(
    checkpoint: Path, rig: Callable[[Callable[[Array], Array]], None]
) -> None:
    rig(_without_class_2)
    case = block_case()
    assert _fused(checkpoint, replace(case, known=np.zeros_like(case.known)))["block 2"] == 0.0


def test_class_that_the_case_does_not_hold_has_no_row(
    checkpoint: Path, rig: Callable[[Callable[[Array], Array]], None]
) -> None:
    rig(_by_intensity)
    case = block_case()
    label_map = np.where(case.label_map == 2, np.uint8(0), case.label_map)
    assert list(_fused(checkpoint, replace(case, label_map=label_map))) == ["block 1"]


def test_real_networks_run_for_every_output(checkpoint: Path) -> None:
    case = block_case()
    box = np.s_[:, :32, :32]
    parts = {name: np.ascontiguousarray(getattr(case, name)[box]) for name in ("voxels", "label_map", "known")}
    small = replace(case, **parts, geometry=replace(case.geometry, shape=(24, 32, 32)))
    rows = list(evaluate(checkpoint, [small]))
    assert [(row.output, row.segment) for row in rows] == [
        (output, f"block {label}") for output in DECIDED for label in BLOCKS
    ]
    assert all(0.0 <= row.scores["dice"] <= 1.0 for row in rows)


def test_checkpoint_without_a_model_description_is_a_model_error(tmp_path: Path) -> None:
    path = tmp_path / "trio.safetensors"
    save_checkpoint(path, DualNet(TINY).state_dict(), TINY, 1, {**tiny_model_spec(), "modality": 3})
    with pytest.raises(ModelError, match="does not describe a model: modality: "):
        list(evaluate(path, [block_case()]))


def _sample(case: Case) -> Sample:
    return sample_from_case(case, tiny_spec().preprocessing.intensity, AIR_HU)


def test_prepared_sample_is_scored_like_its_case(
    checkpoint: Path, rig: Callable[[Callable[[Array], Array]], None]
) -> None:
    rig(_without_class_2)
    complete = replace(_sample(block_case()), known=None)
    rows = list(evaluate_sample(load_scorable(checkpoint), complete, (3.0, 3.0, 3.0), ["fused"]))
    deployed = list(evaluate(checkpoint, [block_case()], ["fused"]))
    assert len(rows) == 2
    for row, expected in zip(rows, deployed, strict=True):
        assert row.scores == pytest.approx(expected.scores, nan_ok=True)


def test_distances_of_a_sample_of_unknown_size_are_in_voxels(
    checkpoint: Path, rig: Callable[[Callable[[Array], Array]], None]
) -> None:
    rig(_by_intensity)
    complete = replace(_sample(block_case()), known=None)
    for rows in (
        evaluate_sample(load_scorable(checkpoint), complete, None, ["fused"]),
        evaluate_as_paper(load_scorable(checkpoint), complete),
    ):
        assert [row.scores for row in rows] == 2 * [
            {"dice": 1.0, "jaccard": 1.0, "hd95_voxels": 0.0, "asd_voxels": 0.0}
        ]


def test_sample_with_partial_labels_is_not_scored(checkpoint: Path) -> None:
    with pytest.raises(ModelError, match="without complete labels"):
        list(evaluate_sample(load_scorable(checkpoint), _sample(block_case()), None, ["fused"]))
