"""Losses against hand computations and slow references; partial labels cost only what they say."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import pytest
import torch
import torch.nn.functional as F  # noqa: N812  (torch's own convention)
from torch import Tensor

from ucseg_training.method.config import AxisOrder, DiceRule
from ucseg_training.method.losses import (
    Readout,
    accuracy_versus_uncertainty,
    cross_entropy,
    cross_subnet_difference,
    dice_loss,
    hard_parts,
    mean_squared_difference,
    supervised_parts,
)
from ucseg_training.method.targets import PartialTarget, complete_target, one_hot_target, partial_target
from ucseg_training.nets import Activation

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


def _softmax(logits: Tensor) -> Readout:
    return Readout.of(logits, "softmax")


def _sigmoid(logits: Tensor) -> Readout:
    return Readout.of(logits, "sigmoid")


def _weight(progress: float) -> float:
    """Of rightly predicted voxels: 0.01 at the start, 1 at the end."""
    return float(0.01 ** (1.0 - progress))


def _supervised_loss(logits: Tensor, target: PartialTarget, progress: float) -> Tensor:
    parts = supervised_parts(_softmax(logits), target, _weight(progress), "batch", "zyx")
    return torch.stack(list(parts.values())).sum()


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
    torch.testing.assert_close(cross_entropy(_softmax(logits), _complete(labels)), F.cross_entropy(logits, labels))


def test_dice_of_a_case_worked_by_hand() -> None:
    foreground = torch.tensor([0.5, 1.0, 0.5, 0.0], dtype=torch.float64).reshape(1, 1, 1, 1, 4)
    labels = torch.tensor([1, 1, 0, 0]).reshape(1, 1, 1, 4)
    target = partial_target(labels, torch.ones_like(labels), 2)
    loss = dice_loss(torch.cat([1 - foreground, foreground], dim=1), target, "batch")
    assert float(loss) == pytest.approx(1 - (2 * 1.5 + 1e-5) / (2 + 2 + 1e-5), abs=1e-12)


def test_dice_with_complete_labels_is_the_mean_over_the_foreground_classes() -> None:
    probabilities, labels = F.softmax(_logits(), dim=1), _labels()
    p, y = probabilities.numpy(), labels.numpy()
    losses = [1 - (2 * p[:, k][y == k].sum() + 1e-5) / (p[:, k].sum() + (y == k).sum() + 1e-5) for k in range(1, K)]
    assert set(y.ravel()) == set(range(K)), "every class must occur"
    assert float(dice_loss(probabilities, _complete(labels), "batch")) == pytest.approx(np.mean(losses), abs=1e-12)


@PROGRESS
def test_accuracy_versus_uncertainty_with_complete_labels_is_that_of_the_slow_reference(progress: float) -> None:
    logits, labels = _logits(), _labels()
    expected = _reference_au(logits.numpy(), labels.numpy(), progress)
    found = accuracy_versus_uncertainty(_softmax(logits), _complete(labels), _weight(progress))
    assert float(found) == pytest.approx(expected, rel=1e-7)


@PROGRESS
def test_supervised_loss_has_three_parts(progress: float) -> None:
    readout, target = _softmax(_logits()), _complete(_labels())
    parts = supervised_parts(readout, target, _weight(progress), "tile", "zyx")
    expected = {
        "cross_entropy": cross_entropy(readout, target),
        "dice": dice_loss(readout.probabilities, target, "tile"),
        "accuracy_versus_uncertainty": accuracy_versus_uncertainty(readout, target, _weight(progress)),
    }
    assert parts == expected
    assert hard_parts(readout, target, "tile", "zyx") == {name: expected[name] for name in ("cross_entropy", "dice")}


def test_supervised_loss_computes_in_float32_whatever_the_logits_are() -> None:
    logits, target = _logits().to(torch.bfloat16), _complete(_labels())
    loss = _supervised_loss(logits, target, 0.5)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, _supervised_loss(logits.float(), target, 0.5), rtol=0, atol=0)


@pytest.mark.parametrize("values", [(-30.0, -30.0, 30.0), (30.0, -30.0, 30.0), (30.0, -30.0, -30.0)], ids=str)
def test_predicting_a_class_that_may_be_there_costs_no_cross_entropy(values: tuple[float, ...]) -> None:
    class_2_unknown = _one_voxel(0, known=0b01)
    assert float(cross_entropy(_softmax(_voxel_logits(*values)), class_2_unknown)) < 1e-9


def test_predicting_a_class_that_is_known_to_be_absent_costs_cross_entropy() -> None:
    class_2_unknown = _one_voxel(0, known=0b01)
    assert float(cross_entropy(_softmax(_voxel_logits(-30.0, 30.0, -30.0)), class_2_unknown)) > 50.0


@pytest.mark.parametrize(("known", "costs"), [(0b01, False), (0b11, True)], ids=["unknown", "known to be absent"])
def test_dice_punishes_a_class_outside_its_label_only_where_its_absence_is_known(known: int, costs: bool) -> None:
    labels = torch.tensor([2, 0]).reshape(1, 1, 1, 2)
    target = partial_target(labels, torch.tensor([0b11, known]).reshape(1, 1, 1, 2), 3)
    losses = []
    for second_voxel in (0.0, 1.0):
        probabilities = torch.zeros(1, 3, 1, 1, 2)
        probabilities[0, 2, 0, 0] = torch.tensor([1.0, second_voxel])
        losses.append(float(dice_loss(probabilities, target, "batch")))
    assert losses[0] == pytest.approx(0.0, abs=1e-6)
    assert losses[1] == pytest.approx(1 / 3 if costs else 0.0, abs=1e-5)


def test_predicting_a_class_that_may_be_there_counts_as_right() -> None:
    readout = _softmax(_voxel_logits(0.0, -1.0, 2.0))
    as_unknown = accuracy_versus_uncertainty(readout, _one_voxel(0, known=0b01), 0.5)
    as_right = accuracy_versus_uncertainty(readout, _one_voxel(2, known=0b11), 0.5)
    as_wrong = accuracy_versus_uncertainty(readout, _one_voxel(0, known=0b11), 0.5)
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
    _supervised_loss(logits, target, progress).backward()
    assert logits.grad is not None
    gradient = logits.grad.movedim(1, -1)
    assert (gradient[silent] == 0).all()
    assert (gradient[~silent] != 0).any(dim=-1).all()


@PROGRESS
def test_voxels_about_which_nothing_is_known_do_not_dilute_the_loss(progress: float) -> None:
    target, _ = _half_informative()
    logits = _logits()
    alone = partial_target(target.label_map[:1], torch.full((1, *SHAPE[1:]), ALL_KNOWN), K)
    torch.testing.assert_close(
        _supervised_loss(logits, target, progress), _supervised_loss(logits[:1], alone, progress)
    )


def test_batch_about_which_nothing_is_known_has_no_loss_and_a_gradient_of_zero() -> None:
    nothing = torch.zeros(SHAPE, dtype=torch.int64)
    logits = _logits().requires_grad_()
    loss = _supervised_loss(logits, partial_target(nothing, nothing, K), 0.5)
    loss.backward()
    assert float(loss.detach()) == 0.0
    assert logits.grad is not None
    assert (logits.grad == 0).all()


def test_class_that_is_nowhere_does_not_enter_dice() -> None:
    labels = _labels()
    labels[labels == 3] = 0
    target, probabilities = _complete(labels), F.softmax(_logits(), dim=1)
    fewer = partial_target(labels, torch.full_like(labels, 0b11), 3)
    expected = dice_loss(probabilities[:, :3], fewer, "batch")
    for stray in (0.0, 1.0):
        probabilities[:, 3] = stray
        torch.testing.assert_close(dice_loss(probabilities, target, "batch"), expected)


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
    loss = _supervised_loss(logits, partial_target(labels, known, K), progress)
    loss.backward()
    assert logits.grad is not None
    assert loss.isfinite()
    assert logits.grad.isfinite().all()


# The target itself


@pytest.mark.parametrize("shape", [(2, 5, 6), (2, 3, 5, 6)], ids=["2D", "3D"])
def test_complete_labels_are_a_special_case_of_partial_ones(shape: tuple[int, ...]) -> None:
    labels = torch.randint(K, shape, generator=torch.Generator().manual_seed(1))
    partial, one_hot = _complete(labels), one_hot_target(labels, K)
    assert torch.equal(partial.present, one_hot.present)
    assert torch.equal(partial.allowed, one_hot.allowed)
    assert (one_hot.complete, partial.complete) == (True, False), "both ways of computing must be compared"
    logits = torch.randn(shape[0], K, *shape[1:], generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    rules: tuple[DiceRule, ...] = ("slice", "tile", "batch")
    for rule in rules:
        for readout in (_softmax(logits), _sigmoid(logits)):
            both = [supervised_parts(readout, target, 0.3, rule, "zyx") for target in (partial, one_hot)]
            torch.testing.assert_close(*both)


def test_target_knows_its_label_map() -> None:
    labels = _labels()
    assert torch.equal(_complete(labels).label_map, labels)
    nothing_known = partial_target(labels, torch.zeros_like(labels), K)
    assert torch.equal(nothing_known.label_map, labels)
    assert torch.equal(nothing_known.known.all(dim=1), labels != 0), "unlabelled voxels may be anything here"


# Sigmoid


def _binary(shape: tuple[int, ...] = (2, 3, 4, 5)) -> tuple[Tensor, Tensor]:
    """Two channels of logits, and labels 0 or 1."""
    generator = torch.Generator().manual_seed(5)
    logits = 3.0 * torch.randn(shape[0], 2, *shape[1:], generator=generator, dtype=torch.float64)
    return logits, torch.randint(2, shape, generator=generator)


def _reference_bce(logits: npt.NDArray[np.float64], truth: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    p = 1.0 / (1.0 + np.exp(-logits))
    return np.asarray(-(truth * np.log(p) + (1.0 - truth) * np.log(1.0 - p)))


@pytest.mark.parametrize("shape", [(2, 4, 5), (2, 3, 4, 5)], ids=["2D", "3D"])
def test_sigmoid_cross_entropy_is_the_mean_over_voxels_and_channels(shape: tuple[int, ...]) -> None:
    logits, labels = _binary(shape)
    truth = np.stack([labels.numpy() == 0, labels.numpy() == 1], axis=1).astype(np.float64)
    found = cross_entropy(_sigmoid(logits), one_hot_target(labels, 2))
    assert float(found) == pytest.approx(_reference_bce(logits.numpy(), truth).mean(), rel=1e-9)


def test_sigmoid_cross_entropy_counts_known_channels_alone() -> None:
    logits = torch.tensor([1.0, -2.0, 0.5, 3.0], dtype=torch.float64).reshape(1, 2, 1, 2)
    # The first voxel is foreground; of the second nothing is known.
    target = partial_target(torch.tensor([[[1, 0]]]), torch.tensor([[[1, 0]]]), 2)
    expected = np.mean([_reference_bce(np.array(1.0), np.array(0.0)), _reference_bce(np.array(0.5), np.array(1.0))])
    assert float(cross_entropy(_sigmoid(logits), target)) == pytest.approx(expected, rel=1e-9)


def test_channels_that_are_both_absent_or_both_present_are_a_sigmoid_target() -> None:
    logits = torch.tensor([1.0, -2.0, 0.5, 3.0], dtype=torch.float64).reshape(1, 2, 1, 2)
    channels = torch.tensor([True, False, True, False]).reshape(1, 2, 1, 2)
    expected = _reference_bce(logits.numpy(), channels.numpy().astype(np.float64)).mean()
    assert float(cross_entropy(_sigmoid(logits), complete_target(channels))) == pytest.approx(expected, rel=1e-9)


def test_softmax_target_without_any_class_costs_no_cross_entropy() -> None:
    logits = _logits()
    channels = one_hot_target(_labels(), K).present.clone()
    channels[1] = False
    expected = 0.5 * F.cross_entropy(logits[:1], _labels()[:1])
    torch.testing.assert_close(cross_entropy(_softmax(logits), complete_target(channels)), expected)


@pytest.mark.parametrize("num_classes", [2, 4])
def test_accuracy_versus_uncertainty_of_equal_logits_is_known(num_classes: int) -> None:
    """Evidence ln 2 per class: S = K (1 + ln 2), u = 1 / (1 + ln 2) = 0.5906 whatever K is."""
    logits = torch.zeros(1, num_classes, 1, 1, 2, dtype=torch.float64)
    u, p = 1.0 / (1.0 + math.log(2.0)), 1.0 / num_classes
    assert u == pytest.approx(0.5906, abs=5e-5)
    # Of equal channels the first is predicted: right in the first voxel, wrong in the second.
    target = one_hot_target(torch.tensor([0, 1]).reshape(1, 1, 1, 2), num_classes)
    expected = 0.5 * (0.1 * -p * math.log(1 - u + 1e-10) + 0.9 * -(1 - p) * math.log(u + 1e-10))
    for readout in (_softmax(logits), _sigmoid(logits)):
        assert float(accuracy_versus_uncertainty(readout, target, 0.1)) == pytest.approx(expected, rel=1e-12)


# Dice


def _reference_dice(p: npt.NDArray[np.float64], y: npt.NDArray[np.float64], axes: tuple[int, ...]) -> float:
    overlap, total = (p * y).sum(axis=axes), p.sum(axis=axes) + y.sum(axis=axes)
    return float((1.0 - (2.0 * overlap + 1e-5) / (total + 1e-5)).mean())


@pytest.mark.parametrize(
    ("rule", "axis_order", "axes"),
    [
        pytest.param("slice", "zyx", (3, 4), id="slices along the first axis"),
        pytest.param("slice", "xyz", (2, 3), id="slices along the last axis"),
        pytest.param("tile", "zyx", (2, 3, 4), id="tiles"),
    ],
)
def test_dice_is_the_mean_over_what_the_rule_separates(
    rule: DiceRule, axis_order: AxisOrder, axes: tuple[int, ...]
) -> None:
    probabilities, labels = F.softmax(_logits(), dim=1), _labels()
    truth = np.stack([labels.numpy() == k for k in range(K)], axis=1).astype(np.float64)
    found = dice_loss(probabilities, one_hot_target(labels, K), rule, axis_order)
    assert float(found) == pytest.approx(_reference_dice(probabilities.numpy(), truth, axes), rel=1e-9)


@pytest.mark.parametrize("rule", ["slice", "tile"])
def test_2d_dice_of_either_rule_is_per_tile_and_channel(rule: DiceRule) -> None:
    logits, labels = _binary((2, 4, 5))
    truth = np.stack([labels.numpy() == 0, labels.numpy() == 1], axis=1).astype(np.float64)
    found = dice_loss(logits.sigmoid(), one_hot_target(labels, 2), rule)
    assert float(found) == pytest.approx(_reference_dice(logits.sigmoid().numpy(), truth, (2, 3)), rel=1e-9)


def test_empty_slices_weigh_heavily_in_compat_and_not_in_fixed() -> None:
    """Quirk 12: one of four slices shows the object, and the prediction is right but for 1 % everywhere."""
    labels = torch.zeros(1, 4, 5, 5, dtype=torch.int64)
    labels[0, 0] = 1
    target = one_hot_target(labels, 2)
    probabilities = 0.98 * target.values.double() + 0.01
    by_slice = float(dice_loss(probabilities, target, "slice"))
    by_tile = float(dice_loss(probabilities, target, "tile"))
    # Half of the 2 x 4 slices of a channel that are empty cost 1, in round numbers.
    assert by_slice > 0.45
    assert by_tile < 0.03


def test_slice_of_which_nothing_is_known_does_not_enter_dice() -> None:
    logits, labels, known = _logits(), _labels(), torch.full(SHAPE, ALL_KNOWN)
    labels[:, 1], known[:, 1] = 0, 0
    probabilities, rest = F.softmax(logits, dim=1), [0, 2]
    found = dice_loss(probabilities, partial_target(labels, known, K), "slice")
    expected = dice_loss(probabilities[:, :, rest], one_hot_target(labels[:, rest], K), "slice")
    torch.testing.assert_close(found, expected)


# Two outputs


def _two_outputs(activation: Activation) -> tuple[Tensor, Tensor, npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Logits of two outputs, with gradient, and their probabilities."""
    a, b = _logits(1).requires_grad_(), _logits(2).requires_grad_()
    p, q = ((z.sigmoid() if activation == "sigmoid" else z.softmax(1)).detach().numpy() for z in (a, b))
    return a, b, p, q


