"""Every rewrite computes what the trained networks compute, and leaves those as they are."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F  # noqa: N812  (torch's own convention)
from torch import Tensor, nn

from tests.export.conftest import CONFIGS, trained_like
from ucseg_export.rewrites import (
    BlockedInstanceNorm,
    ScaledUpg,
    with_blocked_norms,
    with_folded_norms,
    without_dead_biases,
    without_dropouts,
)
from ucseg_export.stages import inference_stages
from ucseg_training.nets import DualNet, UNet3d

REWRITES = (without_dropouts, without_dead_biases, with_folded_norms, with_blocked_norms)
ATOL = 1e-9
"""Everything here runs in float64, where an identity that is not exact cannot hide."""


def image_for(name: str) -> Tensor:
    config = CONFIGS[name]
    return torch.randn(2, config.in_channels, *config.tile_shape, generator=torch.Generator().manual_seed(5)).double()


def logits_for(name: str) -> tuple[Tensor, Tensor]:
    config = CONFIGS[name]
    generator = torch.Generator().manual_seed(6)
    first, second = 3 * torch.randn(2, 2, config.num_classes, *config.tile_shape, generator=generator)
    return first.double(), second.double()


def exact_trio(name: str) -> DualNet:
    return trained_like(CONFIGS[name]).double()


@pytest.mark.parametrize("rewrite", REWRITES)
@pytest.mark.parametrize("name", CONFIGS)
@torch.no_grad()
def test_rewritten_subnet_gives_the_same_logits_and_the_subnet_stays_as_it_was(
    name: str, rewrite: Callable[[nn.Module], nn.Module]
) -> None:
    subnet = exact_trio(name).subnet_a
    before = {key: tensor.clone() for key, tensor in subnet.state_dict().items()}
    image = image_for(name)

    torch.testing.assert_close(rewrite(subnet)(image).logits, subnet(image).logits, rtol=0, atol=ATOL)

    assert before.keys() == subnet.state_dict().keys()
    assert all(torch.equal(before[key], tensor) for key, tensor in subnet.state_dict().items())


@pytest.mark.parametrize("name", CONFIGS)
@torch.no_grad()
def test_scale_after_the_first_convolution_is_the_scale_before_it(name: str) -> None:
    upg = exact_trio(name).upg
    logits = logits_for(name)

    torch.testing.assert_close(ScaledUpg(upg)(*logits), upg(*logits), rtol=0, atol=ATOL)


@torch.no_grad()
def test_scaling_the_shift_of_the_first_norm_too_would_show() -> None:
    upg = exact_trio("softmax").upg
    logits = logits_for("softmax")
    wrong = ScaledUpg(upg)
    scale = upg.scale(*logits)

    wrong.shift = wrong.shift * scale

    assert (wrong(*logits) - upg(*logits)).abs().max() > 1e6 * ATOL


def test_no_dropout_is_left() -> None:
    trio = exact_trio("planar")
    assert any(isinstance(module, nn.Dropout) for module in trio.modules())

    assert not any(isinstance(module, nn.Dropout) for module in without_dropouts(trio).modules())


def test_no_batch_norm_is_left_in_a_2d_unet() -> None:
    unet = exact_trio("planar").subnet_a
    assert any(isinstance(module, nn.BatchNorm2d) for module in unet.modules())

    assert not any(isinstance(module, nn.BatchNorm2d) for module in with_folded_norms(unet).modules())


def test_only_biases_before_an_instance_norm_are_dropped() -> None:
    rewritten = without_dead_biases(UNet3d(1, 3, 2))

    with_bias = [name for name, module in rewritten.named_modules() if getattr(module, "bias", None) is not None]

    assert with_bias == ["final"]


@pytest.mark.parametrize("shape", [(2, 3, 32, 48, 20), (2, 3, 5, 7, 9), (2, 3, 40, 24)])
def test_blocked_norm_is_the_instance_norm(shape: tuple[int, ...]) -> None:
    x = 5 * torch.randn(shape, generator=torch.Generator().manual_seed(0)).double() + 3

    torch.testing.assert_close(BlockedInstanceNorm(1e-5)(x), F.instance_norm(x, eps=1e-5), rtol=0, atol=ATOL)


def test_blocked_norm_stays_exact_where_a_channel_is_nearly_constant() -> None:
    x = torch.full((1, 1, 32, 32, 32), 300.0)
    x[..., :2, :2, :2] += torch.randn(2, 2, 2, generator=torch.Generator().manual_seed(0))
    exact = F.instance_norm(x.double(), eps=1e-5)

    found = BlockedInstanceNorm(1e-5)(x)

    # A float32 of 300 is known to 3e-5, and the norm multiplies by 60 here.
    assert (found.double() - exact).abs().max() < 1e-2 < 1e-2 * exact.abs().max()


@torch.no_grad()
def test_stages_together_are_the_trio() -> None:
    trio = exact_trio("sigmoid")
    image = image_for("sigmoid")
    stages = inference_stages(trio)

    logits_a, logits_b = stages["subnet_a"](image), stages["subnet_b"](image)
    fused = stages["upg"](logits_a, logits_b)
    probabilities, _ = stages["decode"](fused, logits_a, logits_b)

    expected = trio(image).fused_logits
    torch.testing.assert_close(fused, expected, rtol=0, atol=ATOL)
    torch.testing.assert_close(probabilities, torch.sigmoid(expected)[:, 1:], rtol=0, atol=ATOL)
