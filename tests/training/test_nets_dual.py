"""The trio as one network: shapes, order of data, gradients, mixed precision, export."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

import ucseg_training.nets as nets
from ucseg_training.nets import DualNet, TrioConfig, UNet2d, UNet3d, VNet

CONFIGS = {
    2: TrioConfig(
        dim=2,
        in_channels=3,
        num_classes=4,
        tile_shape=(32, 32),
        unet_width=2,
        vnet_width=2,
        token_side=8,
        attention_width=20,
        heads=2,
        head_dim=6,
        mlp_hidden=10,
        activation="softmax",
    ),
    3: TrioConfig(
        dim=3,
        in_channels=1,
        num_classes=2,
        tile_shape=(32, 16, 48),
        unet_width=2,
        vnet_width=2,
        attention_width=24,
        heads=3,
        head_dim=4,
        mlp_hidden=10,
    ),
}
DIMS = pytest.mark.parametrize("dim", [2, 3])


def _trio(dim: int) -> DualNet:
    torch.manual_seed(0)
    return DualNet(CONFIGS[dim])


def _image(dim: int, tiles: int = 2) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(tiles, CONFIGS[dim].in_channels, *CONFIGS[dim].tile_shape, generator=generator)


def test_public_names_exist_and_are_sorted() -> None:
    assert nets.__all__ == sorted(nets.__all__)
    assert all(hasattr(nets, name) for name in nets.__all__)


def test_subnet_a_is_a_unet_and_subnet_b_a_vnet() -> None:
    assert isinstance(_trio(2).subnet_a, UNet2d)
    assert isinstance(_trio(3).subnet_a, UNet3d)
    assert isinstance(_trio(3).subnet_b, VNet)


@DIMS
def test_all_three_logits_have_the_shape_of_the_image_and_all_classes(dim: int) -> None:
    with torch.no_grad():
        output = _trio(dim).eval()(_image(dim))
    expected = (2, CONFIGS[dim].num_classes, *CONFIGS[dim].tile_shape)
    assert output.logits_a.shape == output.logits_b.shape == output.fused_logits.shape == expected
    assert len(output.features_a) == len(output.features_b) == 5


@DIMS
def test_trio_is_the_composition_of_its_stages(dim: int) -> None:
    trio, image = _trio(dim).eval(), _image(dim)
    with torch.no_grad():
        output = trio(image)
        logits_a, logits_b = trio.subnet_a(image).logits, trio.subnet_b(image).logits
        fused = trio.upg(logits_a, logits_b)
    torch.testing.assert_close(
        (output.logits_a, output.logits_b, output.fused_logits), (logits_a, logits_b, fused), rtol=0, atol=0
    )


@DIMS
def test_gradient_of_the_fused_logits_reaches_every_parameter_but_the_temperature(dim: int) -> None:
    trio = _trio(dim).train()
    trio(_image(dim)).fused_logits.square().sum().backward()
    untouched = [name for name, parameter in trio.named_parameters() if parameter.grad is None]
    assert untouched == ["generate_pseudo_simple.cross_attn.attn.temperature"]


@DIMS
def test_state_dict_restores_the_same_function(dim: int) -> None:
    trained, fresh, image = _trio(dim).train(), DualNet(CONFIGS[dim]), _image(dim)
    trained(image)  # moves the running statistics, which must travel too
    fresh.load_state_dict(trained.state_dict())
    with torch.no_grad():
        expected, found = trained.eval()(image).fused_logits, fresh.eval()(image).fused_logits
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


@DIMS
def test_mixed_precision_trains_with_finite_gradients(dim: int) -> None:
    torch.manual_seed(0)
    config = CONFIGS[dim] if dim == 2 else replace(CONFIGS[dim], tile_shape=(48, 16, 48))  # see `precision`
    trio, image = DualNet(config).train(), torch.randn(2, config.in_channels, *config.tile_shape)
    with torch.autocast("cpu", torch.bfloat16):
        fused = trio(image).fused_logits
    fused.float().square().mean().backward()
    gradients = [parameter.grad for parameter in trio.parameters() if parameter.grad is not None]
    assert fused.isfinite().all()
    assert all(gradient.isfinite().all() for gradient in gradients)


@DIMS
def test_exported_program_takes_any_number_of_tiles(dim: int) -> None:
    trio = _trio(dim).eval()
    tiles = {0: torch.export.Dim("tiles")}
    program = torch.export.export(trio, (_image(dim, tiles=2),), dynamic_shapes=(tiles,))
    image = _image(dim, tiles=3)
    with torch.no_grad():
        torch.testing.assert_close(program.module()(image).fused_logits, trio(image).fused_logits)


@pytest.mark.parametrize(
    "shape",
    [
        pytest.param((1, 1, 32, 16, 32), id="last side"),
        pytest.param((1, 1, 16, 32, 48), id="sides swapped"),
        pytest.param((1, 2, 32, 16, 48), id="channels"),
        pytest.param((1, 32, 16, 48), id="no channel axis"),
    ],
)
def test_image_of_another_shape_is_refused_with_found_and_expected(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"expected \(tiles, 1, 32, 16, 48\)") as caught:
        _trio(3)(torch.zeros(shape))
    assert str(shape) in str(caught.value)


def test_full_size_2d_trio_runs_once() -> None:
    with torch.no_grad():
        output = DualNet(TrioConfig.upstream_2d_binary()).eval()(torch.rand(1, 3, 224, 224))
    assert output.fused_logits.shape == (1, 2, 224, 224)
    assert [feature.shape[1] for feature in output.features_b] == [16, 32, 64, 128, 256]
