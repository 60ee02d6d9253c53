"""Prototype queues: what is overwritten, what counts, and that a run can be continued with them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from ucseg_training.errors import TrainingError
from ucseg_training.method import Method, MethodConfig, one_hot_target, partial_target
from ucseg_training.method.queues import PrototypeQueue, PrototypeQueues, labelled_dice
from ucseg_training.nets import TrioConfig

VOLUMES, ACDC = TrioConfig.upstream_3d(), TrioConfig.upstream_acdc()


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def queues(trio: TrioConfig = VOLUMES, seed: int = 0, **values: Any) -> PrototypeQueues:
    return PrototypeQueues(Method(MethodConfig(**values), trio), generator(seed))


def numbered(number: int, tiles: int, num_classes: int) -> tuple[Tensor, Tensor]:
    """Prototypes (tiles, K, 1) with the value of `number`, all occupied."""
    return torch.full((tiles, num_classes, 1), float(number)), torch.ones(tiles, num_classes, dtype=torch.bool)


def _rewritten(queue: PrototypeQueue, tiles: int, num_classes: int) -> float:
    """Share of the slots that hold something else after twice as many writes as fill the queue."""
    before = queue.vectors.clone()
    for number in range(2 * queue.vectors.shape[2] // tiles):
        queue.write(*numbered(1000 + number, tiles, num_classes))
    return float((queue.vectors != before).float().mean())


@pytest.mark.parametrize(
    ("num_classes", "slots", "tiles", "share"),
    [pytest.param(2, 144, 4, 0.5, id="3D binary"), pytest.param(4, 1440, 24, 0.25, id="ACDC")],
)
def test_compat_overwrites_one_in_k_of_the_slots_and_fixed_all(
    num_classes: int, slots: int, tiles: int, share: float
) -> None:
    """Quirk 9."""
    compat = PrototypeQueue.noise(num_classes, 1, slots, generator(), over_classes=False)
    assert _rewritten(compat, tiles, num_classes) == share
    assert _rewritten(PrototypeQueue.empty(num_classes, 1, slots), tiles, num_classes) == 1.0


def test_compat_pointer_is_shared_by_the_classes_and_moves_on_for_each() -> None:
    queue = PrototypeQueue.noise(2, 1, 12, generator(), over_classes=False)
    noise = queue.vectors.clone()
    for number in (1, 2):
        queue.write(*numbered(number, 3, 2))
    expected = noise[:, 0].clone()
    expected[0, 0:3], expected[1, 3:6], expected[0, 6:9], expected[1, 9:12] = 1, 1, 2, 2
    assert torch.equal(queue.vectors[:, 0], expected)
    assert queue.pointer.tolist() == [0]
    assert queue.filled.tolist() == [12, 12]


def test_fixed_queue_has_a_pointer_per_class_and_goes_round() -> None:
    queue = PrototypeQueue.empty(2, 1, 4)
    for number in (1, 2, 3):
        vectors, occupied = numbered(number, 2, 2)
        vectors[1] += 10
        # Class 1 is in the second tile alone, and in the second batch not at all.
        occupied[0, 1] = False
        occupied[1, 1] = number != 2
        queue.write(vectors, occupied)
    assert queue.vectors[:, 0].tolist() == [[3, 13, 2, 12], [11, 13, 0, 0]]
    assert queue.filled.tolist() == [4, 2]
    assert queue.pointer.tolist() == [2, 2]


def test_mean_of_a_fixed_queue_is_over_filled_slots() -> None:
    queue = PrototypeQueue.empty(2, 1, 4)
    vectors, occupied = numbered(6, 2, 2)
    occupied[:, 1] = False
    queue.write(vectors, occupied)
    assert queue.means.flatten().tolist() == [6.0, 0.0]
    assert queue.written.tolist() == [[True, True, False, False], [False] * 4]


def test_written_prototypes_are_constants() -> None:
    queue = PrototypeQueue.empty(2, 1, 4)
    vectors, occupied = numbered(1, 2, 2)
    queue.write(vectors.requires_grad_(), occupied)
    assert not queue.vectors.requires_grad


@pytest.mark.parametrize(("trio", "axis"), [(VOLUMES, 1), (ACDC, 0)], ids=["3D: features", "2D: classes"])
def test_compat_queues_start_as_noise_normalised_as_upstream(trio: TrioConfig, axis: int) -> None:
    """Quirk 10."""
    queue = queues(trio, mode="compat").of(0, 0)
    lengths = np.linalg.norm(queue.vectors.numpy(), axis=axis)
    np.testing.assert_allclose(lengths, 1.0, rtol=1e-5)
    other = np.linalg.norm(queue.vectors.numpy(), axis=1 - axis)
    assert np.abs(other - 1.0).max() > 0.1
    assert queue.written.all()


def test_fixed_queues_start_empty() -> None:
    state = queues().state()
    assert all((tensor == 0).all() for tensor in state.values())


@pytest.mark.parametrize(("trio", "slots"), [(VOLUMES, 144), (ACDC, 1440)], ids=["3D", "2D"])
def test_there_is_a_queue_for_every_subnet_and_level(trio: TrioConfig, slots: int) -> None:
    found = queues(trio)
    for subnet in (0, 1):
        shapes = [tuple(found.of(subnet, level).vectors.shape) for level in range(3)]
        assert shapes == [(trio.num_classes, channels, slots) for channels in (256, 128, 64)]
    assert found.of(0, 0) is not found.of(1, 0)


def test_noise_comes_from_the_generator() -> None:
    first, same, other = (queues(mode="compat", seed=seed).state() for seed in (1, 1, 2))
    assert all(torch.equal(first[name], same[name]) for name in first)
    assert not torch.equal(first["a/0/vectors"], other["a/0/vectors"])
    assert not torch.equal(first["a/0/vectors"], first["b/0/vectors"])


@pytest.mark.parametrize("mode", ["compat", "fixed"])
def test_restored_queues_go_on_like_the_ones_that_were_saved(mode: Any) -> None:
    def write(target: PrototypeQueues, seed: int) -> None:
        vectors = torch.randn(4, 2, 256, generator=generator(seed))
        target.of(1, 0).write(vectors, torch.rand(4, 2, generator=generator(seed)) < 0.7)

    original, restored = queues(mode=mode), queues(mode=mode, seed=5)
    write(original, 1)
    state = original.state()
    write(original, 2)
    restored.restore(state)
    write(restored, 2)
    assert all(torch.equal(tensor, restored.state()[name]) for name, tensor in original.state().items())
    assert not torch.equal(state["b/0/vectors"], original.state()["b/0/vectors"]), "the state must be a copy"


@pytest.mark.parametrize(
    "other",
    [
        pytest.param({"mode": "compat"}, id="another mode"),
        pytest.param({"queue_length": 12}, id="another length"),
        pytest.param({"trio": replace(VOLUMES, num_classes=3, activation="softmax")}, id="another trio"),
    ],
)
def test_state_of_other_queues_is_refused_and_changes_nothing(other: dict[str, Any]) -> None:
    ours = queues()
    with pytest.raises(TrainingError, match="do not fit this method"):
        ours.restore(queues(**other).state())
    assert (ours.of(0, 0).vectors == 0).all()


def test_batch_that_does_not_divide_the_queue_is_refused() -> None:
    queues().check_batch(4)
    with pytest.raises(TrainingError, match="5 tiles; the queue length 144"):
        queues().check_batch(5)


def test_labelled_dice_is_soft_and_of_the_foreground() -> None:
    p = torch.rand(2, 2, 3, 4, 5, generator=generator(), dtype=torch.float64)
    labels = torch.randint(2, (2, 3, 4, 5), generator=generator())
    y, foreground = labels.numpy(), p[:, 1].numpy()
    expected = 2 * (foreground * y).sum() / (foreground.sum() + y.sum() + 0.001)
    for compat in (True, False):
        assert labelled_dice(p, one_hot_target(labels, 2), compat) == pytest.approx(expected, rel=1e-6)


def test_class_that_is_nowhere_lowers_the_labelled_dice_in_compat_alone() -> None:
    labels = torch.randint(3, (2, 4, 5), generator=generator())
    target = one_hot_target(labels, 4)
    perfect = target.values
    assert labelled_dice(perfect, target, compat=True) == pytest.approx(2 / 3, abs=1e-3)
    assert labelled_dice(perfect, target, compat=False) == pytest.approx(1.0, abs=1e-3)
    assert labelled_dice(perfect, one_hot_target(torch.zeros_like(labels), 4), compat=False) == 0.0


def test_labelled_dice_counts_known_channels_alone() -> None:
    labels, known = torch.tensor([[[1, 0, 0]]]), torch.tensor([[[1, 1, 0]]])
    probabilities = torch.tensor([[0.0, 0.0, 0.0], [1.0, 0.0, 1.0]]).reshape(1, 2, 1, 3)
    found = labelled_dice(probabilities, partial_target(labels, known, 2), compat=False)
    assert found == pytest.approx(2 / 2.001)
