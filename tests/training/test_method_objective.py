"""The objective as a whole: which terms there are, what they are computed from, and that they train a tiny trio."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812  (torch's own convention)
from torch import Tensor, nn

from ucseg_training.errors import TrainingError
from ucseg_training.method import (
    MethodConfig,
    PartialTarget,
    Terms,
    UcSegObjective,
    one_hot_target,
    partial_target,
)
from ucseg_training.method.contrast import patch_term
from ucseg_training.method.mixing import draw_mixing
from ucseg_training.method.pseudo_labels import pseudo_labels
from ucseg_training.nets import DualNet, SubnetOutput, TrioConfig, TrioOutput

VOLUMES = TrioConfig(
    dim=3,
    in_channels=1,
    num_classes=2,
    tile_shape=(16, 16, 32),
    unet_width=2,
    vnet_width=2,
    attention_width=8,
    heads=2,
    head_dim=4,
    mlp_hidden=8,
    head_widths=(4, 4, 4, 4, 4),
)
IMAGES = replace(VOLUMES, dim=2, in_channels=3, tile_shape=(32, 32))
CLASSES_3D = replace(VOLUMES, num_classes=4, activation="softmax")
CLASSES_2D = replace(IMAGES, num_classes=4, activation="softmax")
TRIOS = pytest.mark.parametrize(
    "trio",
    [
        pytest.param(VOLUMES, id="3D sigmoid"),
        pytest.param(CLASSES_3D, id="3D softmax"),
        pytest.param(IMAGES, id="2D sigmoid"),
        pytest.param(CLASSES_2D, id="2D softmax"),
    ],
)
MODES = pytest.mark.parametrize("mode", ["compat", "fixed"])

BEFORE, MIXING = 0, 15_000
"""Steps of a full run before and after mixing has started, in 2D and 3D."""

SUBNETS = ("a", "b")
HALF = 2
"""Labelled tiles, and unlabelled ones."""


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def new_net(trio: TrioConfig, seed: int = 0) -> DualNet:
    """In eval mode, so that running it twice gives the same; its subnet B is not as faint as the library leaves it."""
    torch.manual_seed(seed)
    net = DualNet(trio).eval()
    for parameter in net.subnet_b.parameters():
        if parameter.ndim > 1:
            nn.init.kaiming_normal_(parameter, nonlinearity="relu")
    return net


def easy_batch(trio: TrioConfig, seed: int = 0) -> tuple[Tensor, PartialTarget, Tensor]:
    """Labelled images, their labels and unlabelled images: bands of intensity are the classes."""
    bands = torch.arange(trio.tile_shape[-1]) * trio.num_classes // trio.tile_shape[-1]
    noise = 0.3 * torch.randn(2 * HALF, trio.in_channels, *trio.tile_shape, generator=generator(seed))
    images = 2.0 * bands / (trio.num_classes - 1) - 1.0 + noise
    labels = bands.expand(HALF, *trio.tile_shape)
    return images[:HALF], one_hot_target(labels, trio.num_classes), images[HALF:]


def new_objective(trio: TrioConfig, seed: int = 0, **values: Any) -> UcSegObjective:
    return UcSegObjective(trio, MethodConfig(**{"queue_length": 8, **values}), generator(seed))


def of(values: Mapping[str, Tensor], name: str) -> float:
    """A term, or the sum of its parts."""
    parts = [float(value) for term, value in values.items() if term == name or term.startswith(f"{name}.")]
    assert parts, f"no term {name} among {sorted(values)}"
    return sum(parts)


def probabilities(logits: Tensor, trio: TrioConfig) -> Tensor:
    return logits.sigmoid() if trio.activation == "sigmoid" else logits.softmax(1)


def cross_entropy(logits: Tensor, channels: Tensor, trio: TrioConfig) -> float:
    """By torch's own functions, for one-hot channels."""
    if trio.activation == "sigmoid":
        return float(F.binary_cross_entropy_with_logits(logits, channels.float()))
    return float(F.cross_entropy(logits, channels.float()))


# Which terms, with which weights


