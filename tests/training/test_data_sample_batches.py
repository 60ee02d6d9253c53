"""Batches of a prepared data set: the right halves, varied, the same after a restart and whoever draws them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.dataset_phantom import block_labels, dataset, plane_fields, write_nifti, write_picture
from tests.volume_phantom import STRAIGHT, centred_geometry
from ucseg_training.batches import BatchSource
from ucseg_training.data.case_list import CaseEntry
from ucseg_training.data.dataset_spec import DatasetSpec
from ucseg_training.data.prepared_set import PreparedSet, prepare_cases
from ucseg_training.data.sample_batches import SampleBatches
from ucseg_training.errors import TrainingError

SHAPE = (14, 20, 36)
SPEC = dataset(preprocessing={"spacing_mm": [1, 1, 1], "intensity": {"kind": "identity"}, "padding_value": -1000})


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> PreparedSet:
    """Four labelled and five unlabelled volumes; each is even, so that a tile tells whose it is."""
    folder = tmp_path_factory.mktemp("volumes")
    geometry = centred_geometry(SHAPE, (1.0, 1.0, 1.0), STRAIGHT[:, ::-1])
    labels = block_labels(SHAPE, np.s_[2:8, 4:12, 5:20], np.s_[8:12, 4:16, 20:30])
    write_nifti(folder / "label.nii", labels, geometry)
    entries = []
    for number in range(9):
        image = write_nifti(folder / f"{number}.nii", np.full(SHAPE, number, np.float32), geometry)
        labelled = number < 4
        entries.append(
            CaseEntry(
                str(number),
                str(number),
                (image,),
                folder / "label.nii" if labelled else None,
                "train" if labelled else "unlabelled",
            )
        )
    return prepare_cases(entries, SPEC, folder / "prepared")


def whose(tiles: torch.Tensor) -> list[int]:
    return [int(tile.max()) for tile in tiles]


def test_batch_is_labelled_and_unlabelled_tiles_of_the_network(prepared: PreparedSet) -> None:
    batches: BatchSource = SampleBatches(prepared, SPEC)
    batch = batches.draw(0)
    assert batch.unlabelled is not None
    assert batch.labelled.shape == batch.unlabelled.shape == (2, 1, 16, 16, 32)
    assert batch.labelled.dtype == torch.float32
    assert all(number < 4 for number in whose(batch.labelled))
    assert all(number >= 4 for number in whose(batch.unlabelled))
    assert batch.target.present.shape == (2, 3, 16, 16, 32)
    assert batch.target.complete
    assert batch.target.present.any(dim=(0, 2, 3, 4)).all(), "every class is in some tile"


def test_every_labelled_case_comes_once_in_an_epoch(prepared: PreparedSet) -> None:
    batches = SampleBatches(prepared, SPEC)
    assert sorted(whose(batches.draw(0).labelled) + whose(batches.draw(1).labelled)) == [0, 1, 2, 3]


def test_space_around_a_volume_is_that_of_the_deployed_model_or_zero(prepared: PreparedSet) -> None:
    around = SampleBatches(prepared, SPEC).draw(3)
    zeros = SampleBatches(prepared, SPEC, zero_padding=True).draw(3)
    assert around.labelled.min() == -1000.0, "14 slices do not fill a tile of 16"
    assert zeros.labelled.min() == 0.0


def test_batch_is_the_same_whenever_it_is_drawn(prepared: PreparedSet) -> None:
    one, other = SampleBatches(prepared, SPEC), SampleBatches(prepared, SPEC, keep_mb=0)
    forwards = [one.draw(number) for number in range(4)]
    for number in reversed(range(4)):
        again = other.draw(number)
        torch.testing.assert_close(again.labelled, forwards[number].labelled, rtol=0, atol=0)
        torch.testing.assert_close(again.target.present, forwards[number].target.present, rtol=0, atol=0)
    assert one.describe() == other.describe()


def test_workers_of_a_step_learn_from_different_cases(prepared: PreparedSet) -> None:
    batches = SampleBatches(prepared, SPEC, workers=2)
    for step in range(6):
        drawn = [whose(batches.draw(2 * step + rank).labelled) for rank in range(2)]
        assert sorted(drawn[0] + drawn[1]) == [0, 1, 2, 3]
    with pytest.raises(TrainingError, match="there are 4 labelled cases; a step takes 2 for each of 3"):
        SampleBatches(prepared, SPEC, workers=3)


def test_labels_may_be_learnt_from_alone(prepared: PreparedSet) -> None:
    alone = SampleBatches(prepared, SPEC, labels_alone=True).draw(0)
    assert alone.unlabelled is None
    torch.testing.assert_close(alone.labelled, SampleBatches(prepared, SPEC).draw(0).labelled, rtol=0, atol=0)


def test_description_tells_data_sets_apart(prepared: PreparedSet) -> None:
    one = SampleBatches(prepared, SPEC).describe()
    fewer = PreparedSet(prepared.samples[:-1])
    others = [
        SampleBatches(fewer, SPEC),
        SampleBatches(prepared, dataset(**{**SPEC.model_dump(), "seed": 7})),
        SampleBatches(prepared, SPEC, zero_padding=True),
        SampleBatches(prepared, SPEC, workers=2),
    ]
    assert all(other.describe() != one for other in others)


def test_classes_that_are_not_known_everywhere_stay_open(
    prepared: PreparedSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ucseg_training.data.prepared_set import SampleFile

    load = SampleFile.load
    monkeypatch.setattr(
        SampleFile,
        "load",
        lambda file: replace(load(file), known=np.full(SHAPE, 0b01, np.uint8)) if file.split == "train" else load(file),
    )
    target = SampleBatches(prepared, SPEC).draw(0).target
    assert not target.complete
    background = target.present[:, 1:].sum(dim=1) == 0
    assert target.allowed[:, 2][background].all(), "where nothing is known of class 2, it may be"
    assert not target.allowed[:, 1][background & (SampleBatches(prepared, SPEC).draw(0).labelled[:, 0] >= 0)].any()


def test_planes_are_varied_in_colour(tmp_path: Path) -> None:
    spec = DatasetSpec.model_validate(plane_fields())
    entries = []
    for number in range(4):
        rgb = np.random.default_rng(number).integers(0, 256, (40, 40, 3), dtype=np.uint8)
        mask = np.zeros((40, 40), np.uint8)
        mask[10:30, 10:30] = 255
        image = write_picture(tmp_path / f"{number}.png", rgb)
        label = write_picture(tmp_path / f"{number}_mask.png", mask) if number < 2 else None
        entries.append(
            CaseEntry(str(number), str(number), (image,), label, "train" if label is not None else "unlabelled")
        )
    batch = SampleBatches(prepare_cases(entries, spec, tmp_path / "prepared"), spec).draw(0)
    assert batch.unlabelled is not None
    assert batch.labelled.shape == batch.unlabelled.shape == (2, 3, 32, 32)
    assert batch.target.label_map.shape == (2, 32, 32)
    assert set(batch.target.label_map.unique().tolist()) == {0, 1}
