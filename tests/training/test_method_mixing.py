"""Copy-paste mixing: one box, the same for images and labels; every place that it may have."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from ucseg_training.errors import TrainingError
from ucseg_training.method import one_hot_target, partial_target
from ucseg_training.method.mixing import Mixing, draw_mixing

BOX = (slice(1, 3), slice(0, 2), slice(2, 5))
SHAPE = (2, 4, 3, 6)
"""Tiles, z, y, x."""


def inside() -> Tensor:
    """bool, (z, y, x): the voxels of `BOX`."""
    mask = torch.zeros(SHAPE[1:], dtype=torch.bool)
    mask[BOX] = True
    return mask


def images() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return tuple(torch.randn(SHAPE[0], 2, *SHAPE[1:], generator=generator) for _ in range(2))  # type: ignore[return-value]  # two of them


@pytest.mark.parametrize("labelled_inside", [True, False])
def test_box_shows_one_batch_and_the_rest_the_other(labelled_inside: bool) -> None:
    labelled, unlabelled = images()
    mixed = Mixing(BOX, labelled_inside).image(labelled, unlabelled)
    expected = torch.where(inside() == labelled_inside, labelled, unlabelled)
    assert torch.equal(mixed, expected)
    assert torch.equal(labelled, images()[0]), "the batch itself must stay as it is"


@pytest.mark.parametrize("labelled_inside", [True, False])
def test_partial_targets_are_mixed_like_images(labelled_inside: bool) -> None:
    generator = torch.Generator().manual_seed(1)
    labels, pseudo = (torch.randint(3, SHAPE, generator=generator) for _ in range(2))
    partial = partial_target(labels, torch.randint(4, SHAPE, generator=generator), 3)
    mixed = Mixing(BOX, labelled_inside).target(partial, one_hot_target(pseudo, 3))
    from_labels = (inside() == labelled_inside)[None, None]
    one_hot = one_hot_target(pseudo, 3).present
    assert torch.equal(mixed.present, torch.where(from_labels, partial.present, one_hot))
    assert torch.equal(mixed.allowed, torch.where(from_labels, partial.allowed, one_hot))
    assert not mixed.complete


def test_complete_targets_stay_complete() -> None:
    labels = torch.randint(3, SHAPE, generator=torch.Generator().manual_seed(1))
    mixed = Mixing(BOX, True).target(one_hot_target(labels, 3), one_hot_target(2 - labels, 3))
    assert mixed.complete
    assert torch.equal(mixed.label_map, torch.where(inside(), labels, 2 - labels))


def test_unequal_halves_are_refused() -> None:
    labelled, unlabelled = images()
    with pytest.raises(TrainingError, match="pairs labelled with unlabelled"):
        Mixing(BOX, True).image(labelled, unlabelled[:1])


@pytest.mark.parametrize(("compat", "last"), [(True, 2), (False, 3)], ids=["compat", "fixed"])
def test_box_has_two_thirds_of_every_side_and_any_place(compat: bool, last: int) -> None:
    """Quirk 26: upstream never draws the last place."""
    generator = torch.Generator().manual_seed(0)
    drawn = [draw_mixing((9, 8), generator, compat) for _ in range(200)]
    assert {tuple(part.stop - part.start for part in mixing.box) for mixing in drawn} == {(6, 5)}
    assert {mixing.box[0].start for mixing in drawn} == set(range(last + 1))
    assert {mixing.box[1].start for mixing in drawn} == set(range(last + 1))
    assert 60 < sum(mixing.labelled_inside for mixing in drawn) < 140, "either way about half of the time"


def test_same_generator_draws_the_same_mixing() -> None:
    first, second = (draw_mixing((96, 96, 96), torch.Generator().manual_seed(4), compat=False) for _ in range(2))
    assert first == second
    assert first.box[0].stop - first.box[0].start == 64