SUPERVISED = {
    f"supervised_{output}.{part}"
    for output in ("a", "b", "fused")
    for part in ("cross_entropy", "dice", "accuracy_versus_uncertainty")
}
DIFFERENCE = {"difference_a", "difference_b"}
CONTRAST = {"patch", "prototype_a", "prototype_b"}
UNSUPERVISED = {f"unsupervised_{subnet}.{part}" for subnet in SUBNETS for part in ("cross_entropy", "dice")}
MIXED = {f"mixed_{subnet}.{part}" for subnet in SUBNETS for part in ("cross_entropy", "dice")}
CONSISTENCY = {"consistency_a", "consistency_b", "consistency_fused"}


@pytest.mark.parametrize(
    ("values", "step", "unlabelled", "names"),
    [
        pytest.param({}, BEFORE, True, SUPERVISED | DIFFERENCE | CONTRAST | UNSUPERVISED, id="before mixing"),
        pytest.param(
            {},
            MIXING,
            True,
            SUPERVISED | UNSUPERVISED | MIXED | {p + n for p in ("", "mixed_") for n in DIFFERENCE | CONTRAST},
            id="with mixing",
        ),
        pytest.param({"use_ccp": False}, BEFORE, True, SUPERVISED | DIFFERENCE | UNSUPERVISED, id="without contrast"),
        pytest.param(
            {"use_mixing": False}, MIXING, True, SUPERVISED | DIFFERENCE | CONTRAST | UNSUPERVISED, id="without mixing"
        ),
        pytest.param(
            {"pseudo_labels": "mean"}, BEFORE, True, SUPERVISED | DIFFERENCE | CONTRAST | UNSUPERVISED, id="without UPG"
        ),
        pytest.param({}, MIXING, False, SUPERVISED | DIFFERENCE | CONTRAST, id="no unlabelled tiles"),
        pytest.param(
            {"pseudo_labels": "none", "use_ccp": False, "use_mixing": False}, MIXING, False, SUPERVISED, id="supervised"
        ),
        pytest.param(
            {"pseudo_labels": "teacher", "use_ccp": False, "use_mixing": False},
            MIXING,
            True,
            SUPERVISED | CONSISTENCY,
            id="mean teacher",
        ),
    ],
)
def test_every_form_of_the_method_has_its_terms(
    values: dict[str, Any], step: int, unlabelled: bool, names: set[str]
) -> None:
    images, target, others = easy_batch(IMAGES)
    net = new_net(IMAGES)
    teacher = new_net(IMAGES, 1) if values.get("pseudo_labels") == "teacher" else None
    terms = new_objective(IMAGES, **values)(
        net, images, target, others if unlabelled else None, step, generator(), teacher
    )
    assert set(terms.values) == names
    assert set(terms.weights) == names
    assert (terms.labelled_dice is None) == (values.get("use_ccp") is False)


