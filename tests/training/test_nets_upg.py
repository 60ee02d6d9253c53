"""Uncertainty, tokens, attention and head of the UPG."""

import itertools
import math

import pytest
import torch
from torch import Tensor, nn

from ucseg_training.nets import TrioConfig, Upg, map_from_tokens, tokens_from_map, uncertainty

CONFIGS = {
    2: TrioConfig(
        dim=2,
        in_channels=3,
        num_classes=3,
        tile_shape=(32, 32),
        token_side=8,
        attention_width=20,
        heads=2,
        head_dim=6,
        mlp_hidden=10,
    ),
    3: TrioConfig(
        dim=3,
        in_channels=1,
        num_classes=2,
        tile_shape=(32, 16, 48),
        attention_width=24,
        heads=3,
        head_dim=4,
        mlp_hidden=10,
    ),
}
DIMS = pytest.mark.parametrize("dim", [2, 3])


def _upg(dim: int) -> Upg:
    """A UPG whose batch norms do something, as after training."""
    torch.manual_seed(0)
    upg = Upg(CONFIGS[dim]).double()
    for layer in upg.modules():
        if isinstance(layer, nn.BatchNorm2d | nn.BatchNorm3d):
            nn.init.uniform_(layer.running_mean, -0.1, 0.1)
            nn.init.uniform_(layer.running_var, 0.5, 2.0)
            nn.init.uniform_(layer.weight, 0.5, 2.0)
            nn.init.uniform_(layer.bias, -0.2, 0.2)
    return upg.eval()


def _logits(dim: int, seed: int = 1, tiles: int = 2) -> Tensor:
    config = CONFIGS[dim]
    generator = torch.Generator().manual_seed(seed)
    return 3 * torch.randn(tiles, config.num_classes, *config.tile_shape, dtype=torch.float64, generator=generator)


# --- uncertainty -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("classes", [2, 4])
def test_uncertainty_of_zero_logits_is_known_for_any_number_of_classes(classes: int) -> None:
    u = uncertainty(torch.zeros(1, classes, 2, 3, 4))
    assert u.shape == (1, 1, 2, 3, 4)
    torch.testing.assert_close(u, torch.full_like(u, 1 / (1 + math.log(2))))
    assert u.mean().item() == pytest.approx(0.5906, abs=5e-5)


def test_uncertainty_of_a_confident_voxel_is_one_sixth() -> None:
    u = uncertainty(torch.tensor([10.0, -10.0]).reshape(1, 2, 1, 1, 1))
    assert u.item() == pytest.approx(2 / 12.0, abs=1e-5)


def test_uncertainty_lies_between_zero_and_one_and_falls_with_every_logit() -> None:
    logits = torch.linspace(-12, 12, 25, dtype=torch.float64).reshape(1, 1, 25).repeat(1, 3, 1)
    u = uncertainty(logits).flatten()
    assert (u > 0).all()
    assert (u < 1).all()
    assert (u.diff() < 0).all()


def test_uncertainty_and_beliefs_sum_to_one() -> None:
    logits = _logits(3)
    evidence = torch.log1p(logits.exp())
    beliefs = evidence / (evidence + 1).sum(dim=1, keepdim=True)
    torch.testing.assert_close(uncertainty(logits) + beliefs.sum(dim=1, keepdim=True), torch.ones_like(beliefs[:, :1]))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_uncertainty_of_half_precision_logits_is_computed_in_float32(dtype: torch.dtype) -> None:
    logits = (5 * torch.randn(1, 4, 8, 8)).to(dtype)
    assert uncertainty(logits).dtype == torch.float32
    torch.testing.assert_close(uncertainty(logits), uncertainty(logits.float()), rtol=0, atol=0)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(uncertainty(logits), uncertainty(logits.float()), rtol=0, atol=0)


