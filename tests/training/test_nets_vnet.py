"""Subnet B against a slow reference that uses only its state dict, plus its skips and its initialisation."""

import pytest
import torch
import torch.nn.functional as F  # noqa: N812  (torch's own convention)
from torch import Tensor, nn

from ucseg_training.nets import VNet, init_kaiming

State = dict[str, Tensor]

CONVS_PER_BLOCK = {"one": 1, "two": 2, "three": 3, "four": 3, "five": 3, "six": 3, "seven": 3, "eight": 2, "nine": 1}
SPATIAL = {2: (32, 48), 3: (32, 16, 48)}


def _vnet(dim: int, width: int = 2) -> VNet:
    torch.manual_seed(0)
    net = VNet(dim, in_channels=2, num_classes=3, width=width)
    init_kaiming(net)  # the library's default lets the signal fade, and comparisons with it
    return net.double().eval()


def _image(dim: int) -> Tensor:
    return torch.randn(2, 2, *SPATIAL[dim], dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def _reference(dim: int, state: State, image: Tensor) -> Tensor:
    conv = {2: F.conv2d, 3: F.conv3d}[dim]
    transposed = {2: F.conv_transpose2d, 3: F.conv_transpose3d}[dim]

    def block(name: str, x: Tensor) -> Tensor:
        for index in range(CONVS_PER_BLOCK[name]):
            key = f"block_{name}.conv.{2 * index}"
            x = conv(x, state[f"{key}.weight"], state[f"{key}.bias"], padding=1).clamp(min=0)
        return x

    x, skips = image, []
    for name in ("one", "two", "three", "four"):
        x = block(name, x)
        skips.append(x)
        key = f"block_{name}_dw.conv.0"
        x = conv(x, state[f"{key}.weight"], state[f"{key}.bias"], stride=2).clamp(min=0)
    for name, after in (("five", "six"), ("six", "seven"), ("seven", "eight"), ("eight", "nine")):
        x = block("five", x) if name == "five" else x
        key = f"block_{name}_up.conv.0"
        x = transposed(x, state[f"{key}.weight"], state[f"{key}.bias"], stride=2).clamp(min=0)
        x = block(after, x + skips.pop())
    return conv(x, state["out_conv.weight"], state["out_conv.bias"])


@pytest.mark.parametrize("dim", [2, 3])
def test_logits_equal_the_slow_reference(dim: int) -> None:
    net, image = _vnet(dim), _image(dim)
    with torch.no_grad():
        logits = net(image).logits
        expected = _reference(dim, dict(net.state_dict()), image)
    assert logits.std() > 0.05  # else the comparison would pass on biases alone
    torch.testing.assert_close(logits, expected)


@pytest.mark.parametrize("dim", [2, 3])
@pytest.mark.parametrize(
    ("up", "block", "level"),
    [("five", "six", 3), ("six", "seven", 2), ("seven", "eight", 1), ("eight", "nine", 0)],
)
def test_skips_are_additions_of_the_encoder_feature(dim: int, up: str, block: str, level: int) -> None:
    net, seen = _vnet(dim), {}
    net.get_submodule(f"block_{up}_up").register_forward_hook(lambda _, __, out: seen.update(up=out.clone()))
    net.get_submodule(f"block_{block}").register_forward_pre_hook(lambda _, inputs: seen.update(sum=inputs[0].clone()))
    with torch.no_grad():
        features = net(_image(dim)).features
    torch.testing.assert_close(seen["sum"], seen["up"] + features[level])
    assert (features[level] > 0).any()


@pytest.mark.parametrize("dim", [2, 3])
def test_logits_have_the_shape_of_the_image_and_features_halve(dim: int) -> None:
    with torch.no_grad():
        output = _vnet(dim)(_image(dim))
    assert output.logits.shape == (2, 3, *SPATIAL[dim])
    for level, feature in enumerate(output.features):
        assert feature.shape == (2, 2 * 2**level, *(side // 2**level for side in SPATIAL[dim]))
    assert len(output.features) == 5


@pytest.mark.parametrize("dim", [2, 3])
def test_training_mode_changes_nothing_because_there_is_no_dropout_or_norm(dim: int) -> None:
    net = _vnet(dim)
    with torch.no_grad():
        in_eval, in_training = net(_image(dim)).logits, net.train()(_image(dim)).logits
    torch.testing.assert_close(in_eval, in_training, rtol=0, atol=0)


def _convolutions(net: nn.Module) -> list[nn.Module]:
    kinds = nn.Conv2d | nn.Conv3d | nn.ConvTranspose2d | nn.ConvTranspose3d
    return [layer for layer in net.modules() if isinstance(layer, kinds) and layer.weight.numel() > 8_000]


def _fan_in(layer: nn.Module) -> int:
    return layer.weight[0].numel()


def test_3d_starts_as_the_library_leaves_it() -> None:
    for layer in _convolutions(VNet(3, 1, 2, width=8)):
        assert layer.weight.abs().max().item() <= _fan_in(layer) ** -0.5


def test_2d_starts_kaiming_normal() -> None:
    for layer in _convolutions(VNet(2, 3, 2, width=8)):
        assert layer.weight.std().item() == pytest.approx((2 / _fan_in(layer)) ** 0.5, rel=0.04)


def test_init_kaiming_resets_the_weights_of_a_3d_net_and_leaves_biases() -> None:
    net = VNet(3, 1, 2, width=8)
    biases = {name: value.clone() for name, value in net.named_parameters() if name.endswith("bias")}
    init_kaiming(net)
    for layer in _convolutions(net):
        # 8 000 normal samples: relative standard error of their spread is 0.8 %.
        assert layer.weight.std().item() == pytest.approx((2 / _fan_in(layer)) ** 0.5, rel=0.04)
    for name, value in net.named_parameters():
        assert name not in biases or torch.equal(value, biases[name])


def test_image_of_another_shape_is_refused_with_found_and_expected() -> None:
    with pytest.raises(ValueError, match=r"\(1, 2, 32, 24\); expected \(tiles, 2, \.\.\.\) with 2"):
        VNet(2, 2, 2, width=2)(torch.zeros(1, 2, 32, 24))