def _published_total(terms: Terms, step: int, mixing: bool) -> float:
    """The sum as method and paper state it, from the values of the terms."""
    weight = 150 * 0.1 * math.exp(-5 * (1 - min(step // 150, 200) / 200) ** 2)
    total = of(terms.values, "supervised_fused")
    for i in SUBNETS:
        supervised, difference = of(terms.values, f"supervised_{i}"), of(terms.values, f"difference_{i}")
        unsupervised, prototype = of(terms.values, f"unsupervised_{i}"), of(terms.values, f"prototype_{i}")
        if mixing:
            loss = (
                supervised
                + 0.25 * (difference + of(terms.values, f"mixed_difference_{i}"))
                + 0.5 * weight * (unsupervised + of(terms.values, f"mixed_{i}"))
                + 0.1 * (prototype + of(terms.values, f"mixed_prototype_{i}"))
            )
        else:
            loss = supervised + 0.5 * difference + weight * unsupervised + 0.2 * prototype
        total += 0.5 * loss
    if mixing:
        return total + 0.05 * (of(terms.values, "patch") + of(terms.values, "mixed_patch"))
    return total + 0.1 * of(terms.values, "patch")


@MODES
@TRIOS
@pytest.mark.parametrize("step", [BEFORE, MIXING], ids=["before mixing", "with mixing"])
def test_total_is_the_published_sum_of_the_terms(trio: TrioConfig, mode: Any, step: int) -> None:
    images, target, unlabelled = easy_batch(trio)
    objective, net = new_objective(trio, mode=mode), new_net(trio)
    for _ in range(2):  # the second time, the queues hold something
        terms = objective(net, images, target, unlabelled, step, generator())
    expected = _published_total(terms, step, mixing=step == MIXING)
    assert float(terms.total.detach()) == pytest.approx(expected, rel=1e-5)
    floats = terms.as_floats()
    assert floats.pop("total") == float(terms.total.detach())
    assert floats == {name: float(value) for name, value in terms.values.items()}


def test_mixing_in_compat_starts_at_its_step_whatever_the_length_of_the_run() -> None:
    images, target, unlabelled = easy_batch(VOLUMES)
    objective, net = new_objective(VOLUMES, mode="compat", total_steps=5_900), new_net(VOLUMES)
    for step, mixing in ((5_999, False), (6_000, True)):
        terms = objective(net, images, target, unlabelled, step, generator())
        assert ("mixed_patch" in terms.values) is mixing


# What the terms are computed from


@MODES
@TRIOS
def test_terms_come_from_their_half_of_the_batch(trio: TrioConfig, mode: Any) -> None:
    images, target, unlabelled = easy_batch(trio)
    net = new_net(trio)
    terms = new_objective(trio, mode=mode, largest_component=False if trio.activation == "softmax" else None)(
        net, images, target, unlabelled, BEFORE, generator()
    )
    with torch.no_grad():
        output = net(torch.cat((images, unlabelled)))
    logits = {"a": output.logits_a, "b": output.logits_b, "fused": output.fused_logits}
    for name, z in logits.items():
        found = float(terms.values[f"supervised_{name}.cross_entropy"])
        assert found == pytest.approx(cross_entropy(z[:HALF], target.present, trio), rel=1e-4)
    features = zip(output.features_a[-3:], output.features_b[-3:], strict=True)
    patch = [float(patch_term(a, b, 0.3, mode == "compat")) for a, b in features]
    assert float(terms.values["patch"]) == pytest.approx(sum(patch) / 3, rel=1e-4)
    p, q = (probabilities(logits[name], trio) for name in SUBNETS)
    if mode == "compat":
        p, q = p[:, -1:], q[:, -1:]
    for name, difference in (("a", F.binary_cross_entropy(p, q)), ("b", F.binary_cross_entropy(q, p))):
        assert float(terms.values[f"difference_{name}"]) == pytest.approx(float(difference), rel=1e-4)


@pytest.mark.parametrize("source", ["upg", "mean"])
def test_unlabelled_tiles_are_compared_with_the_pseudo_label_that_was_chosen(source: Any) -> None:
    images, target, unlabelled = easy_batch(CLASSES_2D)
    net = new_net(CLASSES_2D)
    terms = new_objective(CLASSES_2D, pseudo_labels=source, largest_component=False)(
        net, images, target, unlabelled, BEFORE, generator()
    )
    with torch.no_grad():
        output = net(torch.cat((images, unlabelled)))
    means = 0.5 * (output.logits_a.softmax(1) + output.logits_b.softmax(1))
    labels = {"upg": output.fused_logits[HALF:].argmax(1), "mean": means[HALF:].argmax(1)}
    assert not torch.equal(labels["upg"], labels["mean"])
    for name, z in (("a", output.logits_a), ("b", output.logits_b)):
        expected = float(F.cross_entropy(z[HALF:], labels[source]))
        assert float(terms.values[f"unsupervised_{name}.cross_entropy"]) == pytest.approx(expected, rel=1e-4)


@MODES
def test_mixed_terms_come_from_the_mixed_tiles(mode: Any) -> None:
    images, target, unlabelled = easy_batch(CLASSES_3D)
    net = new_net(CLASSES_3D)
    terms = new_objective(CLASSES_3D, mode=mode, largest_component=True)(
        net, images, target, unlabelled, MIXING, generator(7)
    )
    mixing = draw_mixing(CLASSES_3D.tile_shape, generator(7), compat=mode == "compat")
    with torch.no_grad():
        fused = net(torch.cat((images, unlabelled))).fused_logits[HALF:]
        a, b = (subnet(mixing.image(images, unlabelled)) for subnet in (net.subnet_a, net.subnet_b))
    mixed = mixing.target(target, pseudo_labels(fused.softmax(1), new_objective(CLASSES_3D, mode=mode).method))
    for name, output in (("a", a), ("b", b)):
        expected = cross_entropy(output.logits, mixed.present, CLASSES_3D)
        assert float(terms.values[f"mixed_{name}.cross_entropy"]) == pytest.approx(expected, rel=1e-4)
    patch = [
        float(patch_term(p, q, 0.3, mode == "compat")) for p, q in zip(a.features[2:], b.features[2:], strict=True)
    ]
    assert float(terms.values["mixed_patch"]) == pytest.approx(sum(patch) / 3, rel=1e-4)


def test_batch_is_run_once_and_the_upg_not_on_mixed_tiles() -> None:
    images, target, unlabelled = easy_batch(IMAGES)
    net, tiles = new_net(IMAGES), {"trio": [], "upg": [], "subnet": []}  # type: dict[str, list[int]]
    for name, module in (("trio", net), ("upg", net.upg), ("subnet", net.subnet_a)):
        module.register_forward_hook(lambda _, arguments, __, name=name: tiles[name].append(len(arguments[0])))
    new_objective(IMAGES)(net, images, target, unlabelled, MIXING, generator())
    assert tiles == {"trio": [2 * HALF], "upg": [2 * HALF], "subnet": [2 * HALF, HALF]}


def test_labels_that_happen_to_be_complete_cost_what_complete_labels_cost() -> None:
    images, target, unlabelled = easy_batch(CLASSES_2D)
    known = torch.full(target.label_map.shape, 0b111)
    partial = partial_target(target.label_map, known, 4)
    net = new_net(CLASSES_2D)
    first, second = (
        new_objective(CLASSES_2D)(net, images, labels, unlabelled, MIXING, generator()) for labels in (target, partial)
    )
    torch.testing.assert_close(first.values, second.values)


def test_labels_of_which_nothing_is_known_leave_only_what_needs_none() -> None:
    images, target, unlabelled = easy_batch(CLASSES_3D)
    nothing = torch.zeros_like(target.label_map)
    terms = new_objective(CLASSES_3D, dice="batch")(
        new_net(CLASSES_3D), images, partial_target(nothing, nothing, 4), unlabelled, MIXING, generator()
    )
    assert {name for name, value in terms.values.items() if value == 0} >= SUPERVISED
    assert all(of(terms.values, name) > 0 for name in ("unsupervised_a", "mixed_a", "patch"))
    assert terms.labelled_dice == (0.0, 0.0)


# Prototypes


def _stored(objective: UcSegObjective) -> int:
    return sum(int(tensor.sum()) for name, tensor in objective.state().items() if name.endswith("filled"))


def test_contrast_is_evaluated_before_the_write_of_the_same_step() -> None:
    images, target, unlabelled = easy_batch(VOLUMES)
    net, objective = new_net(VOLUMES), new_objective(VOLUMES)
    first, second = (objective(net, images, target, unlabelled, BEFORE, generator()) for _ in range(2))
    assert first.labelled_dice is not None
    assert min(first.labelled_dice) > 0.2, "both subnets must be good enough to write"
    assert [of(first.values, f"prototype_{i}") for i in SUBNETS] == [0.0, 0.0]
    assert all(of(second.values, f"prototype_{i}") > 0.0 for i in SUBNETS)


def test_prototypes_of_a_subnet_below_the_threshold_are_not_kept() -> None:
    """The threshold grows from 0.2 to 0.76 in 3D; an untrained subnet is in between."""
    images, target, unlabelled = easy_batch(VOLUMES)
    net = new_net(VOLUMES)
    for step, kept in ((0, True), (49_999, False)):
        objective = new_objective(VOLUMES, use_mixing=False)
        dice = objective(net, images, target, unlabelled, step, generator()).labelled_dice
        assert dice is not None
        assert all(0.2 < value < 0.76 for value in dice), dice
        assert (_stored(objective) > 0) is kept


def test_prototypes_are_those_of_the_labels_and_the_pseudo_labels() -> None:
    images, target, unlabelled = easy_batch(IMAGES)
    net = new_net(IMAGES)
    objective = new_objective(IMAGES, total_steps=1, use_mixing=False)
    with torch.no_grad():
        output = net(torch.cat((images, unlabelled)))
        # So that subnet A is good enough on the labelled tiles, and B is not.
        for subnet, sign in ((net.net_1.decoder.out_conv, 1.0), (net.net_2.out_conv, -1.0)):
            subnet.weight.zero_()
            subnet.bias.copy_(torch.tensor([-9.0, 9.0]) * sign)
        fused = net(torch.cat((images, unlabelled))).fused_logits
    terms = objective(net, images, target, unlabelled, 0, generator())
    assert terms.labelled_dice is not None
    assert terms.labelled_dice[0] > 0.5 > terms.labelled_dice[1]
    state = objective.state()
    assert all((state[f"b/{level}/filled"] == 0).all() for level in range(3))
    foreground = torch.cat((target.present[:, 1], fused[HALF:, 1] > 0)).float()
    # A point of the small map lies between the two middle voxels of four.
    quarter = torch.stack([foreground[:, y::4, x::4] for y in (1, 2) for x in (1, 2)]).mean(dim=0) > 0.5
    expected = [
        F.normalize(features[:, mask].mean(dim=1), dim=0)
        for features, mask in zip(output.features_a[2], quarter, strict=True)
        if mask.any()
    ]
    assert int(state["a/2/filled"][1]) == len(expected)
    torch.testing.assert_close(state["a/2/vectors"][1, :, : len(expected)], torch.stack(expected, dim=1))


@MODES
def test_continued_run_goes_on_with_its_prototypes(mode: Any) -> None:
    images, target, unlabelled = easy_batch(IMAGES)
    net = new_net(IMAGES)
    undisturbed, continued = new_objective(IMAGES, mode=mode), new_objective(IMAGES, seed=3, mode=mode)
    for seed in range(2):
        undisturbed(net, images, target, unlabelled, MIXING - 10_000, generator(seed))
    continued.restore(undisturbed.state())
    totals = [o(net, images, target, unlabelled, MIXING, generator(9)).total for o in (undisturbed, continued)]
    assert torch.equal(*totals)


def test_state_of_a_method_without_prototypes_is_empty_and_takes_none() -> None:
    plain = new_objective(IMAGES, use_ccp=False)
    assert plain.state() == {}
    plain.restore({})
    with pytest.raises(TrainingError, match="this method has none"):
        plain.restore(new_objective(IMAGES).state())


# Gradients


def _has_gradient(module: nn.Module) -> bool:
    return any(parameter.grad is not None and bool((parameter.grad != 0).any()) for parameter in module.parameters())


@MODES
@TRIOS
def test_gradients_are_finite_and_reach_every_weight(trio: TrioConfig, mode: Any) -> None:
    images, target, unlabelled = easy_batch(trio)
    net, objective = new_net(trio).train(), new_objective(trio, mode=mode)
    for _ in range(2):
        net.zero_grad()
        objective(net, images, target, unlabelled, MIXING, generator()).total.backward()
    without = {name for name, parameter in net.named_parameters() if parameter.grad is None}
    assert without == {"generate_pseudo_simple.cross_attn.attn.temperature"}, "that one is never used"
    gradients = [parameter.grad for parameter in net.parameters() if parameter.grad is not None]
    assert all(gradient.isfinite().all() for gradient in gradients)
    assert all(_has_gradient(part) for part in (net.subnet_a, net.subnet_b, net.upg))


@pytest.mark.parametrize(
    ("trio", "mode"),
    [
        pytest.param(VOLUMES, "fixed", id="3D sigmoid, fixed"),
        pytest.param(VOLUMES, "compat", id="3D sigmoid, compat"),
        pytest.param(CLASSES_3D, "fixed", id="3D softmax, fixed"),
        pytest.param(IMAGES, "fixed", id="2D sigmoid, fixed"),
        pytest.param(CLASSES_2D, "fixed", id="2D softmax, fixed"),
        pytest.param(CLASSES_2D, "compat", id="2D softmax, compat"),
    ],
)
def test_a_few_steps_lower_the_supervised_loss(trio: TrioConfig, mode: Any) -> None:
    images, target, unlabelled = easy_batch(trio)
    net, objective = new_net(trio).train(), new_objective(trio, mode=mode)
    optimizer = torch.optim.AdamW(net.parameters(), lr=3e-3)
    torch.manual_seed(0)
    losses = []
    for number in range(8):
        step = BEFORE if number < 6 else MIXING
        terms = objective(net, images, target, unlabelled, step, generator(number))
        optimizer.zero_grad()
        terms.total.backward()
        optimizer.step()
        losses.append([of(terms.values, f"supervised_{name}.cross_entropy") for name in ("a", "b", "fused")])
    assert all(last < first for first, last in zip(losses[0], losses[-1], strict=True)), losses


class _Logits(nn.Module):
    """A trio whose logits are its weights, in float64; it does not look at the image."""

    def __init__(self, trio: TrioConfig, dtype: torch.dtype = torch.float64) -> None:
        super().__init__()
        shape = (2 * HALF, trio.num_classes, *trio.tile_shape)
        self.a, self.b, self.fused = (
            nn.Parameter((2.0 * torch.randn(shape, generator=generator(seed))).to(dtype)) for seed in (1, 2, 3)
        )
        features = [
            torch.rand(2 * HALF, trio.unet_width * 2**stage, 32 >> stage, 32 >> stage, generator=generator(stage))
            for stage in range(5)
        ]
        self.features = tuple(feature.to(dtype) for feature in features)

    def forward(self, _: Tensor) -> TrioOutput:
        return TrioOutput(self.a, self.features, self.b, self.features, self.fused)

    def subnet_a(self, _: Tensor) -> SubnetOutput:
        return SubnetOutput(self.a, self.features)

    def subnet_b(self, _: Tensor) -> SubnetOutput:
        return SubnetOutput(self.b, self.features)

    def upg(self, logits_a: Tensor, logits_b: Tensor) -> Tensor:
        assert not logits_a.requires_grad
        assert not logits_b.requires_grad
        return self.fused[: len(logits_a)]


def _reference_hard(z: Tensor, y: Tensor) -> Tensor:
    p, space = z.sigmoid(), (2, 3)
    dice = (2 * (p * y).sum(space) + 1e-5) / (p.sum(space) + y.sum(space) + 1e-5)
    return F.binary_cross_entropy_with_logits(z, y) + (1 - dice).mean()


def _reference_supervised(z: Tensor, y: Tensor, weight: float) -> Tensor:
    alpha = F.softplus(z) + 1
    best, u = alpha.amax(1) / alpha.sum(1), 2 / alpha.sum(1)
    right = (alpha.argmax(1) == y.argmax(1)).double()
    value = weight * right * -best * torch.log(1 - u + 1e-10)
    value = value + (1 - weight) * (1 - right) * -(1 - best) * torch.log(u + 1e-10)
    return _reference_hard(z, y) + value.mean()


@MODES
@pytest.mark.parametrize("source", ["upg", "mean"])
def test_gradient_is_that_of_the_published_sum_written_out(mode: Any, source: Any) -> None:
    """Every logit of all three outputs, so that no term has lost its gradient and none has one too many."""
    step, net = 20_000, _Logits(IMAGES)
    images, target, unlabelled = easy_batch(IMAGES)
    objective = new_objective(IMAGES, mode=mode, pseudo_labels=source, use_ccp=False, use_mixing=False)
    terms = objective(net, images, target, unlabelled, step, generator())  # type: ignore[arg-type]  # a stub
    terms.total.backward()

    a, b, fused = (parameter.detach().clone().requires_grad_() for parameter in (net.a, net.b, net.fused))
    y, weight = target.present.double(), 0.01 ** (1 - step / 50_000)
    source_p = fused.sigmoid() if source == "upg" else 0.5 * (a.sigmoid() + b.sigmoid())
    chosen = source_p[HALF:].detach() > 0.5
    pseudo = (chosen if mode == "compat" else torch.stack((~chosen[:, 1], chosen[:, 1]), dim=1)).double()
    lambda_u = 15 * math.exp(-5 * (1 - (step // 150) / 200) ** 2)
    total = _reference_supervised(fused[:HALF], y, weight)
    for z, other in ((a, b), (b, a)):
        loss = _reference_supervised(z[:HALF], y, weight) + lambda_u * _reference_hard(z[HALF:], pseudo)
        if mode == "compat":
            difference = F.binary_cross_entropy(z.sigmoid()[:, 1], other.sigmoid()[:, 1].detach()).detach()
        else:
            difference = F.binary_cross_entropy(z.sigmoid(), other.sigmoid().detach())
        total = total + 0.5 * (loss + 0.5 * difference)
    total.backward()
    assert float(terms.total.detach()) == pytest.approx(float(total.detach()), rel=1e-9)
    for found, expected in ((net.a, a), (net.b, b), (net.fused, fused)):
        torch.testing.assert_close(found.grad, expected.grad, rtol=1e-7, atol=1e-14)


@pytest.mark.parametrize(("source", "reached"), [("upg", True), ("mean", False)])
def test_subnets_learn_from_the_fused_output_but_not_in_the_form_without_upg(source: Any, reached: bool) -> None:
    """Gradients of the same subnets under two heads that fuse differently."""
    images, target, _ = easy_batch(IMAGES)
    net = new_net(IMAGES)
    objective = new_objective(IMAGES, pseudo_labels=source, use_ccp=False, use_mixing=False)
    gradients = []
    for factor in (1.0, 3.0):
        net.zero_grad()
        with torch.no_grad():
            net.upg.final_head.conv1[0].weight.mul_(factor)
        objective(net, images, target, None, BEFORE, generator()).total.backward()
        assert _has_gradient(net.upg)
        gradients.append([parameter.grad.clone() for parameter in net.subnet_a.parameters()])  # type: ignore[union-attr]  # backward has run
    same = all(torch.equal(first, second) for first, second in zip(*gradients, strict=True))
    assert same is not reached


def test_teacher_is_followed_by_all_three_outputs_with_the_ramp() -> None:
    images, target, unlabelled = easy_batch(CLASSES_2D)
    net, teacher, step = new_net(CLASSES_2D), new_net(CLASSES_2D, 1).requires_grad_(True), 12_000
    objective = new_objective(CLASSES_2D, pseudo_labels="teacher", use_ccp=False, use_mixing=False, teacher_noise=0.0)
    terms = objective(net, images, target, unlabelled, step, generator(), teacher)
    with torch.no_grad():
        output, wanted = net(torch.cat((images, unlabelled))), teacher(unlabelled).fused_logits.softmax(1)
    ramp = 0.1 * math.exp(-5 * (1 - 80 / 200) ** 2)
    logits = {"a": output.logits_a, "b": output.logits_b, "fused": output.fused_logits}
    for name, share in (("a", 0.5), ("b", 0.5), ("fused", 1.0)):
        expected = float((logits[name][HALF:].softmax(1) - wanted).square().mean())
        assert float(terms.values[f"consistency_{name}"]) == pytest.approx(expected, rel=1e-4)
        assert terms.weights[f"consistency_{name}"] == pytest.approx(share * ramp)
    weighted = sum(terms.weights[name] * float(value) for name, value in terms.values.items())
    assert float(terms.total.detach()) == pytest.approx(weighted, rel=1e-5)
    terms.total.backward()
    assert not _has_gradient(teacher)


def test_teacher_sees_noise_from_the_generator() -> None:
    images, target, unlabelled = easy_batch(IMAGES)
    net, teacher = new_net(IMAGES), new_net(IMAGES, 1)
    seen: list[Tensor] = []
    teacher.register_forward_hook(lambda _, arguments, __: seen.append(arguments[0] - unlabelled))
    objective = new_objective(IMAGES, pseudo_labels="teacher", use_ccp=False, use_mixing=False, teacher_noise=0.25)
    for seed in (1, 1, 2):
        objective(net, images, target, unlabelled, BEFORE, generator(seed), teacher)
    assert torch.equal(seen[0], seen[1])
    assert not torch.equal(seen[0], seen[2])
    assert 0.2 < float(seen[0].std()) < 0.25
    assert float(seen[0].abs().max()) == pytest.approx(0.5, rel=1e-4), "the tails are cut"


# Repeating, precision, bad input


@TRIOS
def test_same_generators_give_the_same_bits(trio: TrioConfig) -> None:
    images, target, unlabelled = easy_batch(trio)
    totals = []
    for seed in (4, 4, 5):
        torch.manual_seed(1)
        net = copy.deepcopy(new_net(trio)).train()
        totals.append(new_objective(trio)(net, images, target, unlabelled, MIXING, generator(seed)).total)
    assert torch.equal(totals[0], totals[1])
    assert not torch.equal(totals[0], totals[2]), "another box must be drawn"


def test_losses_are_float32_under_autocast_and_whatever_the_networks_give() -> None:
    images, target, unlabelled = easy_batch(IMAGES)
    half, full = _Logits(IMAGES, torch.bfloat16), _Logits(IMAGES, torch.bfloat16).float()
    full.features = tuple(feature.float() for feature in full.features)
    with torch.autocast("cpu", torch.bfloat16):
        under = new_objective(IMAGES)(half, images, target, unlabelled, BEFORE, generator())  # type: ignore[arg-type]  # a stub
    expected = new_objective(IMAGES)(full, images, target, unlabelled, BEFORE, generator())  # type: ignore[arg-type]  # a stub
    assert under.total.dtype == torch.float32
    torch.testing.assert_close(under.values, expected.values, rtol=0, atol=0)


def test_term_that_is_not_finite_is_named_with_the_step_and_nothing_is_kept() -> None:
    images, target, unlabelled = easy_batch(IMAGES)
    net, objective = new_net(IMAGES), new_objective(IMAGES)
    with torch.no_grad():
        net.net_2.out_conv.bias[0] = torch.nan
    with pytest.raises(TrainingError, match=r"step 17: the term supervised_b\.cross_entropy is not finite \(nan\)"):
        objective(net, images, target, unlabelled, 17, generator())
    assert _stored(objective) == 0


_PLAIN = {"use_ccp": False, "use_mixing": False}


@pytest.mark.parametrize(
    ("values", "change", "message"),
    [
        pytest.param({}, {"unlabelled": 1}, "2 labelled and 1 unlabelled", id="unequal halves"),
        pytest.param({"use_mixing": False}, {"unlabelled": 1}, "3 tiles; the queue length 8", id="queue length"),
        pytest.param({"pseudo_labels": "none", **_PLAIN}, {}, "2 unlabelled tiles", id="unlabelled tiles unwanted"),
        pytest.param({"pseudo_labels": "teacher", **_PLAIN}, {}, "no teacher", id="no teacher"),
        pytest.param({}, {"teacher": True}, "there is a teacher", id="teacher unwanted"),
        pytest.param({}, {"step": -1}, "step is -1", id="step"),
        pytest.param({}, {"classes": 3}, r"target has shape \(2, 3, 32, 32\); expected \(2, 2, 32, 32\)", id="target"),
    ],
)
def test_batch_that_does_not_fit_is_refused_before_anything_runs(
    values: dict[str, Any], change: dict[str, Any], message: str
) -> None:
    images, target, unlabelled = easy_batch(IMAGES)
    if "classes" in change:
        target = one_hot_target(target.label_map, change["classes"])
    net = _Logits(IMAGES)
    net.forward = None  # type: ignore[assignment]  # it must not be asked
    with pytest.raises(TrainingError, match=message):
        new_objective(IMAGES, **values)(
            net,  # type: ignore[arg-type]  # a stub
            images,
            target,
            unlabelled[: change.get("unlabelled", HALF)],
            change.get("step", BEFORE),
            generator(),
            new_net(IMAGES) if change.get("teacher") else None,
        )