# --- tokens ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shape", "side"),
    [
        pytest.param((2, 1, 32, 16, 48), 16, id="3d"),
        pytest.param((2, 3, 8, 12, 4), 4, id="3d, three channels"),
        pytest.param((2, 1, 28, 28), 14, id="2d"),
        pytest.param((2, 2, 6, 9), 3, id="2d, two channels"),
    ],
)
def test_tokens_and_back_is_the_identity(shape: tuple[int, ...], side: int) -> None:
    values = torch.arange(math.prod(shape)).reshape(shape)
    tokens = tokens_from_map(values, side)
    grid = tuple(length // side for length in shape[2:])
    assert tokens.shape == (shape[0], math.prod(grid), shape[1] * side ** len(grid))
    assert torch.equal(map_from_tokens(tokens, grid, side), values)


def test_token_one_of_a_cube_of_32_covers_the_second_half_of_the_last_axis() -> None:
    volume = torch.arange(32**3).reshape(1, 1, 32, 32, 32)
    tokens = tokens_from_map(volume, 16)
    assert torch.equal(tokens[0, 1], volume[0, 0, :16, :16, 16:32].flatten())
    assert torch.equal(tokens[0, 2], volume[0, 0, :16, 16:32, :16].flatten())
    assert torch.equal(tokens[0, 4], volume[0, 0, 16:32, :16, :16].flatten())


def test_channels_run_fastest_within_a_token() -> None:
    image = torch.arange(2 * 4 * 4).reshape(1, 2, 4, 4)
    assert torch.equal(tokens_from_map(image, 2)[0, 1], image[0, :, 0:2, 2:4].permute(1, 2, 0).flatten())


# --- attention -------------------------------------------------------------------------------------------------------


def _reference_scale(upg: Upg, uncertainty_a: Tensor, uncertainty_b: Tensor) -> Tensor:
    """The attention of one tile at a time and one head at a time, from the state dict alone."""
    config, state = upg.config, upg.cross_attn.state_dict()

    def linear(name: str, x: Tensor) -> Tensor:
        return x @ state[f"{name}.weight"].T + state[f"{name}.bias"]

    def cells() -> list[tuple[slice, ...]]:
        side = config.token_side
        corners = itertools.product(*(range(0, length, side) for length in config.tile_shape))
        return [tuple(slice(start, start + side) for start in corner) for corner in corners]

    def embed(u: Tensor) -> Tensor:
        tokens = torch.stack([u[cell].flatten() for cell in cells()])
        return linear("to_patch_embedding.1", tokens) + state["pos_embed"][0]

    result = torch.empty_like(uncertainty_a)
    for tile in range(len(uncertainty_a)):
        asking, answering = embed(uncertainty_a[tile, 0]), embed(uncertainty_b[tile, 0])
        query, key, value = linear("attn.w_q", asking), linear("attn.w_k", answering), linear("attn.w_v", answering)
        heads = []
        for head in range(config.heads):
            columns = slice(head * config.head_dim, (head + 1) * config.head_dim)
            scores = (query[:, columns] @ key[:, columns].T / math.sqrt(config.head_dim)).exp()
            heads.append(scores / scores.sum(dim=1, keepdim=True) @ value[:, columns])
        attended = linear("attn.to_out.0", torch.cat(heads, dim=1))
        hidden = linear("MLP.net.0", attended)
        hidden = hidden * (1 + torch.erf(hidden / math.sqrt(2))) / 2
        tokens = linear("to_out.0", attended + linear("MLP.net.3", hidden))
        for token, cell in zip(tokens, cells(), strict=True):
            result[tile, 0][cell] = token.reshape([config.token_side] * config.dim)
    return result


@DIMS
def test_scale_equals_the_slow_reference_and_has_one_channel(dim: int) -> None:
    upg, logits_a, logits_b = _upg(dim), _logits(dim, 1), _logits(dim, 2)
    with torch.no_grad():
        scale = upg.scale(logits_a, logits_b)
        expected = _reference_scale(upg, uncertainty(logits_a), uncertainty(logits_b))
    assert scale.shape == (2, 1, *CONFIGS[dim].tile_shape)
    torch.testing.assert_close(scale, expected)


@DIMS
def test_swapping_the_subnets_changes_the_scale(dim: int) -> None:
    upg, logits_a, logits_b = _upg(dim), 4 * _logits(dim, 1), _logits(dim, 2)
    with torch.no_grad():
        difference = upg.scale(logits_a, logits_b) - upg.scale(logits_b, logits_a)
    assert difference.abs().max() > 1e-6  # float64 noise is nine orders below


@DIMS
def test_scale_takes_both_signs(dim: int) -> None:
    with torch.no_grad():
        scale = _upg(dim).scale(_logits(dim, 1), _logits(dim, 2))
    assert scale.min() < 0 < scale.max()


@DIMS
def test_temperature_is_never_used(dim: int) -> None:
    upg, logits = _upg(dim), _logits(dim)
    with torch.no_grad():
        before = upg(logits, logits)
        upg.cross_attn.attn.temperature.fill_(7.0)
        torch.testing.assert_close(upg(logits, logits), before, rtol=0, atol=0)


# --- head ------------------------------------------------------------------------------------------------------------


def _reference_head(upg: Upg, scaled: Tensor) -> tuple[Tensor, Tensor]:
    """Output of the last norm and of the head, voxel by voxel as a perceptron."""
    state = upg.final_head.state_dict()
    x = scaled.movedim(1, -1)
    normed = x
    for stage in range(1, 7):
        weight = state[f"conv{stage}.0.weight"].flatten(1)
        mean, variance, gain, shift = (
            state[f"conv{stage}.1.{name}"] for name in ("running_mean", "running_var", "weight", "bias")
        )
        normed = (x @ weight.T - mean) / (variance + 1e-5).sqrt() * gain + shift
        x = torch.where(normed > 0, normed, 0.2 * normed)
    return normed.movedim(-1, 1), x.movedim(-1, 1)


@DIMS
def test_fused_logits_equal_the_slow_reference(dim: int) -> None:
    upg, logits_a, logits_b = _upg(dim), _logits(dim, 1), _logits(dim, 2)
    with torch.no_grad():
        scale = upg.scale(logits_a, logits_b)
        _, expected = _reference_head(upg, torch.cat((scale * logits_a, scale * logits_b), dim=1))
        torch.testing.assert_close(upg(logits_a, logits_b), expected)


@DIMS
def test_fused_logit_is_positive_exactly_where_the_last_norm_is(dim: int) -> None:
    upg, logits_a, logits_b = _upg(dim), _logits(dim, 1), _logits(dim, 2)
    with torch.no_grad():
        scale = upg.scale(logits_a, logits_b)
        normed, _ = _reference_head(upg, torch.cat((scale * logits_a, scale * logits_b), dim=1))
        fused = upg(logits_a, logits_b)
    assert (fused > 0).any()
    assert (fused < 0).any()
    assert torch.equal(fused > 0, normed > 0)
    torch.testing.assert_close(fused[fused < 0], 0.2 * normed[normed < 0])


@DIMS
def test_scaling_commutes_with_the_first_convolution_of_the_head(dim: int) -> None:
    conv = _upg(dim).final_head.conv1[0]
    logits = torch.cat((_logits(dim, 1), _logits(dim, 2)), dim=1)
    scale = torch.randn(2, 1, *CONFIGS[dim].tile_shape, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(conv(scale * logits), scale * conv(logits))


# --- the module ------------------------------------------------------------------------------------------------------


@DIMS
def test_dropout_is_the_identity_in_eval_mode_only(dim: int) -> None:
    upg, logits_a, logits_b = _upg(dim), _logits(dim, 1), _logits(dim, 2)
    with torch.no_grad():
        torch.testing.assert_close(upg.scale(logits_a, logits_b), upg.scale(logits_a, logits_b), rtol=0, atol=0)
        upg.train()
        assert not torch.allclose(upg.scale(logits_a, logits_b), upg.scale(logits_a, logits_b))


@DIMS
def test_dropout_rate_is_a_tenth_in_embedding_attention_and_output(dim: int) -> None:
    assert [layer.p for layer in _upg(dim).modules() if isinstance(layer, nn.Dropout)] == [0.1, 0.1, 0.1]


@DIMS
def test_splitting_a_batch_changes_nothing_in_eval_mode(dim: int) -> None:
    upg, logits_a, logits_b = _upg(dim), _logits(dim, 1), _logits(dim, 2)
    with torch.no_grad():
        torch.testing.assert_close(upg(logits_a[1:], logits_b[1:]), upg(logits_a, logits_b)[1:])


@pytest.mark.parametrize(
    ("shape_a", "shape_b", "name"),
    [
        pytest.param((1, 2, 32, 16, 32), (1, 2, 32, 16, 48), "logits_a", id="last side of A"),
        pytest.param((1, 2, 32, 16, 48), (1, 2, 16, 32, 48), "logits_b", id="same token count, other grid"),
        pytest.param((1, 2, 32, 16, 48), (1, 3, 32, 16, 48), "logits_b", id="classes"),
    ],
)
def test_logits_of_another_shape_are_refused_by_name(
    shape_a: tuple[int, ...], shape_b: tuple[int, ...], name: str
) -> None:
    with pytest.raises(ValueError, match=rf"{name} has shape .* expected \(tiles, 2, 32, 16, 48\)"):
        Upg(CONFIGS[3])(torch.zeros(shape_a), torch.zeros(shape_b))