@pytest.mark.parametrize("activation", ["sigmoid", "softmax"])
def test_difference_in_fixed_is_the_mean_over_channels_with_gradient_to_the_one_that_follows(
    activation: Activation,
) -> None:
    """Quirk 8."""
    a, b, p, q = _two_outputs(activation)
    difference = cross_subnet_difference(Readout.of(a, activation), Readout.of(b, activation), compat=False)
    expected = -(q * np.log(p) + (1.0 - q) * np.log(1.0 - p)).mean()
    assert float(difference.detach()) == pytest.approx(expected, rel=1e-6)
    difference.backward()
    assert b.grad is None
    assert a.grad is not None
    # d/dp of the binary cross-entropy is (p − q) / (p (1 − p)); through the sigmoid p − q is left.
    slope = (p - q) / (p * (1 - p))
    through = slope * p * (1 - p) if activation == "sigmoid" else p * (slope - (slope * p).sum(axis=1, keepdims=True))
    np.testing.assert_allclose(a.grad.numpy(), through / p.size, rtol=1e-5, atol=1e-12)


@pytest.mark.parametrize("activation", ["sigmoid", "softmax"])
def test_difference_in_compat_is_a_constant_of_the_last_channel(activation: Activation) -> None:
    """Quirk 8."""
    a, b, p, q = _two_outputs(activation)
    difference = cross_subnet_difference(Readout.of(a, activation), Readout.of(b, activation), compat=True)
    p, q = p[:, -1].clip(1e-8, 1 - 1e-7), q[:, -1]
    assert float(difference) == pytest.approx(-(q * np.log(p) + (1.0 - q) * np.log(1.0 - p)).mean(), rel=1e-9)
    assert not difference.requires_grad


