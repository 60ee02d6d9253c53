"""Losses against hand computations and slow references; partial labels cost only what they say."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import pytest
import torch
import torch.nn.functional as F  # noqa: N812  (torch's own convention)
from torch import Tensor

from ucseg_training.losses import (
    PartialTarget,
    accuracy_versus_uncertainty,
    partial_cross_entropy,
    partial_dice_loss,
    partial_target,
    supervised_loss,
)

K = 4
SHAPE = (2, 3, 4, 5)
"""Tiles, z, y, x."""
ALL_KNOWN = 0b111
PROGRESS = pytest.mark.parametrize("progress", [0.0, 0.3, 1.0])


def _logits(seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return 3.0 * torch.randn(SHAPE[0], K, *SHAPE[1:], generator=generator, dtype=torch.float64)


def _labels() -> Tensor:
    return torch.randint(K, SHAPE, generator=torch.Generator().manual_seed(7))


def _complete(labels: Tensor) -> PartialTarget:
    return partial_target(labels, torch.full_like(labels, ALL_KNOWN), K)


def _one_voxel(label: int, known: int) -> PartialTarget:
    """Three classes, one voxel."""
    shape = (1, 1, 1, 1)
    return partial_target(torch.full(shape, label), torch.full(shape, known), 3)


def _voxel_logits(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64).reshape(1, -1, 1, 1, 1)


def _reference_au(logits: npt.NDArray[np.float64], labels: npt.NDArray[np.int64], progress: float) -> float:
    """Voxel by voxel: little uncertainty is asked for where the prediction is right, much where it is wrong."""
    epsilon, weight = 1e-10, 0.01 ** (1.0 - progress)
    values = []
    for tile, z, y, x in np.ndindex(labels.shape):
        alpha = [math.log1p(math.exp(value)) + 1.0 for value in logits[tile, :, z, y, x]]
        strength = sum(alpha)
        u, best = len(alpha) / strength, max(alpha) / strength
        if alpha.index(max(alpha)) == labels[tile, z, y, x]:
            values.append(weight * -best * math.log(1.0 - u + epsilon))
        else:
            values.append((1.0 - weight) * -(1.0 - best) * math.log(u + epsilon))
    return float(np.mean(values))


@pytest.mark.parametrize(
    ("label", "known", "allowed"),
    [
        pytest.param(2, 0b11, [False, False, True], id="labelled voxel has its class alone"),
        pytest.param(2, 0b00, [False, False, True], id="labelled voxel has its class alone, whatever else is unknown"),
        pytest.param(0, 0b11, [True, False, False], id="all known absent is background"),
        pytest.param(0, 0b01, [True, False, True], id="the unknown class may be there"),
        pytest.param(0, 0b10, [True, True, False], id="the other unknown class may be there"),
        pytest.param(0, 0b00, [True, True, True], id="nothing known"),
    ],
)
def test_allowed_classes_follow_label_and_known_bits(label: int, known: int, allowed: list[bool]) -> None:
    target = _one_voxel(label, known)
    assert target.allowed.flatten().tolist() == allowed
    assert bool(target.informative) is not all(allowed)


def test_cross_entropy_with_complete_labels_is_the_ordinary_one() -> None:
    logits, labels = _logits(), _labels()
    torch.testing.assert_close(partial_cross_entropy(logits, _complete(labels)), F.cross_entropy(logits, labels))


def test_dice_of_a_case_worked_by_hand() -> None:
    foreground = torch.tensor([0.5, 1.0, 0.5, 0.0], dtype=torch.float64).reshape(1, 1, 1, 1, 4)
    labels = torch.tensor([1, 1, 0, 0]).reshape(1, 1, 1, 4)
    target = partial_target(labels, torch.ones_like(labels), 2)
    loss = partial_dice_loss(torch.cat([1 - foreground, foreground], dim=1), target)
    assert float(loss) == pytest.approx(1 - (2 * 1.5 + 1e-5) / (2 + 2 + 1e-5), abs=1e-12)


def test_dice_with_complete_labels_is_the_mean_over_the_foreground_classes() -> None:
    probabilities, labels = F.softmax(_logits(), dim=1), _labels()
    p, y = probabilities.numpy(), labels.numpy()
    losses = [1 - (2 * p[:, k][y == k].sum() + 1e-5) / (p[:, k].sum() + (y == k).sum() + 1e-5) for k in range(1, K)]
    assert set(y.ravel()) == set(range(K)), "every class must occur"
    assert float(partial_dice_loss(probabilities, _complete(labels))) == pytest.approx(np.mean(losses), abs=1e-12)


@PROGRESS
def test_accuracy_versus_uncertainty_with_complete_labels_is_that_of_the_slow_reference(progress: float) -> None:
    logits, labels = _logits(), _labels()
    expected = _reference_au(logits.numpy(), labels.numpy(), progress)
    found = accuracy_versus_uncertainty(logits, _complete(labels), progress)
    assert float(found) == pytest.approx(expected, rel=1e-7)


@PROGRESS
def test_supervised_loss_is_the_sum_of_three(progress: float) -> None:
    logits, target = _logits().float(), _complete(_labels())
    parts = [
        partial_cross_entropy(logits, target),
        partial_dice_loss(F.softmax(logits, dim=1), target),
        accuracy_versus_uncertainty(logits, target, progress),
    ]
    torch.testing.assert_close(supervised_loss(logits, target, progress), sum(parts, torch.zeros(())))


def test_supervised_loss_computes_in_float32_whatever_the_logits_are() -> None:
    logits, target = _logits().to(torch.bfloat16), _complete(_labels())
    loss = supervised_loss(logits, target, 0.5)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, supervised_loss(logits.float(), target, 0.5), rtol=0, atol=0)


@pytest.mark.parametrize("values", [(-30.0, -30.0, 30.0), (30.0, -30.0, 30.0), (30.0, -30.0, -30.0)], ids=str)
def test_predicting_a_class_that_may_be_there_costs_no_cross_entropy(values: tuple[float, ...]) -> None:
    class_2_unknown = _one_voxel(0, known=0b01)
    assert float(partial_cross_entropy(_voxel_logits(*values), class_2_unknown)) < 1e-9


def test_predicting_a_class_that_is_known_to_be_absent_costs_cross_entropy() -> None:
    class_2_unknown = _one_voxel(0, known=0b01)
    assert float(partial_cross_entropy(_voxel_logits(-30.0, 30.0, -30.0), class_2_unknown)) > 50.0


@pytest.mark.parametrize(("known", "costs"), [(0b01, False), (0b11, True)], ids=["unknown", "known to be absent"])
def test_dice_punishes_a_class_outside_its_label_only_where_its_absence_is_known(known: int, costs: bool) -> None:
    labels = torch.tensor([2, 0]).reshape(1, 1, 1, 2)
    target = partial_target(labels, torch.tensor([0b11, known]).reshape(1, 1, 1, 2), 3)
    losses = []
    for second_voxel in (0.0, 1.0):
        probabilities = torch.zeros(1, 3, 1, 1, 2)
        probabilities[0, 2, 0, 0] = torch.tensor([1.0, second_voxel])
        losses.append(float(partial_dice_loss(probabilities, target)))
    assert losses[0] == pytest.approx(0.0, abs=1e-6)
    assert losses[1] == pytest.approx(1 / 3 if costs else 0.0, abs=1e-5)


def test_predicting_a_class_that_may_be_there_counts_as_right() -> None:
    logits = _voxel_logits(0.0, -1.0, 2.0)
    as_unknown = accuracy_versus_uncertainty(logits, _one_voxel(0, known=0b01), 0.5)
    as_right = accuracy_versus_uncertainty(logits, _one_voxel(2, known=0b11), 0.5)
    as_wrong = accuracy_versus_uncertainty(logits, _one_voxel(0, known=0b11), 0.5)
    assert float(as_unknown) == float(as_right)
    assert float(as_unknown) != float(as_wrong)


def _half_informative() -> tuple[PartialTarget, Tensor]:
    """Labels of which the second tile says nothing, and that mask (tiles, z, y, x)."""
    labels, known = _labels(), torch.full(SHAPE, ALL_KNOWN)
    labels[1], known[1] = 0, 0
    silent = torch.zeros(SHAPE, dtype=torch.bool)
    silent[1] = True
    return partial_target(labels, known, K), silent


@PROGRESS
def test_voxels_about_which_nothing_is_known_have_no_gradient(progress: float) -> None:
    target, silent = _half_informative()
    logits = _logits().requires_grad_()
    supervised_loss(logits, target, progress).backward()
    assert logits.grad is not None
    gradient = logits.grad.movedim(1, -1)
    assert (gradient[silent] == 0).all()
    assert (gradient[~silent] != 0).any(dim=-1).all()


@PROGRESS
def test_voxels_about_which_nothing_is_known_do_not_dilute_the_loss(progress: float) -> None:
    target, _ = _half_informative()
    logits = _logits()
    alone = partial_target(target.label_map[:1], torch.full((1, *SHAPE[1:]), ALL_KNOWN), K)
    torch.testing.assert_close(supervised_loss(logits, target, progress), supervised_loss(logits[:1], alone, progress))


def test_batch_about_which_nothing_is_known_has_no_loss_and_a_gradient_of_zero() -> None:
    nothing = torch.zeros(SHAPE, dtype=torch.int64)
    logits = _logits().requires_grad_()
    loss = supervised_loss(logits, partial_target(nothing, nothing, K), 0.5)
    loss.backward()
    assert float(loss.detach()) == 0.0
    assert logits.grad is not None
    assert (logits.grad == 0).all()


def test_class_that_is_nowhere_does_not_enter_dice() -> None:
    labels = _labels()
    labels[labels == 3] = 0
    target, probabilities = _complete(labels), F.softmax(_logits(), dim=1)
    expected = partial_dice_loss(probabilities[:, :3], partial_target(labels, torch.full_like(labels, 0b11), 3))
    for stray in (0.0, 1.0):
        probabilities[:, 3] = stray
        torch.testing.assert_close(partial_dice_loss(probabilities, target), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("progress", [0.0, 1.0])
@pytest.mark.parametrize("kind", ["all high", "all low", "sure and right", "sure and wrong", "either sign"])
def test_loss_and_gradient_are_finite_at_extreme_logits(kind: str, progress: float, dtype: torch.dtype) -> None:
    labels = _labels()
    one_hot = F.one_hot(labels, K).movedim(-1, 1).double()
    sign = {
        "all high": torch.ones_like(one_hot),
        "all low": -torch.ones_like(one_hot),
        "sure and right": 2 * one_hot - 1,
        "sure and wrong": 1 - 2 * one_hot,
        "either sign": _logits().sign(),
    }[kind]
    logits = (1e4 * sign).to(dtype).requires_grad_()
    known = torch.randint(ALL_KNOWN + 1, SHAPE, generator=torch.Generator().manual_seed(3))
    loss = supervised_loss(logits, partial_target(labels, known, K), progress)
    loss.backward()
    assert logits.grad is not None
    assert loss.isfinite()
    assert logits.grad.isfinite().all()
