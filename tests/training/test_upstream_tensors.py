"""Tensors of an upstream state dict whose name, shape, type or value is wrong are named, all of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.upstream_files import (
    BOX,
    BOX_TILE,
    CHAMBERS,
    COUNTER,
    PLANE,
    POSITIONS,
    TEMPERATURE,
    WEIGHT,
    State,
    refusal,
    same,
    saved,
)
from tests.upstream_state import CUBE, UpstreamSizes, small, upstream_state, upstream_table
from ucseg_training.upstream import read_upstream

Change = Callable[[State], object]


def _changed(sizes: UpstreamSizes, change: Change) -> State:
    state = upstream_state(sizes)
    change(state)
    return state


def test_missing_unexpected_and_misshaped_tensors_are_all_named(tmp_path: Path) -> None:
    state = upstream_state(BOX)
    del state[WEIGHT], state["net_1.final.bias"]
    state["net_1.extra.weight"] = torch.zeros(2)
    state["net_2.out_conv.bias"] = torch.zeros(5)
    error = refusal(saved(tmp_path, state), tile_shape=BOX_TILE)
    assert f"2 missing (net_1.final.bias, {WEIGHT})" in error.message
    assert "1 unexpected (net_1.extra.weight)" in error.message
    assert "1 misshaped (net_2.out_conv.bias (5,), expected (2,))" in error.message
    assert "whole model" in error.hint


def _some_names(sizes: UpstreamSizes) -> list[str]:
    """Tensors that alone say a size, and others from all over the networks."""
    return ["net_2.block_one.conv.0.weight", POSITIONS, TEMPERATURE, *list(upstream_table(sizes))[7::70]]


@pytest.mark.parametrize("sizes", [BOX, CHAMBERS], ids=["3d", "2d"])
def test_single_missing_tensor_is_named(tmp_path: Path, sizes: UpstreamSizes) -> None:
    state = upstream_state(sizes)
    for name in _some_names(sizes):
        path = saved(tmp_path, {other: tensor for other, tensor in state.items() if other != name})
        assert refusal(path).message.endswith(f": 1 missing ({name}).")


@pytest.mark.parametrize("sizes", [BOX, CHAMBERS], ids=["3d", "2d"])
def test_single_tensor_with_an_axis_too_many_is_named(tmp_path: Path, sizes: UpstreamSizes) -> None:
    state = upstream_state(sizes)
    for name in _some_names(sizes):
        path = saved(tmp_path, {**state, name: state[name][..., None]})
        expected = f"{name} {(*state[name].shape, 1)}, expected {tuple(state[name].shape)}"
        assert refusal(path).message.endswith(f": 1 misshaped ({expected}).")


@pytest.mark.parametrize(
    "name",
    [
        "net_2.block_one.conv.0.bias",
        "net_2.out_conv.bias",
        "net_1.conv1.conv1.0.bias",
        "generate_pseudo_simple.cross_attn.to_patch_embedding.1.bias",
        "generate_pseudo_simple.cross_attn.to_out.0.bias",
        "generate_pseudo_simple.cross_attn.attn.w_q.bias",
        "generate_pseudo_simple.cross_attn.MLP.net.0.bias",
        "generate_pseudo_simple.final_head.conv3.1.weight",
    ],
)
def test_tensor_that_disagrees_with_the_others_about_a_size_is_the_one_named(tmp_path: Path, name: str) -> None:
    state = upstream_state(BOX)
    state[name] = torch.zeros(len(state[name]) + 1)
    message = refusal(saved(tmp_path, state)).message
    assert message.endswith(f": 1 misshaped ({name} ({len(state[name])},), expected ({len(state[name]) - 1},)).")


@pytest.mark.parametrize(
    ("name", "shape", "named"),
    [
        pytest.param(TEMPERATURE, (2,), TEMPERATURE, id="temperature without axes"),
        pytest.param(TEMPERATURE, (), TEMPERATURE, id="temperature as a scalar"),
        pytest.param(TEMPERATURE, (3, 1, 1), "w_q.bias", id="heads that do not share the channels"),
        pytest.param(POSITIONS, (18, 14), POSITIONS, id="positions without the first axis"),
        pytest.param(POSITIONS, (2, 18, 14), POSITIONS, id="two position tables"),
        pytest.param(COUNTER, (1,), COUNTER, id="counter with an axis"),
    ],
)
def test_odd_shape_of_the_attention_is_named(tmp_path: Path, name: str, shape: tuple[int, ...], named: str) -> None:
    state = upstream_state(BOX)
    state[name] = torch.ones(shape)
    message = refusal(saved(tmp_path, state)).message
    assert "misshaped" in message
    assert named in message


def test_tokens_that_are_no_cube_are_named(tmp_path: Path) -> None:
    attention = "generate_pseudo_simple.cross_attn"
    state = upstream_state(BOX)
    state[f"{attention}.to_patch_embedding.1.weight"] = torch.zeros(14, 4000)
    state[f"{attention}.to_out.0.weight"] = torch.zeros(4000, 14)
    state[f"{attention}.to_out.0.bias"] = torch.zeros(4000)
    message = refusal(saved(tmp_path, state)).message
    assert "3 misshaped" in message
    assert "to_out.0.weight (4000, 14), expected (4096, 14)" in message


def test_sizes_that_no_trio_can_have_are_refused(tmp_path: Path) -> None:
    assert "num_classes is 1" in refusal(saved(tmp_path, upstream_state(small(CUBE, classes=1)))).message


def test_at_most_ten_names_of_a_kind_are_listed_and_all_are_counted(tmp_path: Path) -> None:
    message = refusal(saved(tmp_path, {f"layer{index:03d}": torch.zeros(1) for index in range(200)})).message
    assert "152 missing (" in message
    assert "and 142 more" in message
    assert "200 unexpected (" in message
    assert "layer009 and 190 more" in message
    assert "layer010" not in message


def test_names_from_the_file_cannot_break_the_line(tmp_path: Path) -> None:
    state = {**upstream_state(BOX), "evil\nname\x1b[31m": torch.zeros(1), "x" * 5000: torch.zeros(1)}
    message = refusal(saved(tmp_path, state)).message
    assert r"evil\nname\x1b[31m" in message
    assert len(message) < 1000


def test_empty_state_dict_misses_everything(tmp_path: Path) -> None:
    assert "152 missing" in refusal(saved(tmp_path, {})).message


def test_parts_of_a_model_of_the_other_dimension_are_named(tmp_path: Path) -> None:
    mixed = {**upstream_state(BOX), **{k: v for k, v in upstream_state(PLANE).items() if k.startswith("net_2.")}}
    message = refusal(saved(tmp_path, mixed)).message
    assert "136 missing (net_1.decoder." in message
    assert "38 unexpected (net_1.center." in message


def test_prefix_of_parallel_wrappers_is_taken_off(tmp_path: Path) -> None:
    state = upstream_state(BOX)
    model = read_upstream(saved(tmp_path, {f"module.{name}": v for name, v in state.items()}), tile_shape=BOX_TILE)
    assert same(model.state, state)


def test_prefix_on_some_names_only_is_unexpected(tmp_path: Path) -> None:
    state = upstream_state(BOX)
    state[f"module.{WEIGHT}"] = state.pop(WEIGHT)
    message = refusal(saved(tmp_path, state)).message
    assert f"1 missing ({WEIGHT}); 1 unexpected (module.{WEIGHT})" in message


@pytest.mark.parametrize("dtype", [torch.int32, torch.float16, torch.float64])
def test_weights_of_another_type_are_refused(tmp_path: Path, dtype: torch.dtype) -> None:
    state = _changed(BOX, lambda state: state.update({WEIGHT: state[WEIGHT].to(dtype)}))
    error = refusal(saved(tmp_path, state), tile_shape=BOX_TILE)
    assert (
        f"1 tensors of the state dict are of another type ({WEIGHT} {dtype}, expected torch.float32)" in error.message
    )
    assert "float()" in error.hint


def test_counter_that_is_no_integer_is_refused(tmp_path: Path) -> None:
    state = _changed(BOX, lambda state: state.update({COUNTER: torch.tensor(2.0)}))
    assert f"{COUNTER} torch.float32, expected torch.int64" in refusal(saved(tmp_path, state)).message


@pytest.mark.parametrize(
    ("name", "value"),
    [
        (WEIGHT, float("nan")),
        (TEMPERATURE, float("inf")),
        ("generate_pseudo_simple.final_head.conv1.1.running_mean", -float("inf")),
    ],
)
def test_value_that_is_not_finite_is_refused(tmp_path: Path, name: str, value: float) -> None:
    state = upstream_state(BOX)
    state[name].view(-1)[-1] = value
    assert (
        f"1 tensors of the state dict hold values that are not finite ({name})"
        in refusal(saved(tmp_path, state), tile_shape=BOX_TILE).message
    )


def test_negative_variance_is_refused(tmp_path: Path) -> None:
    name = "generate_pseudo_simple.final_head.conv2.1.running_var"
    state = _changed(BOX, lambda state: state[name].neg_())
    assert f"variances of the state dict are negative ({name})" in refusal(saved(tmp_path, state)).message