@pytest.mark.parametrize("activation", ["sigmoid", "softmax"])
@pytest.mark.parametrize("compat", [False, True], ids=["fixed", "compat"])
def test_difference_of_sure_and_opposite_outputs_is_finite(activation: Activation, compat: bool) -> None:
    a = (1e4 * _logits().sign()).float().requires_grad_()
    difference = cross_subnet_difference(Readout.of(a, activation), Readout.of(-a.detach(), activation), compat)
    assert difference.isfinite()
    if not compat:
        difference.backward()
        assert a.grad is not None
        assert a.grad.isfinite().all()


@pytest.mark.parametrize("activation", ["sigmoid", "softmax"])
def test_squared_difference_from_the_teacher_reaches_the_student(activation: Activation) -> None:
    a, b, p, q = _two_outputs(activation)
    teacher = Readout.of(b, activation).probabilities
    loss = mean_squared_difference(Readout.of(a, activation), teacher)
    assert float(loss.detach()) == pytest.approx(((p - q) ** 2).mean(), rel=1e-9)
    loss.backward()
    assert b.grad is None
    assert a.grad is not None
    assert (a.grad != 0).any()


@pytest.mark.parametrize("activation", ["sigmoid", "softmax"])
def test_readout_that_was_first_read_without_gradient_still_has_one(activation: Activation) -> None:
    logits = _logits().requires_grad_()
    readout = Readout.of(logits, activation)
    with torch.no_grad():
        _ = readout.probabilities, readout.evidence
    for value in (readout.probabilities.square(), readout.evidence):
        (gradient,) = torch.autograd.grad(value.sum(), logits)
        assert (gradient != 0).all()


def test_memory_format_of_the_logits_does_not_matter() -> None:
    logits, target = _logits().float(), _complete(_labels())
    channels_last = logits.to(memory_format=torch.channels_last_3d)
    assert not channels_last.is_contiguous()
    found, expected = (supervised_parts(_softmax(z), target, 0.3, "tile", "zyx") for z in (channels_last, logits))
    assert found == expected
