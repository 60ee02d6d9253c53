"""Subnet A against slow references that use only its state dict, plus the properties that are easy to get wrong."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812  (torch's own convention)
from torch import Tensor, nn

from ucseg_training.nets import UNet2d, UNet3d

State = dict[str, Tensor]


def _unet_3d(width: int = 2) -> UNet3d:
    torch.manual_seed(0)
    return UNet3d(in_channels=1, num_classes=2, width=width).double().eval()


def _unet_2d(width: int = 2) -> UNet2d:
    """A 2D U-Net whose batch norms do something, as after training."""
    torch.manual_seed(0)
    net = UNet2d(in_channels=3, num_classes=4, width=width).double()
    for layer in net.modules():
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.uniform_(layer.running_mean, -0.5, 0.5)
            nn.init.uniform_(layer.running_var, 0.5, 2.0)
            nn.init.uniform_(layer.weight, 0.5, 2.0)
            nn.init.uniform_(layer.bias, -0.5, 0.5)
    return net.eval()


def _image_3d() -> Tensor:
    return torch.randn(2, 1, 32, 16, 48, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def _image_2d() -> Tensor:
    return torch.randn(2, 3, 32, 48, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


NETS = {2: _unet_2d, 3: _unet_3d}
IMAGES = {2: _image_2d, 3: _image_3d}


def _upsample(values: Tensor, align_corners: bool) -> Tensor:
    """Twofold linear interpolation along every spatial axis, from the definition of the two conventions."""
    result = values.numpy()
    for axis in range(2, result.ndim):
        size = result.shape[axis]
        targets = np.arange(2 * size)
        positions = targets * (size - 1) / (2 * size - 1) if align_corners else (targets + 0.5) / 2 - 0.5
        positions = np.clip(positions, 0, size - 1)
        low = np.floor(positions).astype(int)
        high = np.minimum(low + 1, size - 1)
        share = (positions - low).reshape([-1 if a == axis else 1 for a in range(result.ndim)])
        result = result.take(low, axis) * (1 - share) + result.take(high, axis) * share
    return torch.from_numpy(result)


def _input_of(module: nn.Module, net: nn.Module, image: Tensor) -> Tensor:
    """What reaches `module` while `net` runs on the image."""
    seen: list[Tensor] = []
    handle = module.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].clone()))
    with torch.no_grad():
        net(image)
    handle.remove()
    return seen[0]


def _double_conv(state: State, prefix: str, x: Tensor) -> Tensor:
    for name in ("conv1", "conv2"):
        x = F.conv3d(x, state[f"{prefix}.{name}.0.weight"], state[f"{prefix}.{name}.0.bias"], padding=1)
        mean = x.mean(dim=(2, 3, 4), keepdim=True)
        variance = x.var(dim=(2, 3, 4), unbiased=False, keepdim=True)
        x = ((x - mean) / (variance + 1e-5).sqrt()).clamp(min=0)
    return x


def _reference_3d(state: State, image: Tensor) -> Tensor:
    maps = [_double_conv(state, "conv1", image)]
    for name in ("conv2", "conv3", "conv4", "center"):
        maps.append(_double_conv(state, name, F.max_pool3d(maps[-1], 2)))
    x = maps[4]
    for level in (4, 3, 2, 1):
        joined = torch.cat((maps[level - 1], _upsample(x, align_corners=False)), dim=1)
        x = _double_conv(state, f"up_concat{level}.conv", joined)
    return F.conv3d(x, state["final.weight"], state["final.bias"])


def _conv_block(state: State, prefix: str, x: Tensor) -> Tensor:
    for conv, norm in ((0, 1), (4, 5)):
        x = F.conv2d(x, state[f"{prefix}.conv_conv.{conv}.weight"], state[f"{prefix}.conv_conv.{conv}.bias"], padding=1)
        mean, variance, gain, shift = (
            state[f"{prefix}.conv_conv.{norm}.{name}"][:, None, None]
            for name in ("running_mean", "running_var", "weight", "bias")
        )
        x = (x - mean) / (variance + 1e-5).sqrt() * gain + shift
        x = torch.where(x > 0, x, 0.01 * x)
    return x


def _reference_2d(state: State, image: Tensor) -> Tensor:
    maps = [_conv_block(state, "encoder.in_conv", image)]
    for level in (1, 2, 3, 4):
        maps.append(_conv_block(state, f"encoder.down{level}.maxpool_conv.1", F.max_pool2d(maps[-1], 2)))
    x = maps[4]
    for level in (1, 2, 3, 4):
        name = f"decoder.up{level}"
        reduced = F.conv2d(x, state[f"{name}.conv1x1.weight"], state[f"{name}.conv1x1.bias"])
        x = _conv_block(state, f"{name}.conv", torch.cat((maps[4 - level], _upsample(reduced, True)), dim=1))
    return F.conv2d(x, state["decoder.out_conv.weight"], state["decoder.out_conv.bias"], padding=1)


def test_3d_logits_equal_the_slow_reference() -> None:
    net = _unet_3d()
    with torch.no_grad():
        torch.testing.assert_close(net(_image_3d()).logits, _reference_3d(dict(net.state_dict()), _image_3d()))


def test_2d_logits_equal_the_slow_reference() -> None:
    net = _unet_2d()
    with torch.no_grad():
        torch.testing.assert_close(net(_image_2d()).logits, _reference_2d(dict(net.state_dict()), _image_2d()))


def test_3d_concatenates_the_skip_first_and_upsamples_without_aligned_corners() -> None:
    net, image = _unet_3d(), _image_3d()
    with torch.no_grad():
        _, _, _, conv4, center = net(image).features
    joined = _input_of(net.up_concat4.conv, net, image)
    torch.testing.assert_close(joined[:, : conv4.shape[1]], conv4)
    torch.testing.assert_close(joined[:, conv4.shape[1] :], _upsample(center, align_corners=False))
    assert not torch.allclose(joined[:, conv4.shape[1] :], _upsample(center, align_corners=True))


def test_2d_concatenates_the_skip_first_and_upsamples_with_aligned_corners() -> None:
    net, image = _unet_2d(), _image_2d()
    with torch.no_grad():
        *_, eighth, deepest = net(image).features
        reduced = net.decoder.up1.conv1x1(deepest)
    joined = _input_of(net.decoder.up1.conv, net, image)
    torch.testing.assert_close(joined[:, : eighth.shape[1]], eighth)
    torch.testing.assert_close(joined[:, eighth.shape[1] :], _upsample(reduced, align_corners=True))
    assert not torch.allclose(joined[:, eighth.shape[1] :], _upsample(reduced, align_corners=False))


@pytest.mark.parametrize(("dim", "classes"), [(3, 2), (2, 4)])
def test_logits_have_the_shape_of_the_image_and_features_halve(dim: int, classes: int) -> None:
    image = IMAGES[dim]()
    with torch.no_grad():
        output = NETS[dim]()(image)
    assert output.logits.shape == (2, classes, *image.shape[2:])
    for level, feature in enumerate(output.features):
        assert feature.shape == (2, 2 * 2**level, *(side // 2**level for side in image.shape[2:]))
    assert len(output.features) == 5


@pytest.mark.parametrize("dim", [2, 3])
def test_tiles_of_a_batch_do_not_influence_each_other(dim: int) -> None:
    net, image = NETS[dim](), IMAGES[dim]()
    with torch.no_grad():
        torch.testing.assert_close(net(image).logits[1:], net(image[1:]).logits)


def test_3d_conv_biases_before_the_instance_norm_cancel() -> None:
    net, image = _unet_3d(), _image_3d()
    with torch.no_grad():
        before = net(image).logits
        for name, parameter in net.named_parameters():
            if name.endswith(".0.bias"):
                parameter.add_(torch.randn_like(parameter))
        torch.testing.assert_close(net(image).logits, before, atol=1e-9, rtol=1e-9)


def test_3d_depends_on_the_extent_of_the_tile() -> None:
    net, image = _unet_3d(), _image_3d()
    with torch.no_grad():
        assert not torch.allclose(net(image[..., :32]).logits[..., :8], net(image).logits[..., :8], atol=1e-3)


def test_dropout_rates_are_those_of_upstream() -> None:
    rates_3d = [layer.p for layer in _unet_3d().modules() if isinstance(layer, nn.Dropout)]
    rates_2d = [layer.p for layer in _unet_2d().modules() if isinstance(layer, nn.Dropout)]
    assert rates_3d == [0.3]
    assert rates_2d == [0.05, 0.1, 0.2, 0.3, 0.5, 0.0, 0.0, 0.0, 0.0]


def test_3d_drops_out_at_the_centre_and_before_the_last_convolution() -> None:
    net, image = _unet_3d(), _image_3d()
    expected_center, expected_last = _input_of(net.dropout, net, image), _input_of(net.final, net, image)
    net.train()
    with torch.no_grad():
        center = net(image).features[4]
    kept = center != 0
    assert (~kept & (expected_center > 0)).any()
    torch.testing.assert_close(center[kept], expected_center[kept] / 0.7)
    dropped_last = (_input_of(net.final, net, image) == 0).double().mean()
    assert dropped_last > (expected_last == 0).double().mean() + 0.05


@pytest.mark.parametrize("dim", [2, 3])
def test_dropout_is_the_identity_in_eval_mode_only(dim: int) -> None:
    net, image = NETS[dim](), IMAGES[dim]()
    with torch.no_grad():
        torch.testing.assert_close(net(image).logits, net(image).logits, rtol=0, atol=0)
        net.train()
        assert not torch.allclose(net(image).logits, net(image).logits)


def test_3d_convolutions_start_kaiming_normal() -> None:
    for layer in UNet3d(1, 2, width=8).modules():
        if isinstance(layer, nn.Conv3d) and layer.weight.numel() > 10_000:
            fan_in = layer.weight[0].numel()
            # 10 000 normal samples: relative standard error of their spread is 0.7 %.
            assert layer.weight.std().item() == pytest.approx((2 / fan_in) ** 0.5, rel=0.04)


def test_2d_convolutions_start_as_the_library_leaves_them() -> None:
    for layer in UNet2d(3, 2, width=8).modules():
        if isinstance(layer, nn.Conv2d) and layer.weight.numel() > 10_000:
            bound = layer.weight[0].numel() ** -0.5
            assert layer.weight.abs().max().item() <= bound
            assert layer.weight.std().item() == pytest.approx(bound / 3**0.5, rel=0.04)


@pytest.mark.parametrize(
    ("dim", "shape"),
    [
        pytest.param(3, (1, 1, 32, 32, 24), id="side"),
        pytest.param(3, (1, 2, 32, 32, 32), id="channels"),
        pytest.param(3, (1, 1, 32, 32), id="rank"),
        pytest.param(2, (1, 3, 40, 32), id="2d side"),
    ],
)
def test_image_of_another_shape_is_refused_with_found_and_expected(dim: int, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="expected") as caught:
        NETS[dim]()(torch.zeros(shape))
    assert str(shape) in str(caught.value)


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("corner", [0, -1])
def test_reference_upsampling_keeps_corner_values(align_corners: bool, corner: int) -> None:
    values = torch.randn(1, 1, 3, 4, dtype=torch.float64)
    torch.testing.assert_close(_upsample(values, align_corners)[..., corner, corner], values[..., corner, corner])
