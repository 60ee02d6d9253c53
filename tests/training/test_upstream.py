"""Upstream's state dicts come in strictly and go out bit for bit; nothing that does not fit is taken."""

from __future__ import annotations

import hashlib
import json
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from torch import Tensor, nn

from tests.training_phantom import TINY, tiny_model_spec
from tests.upstream_state import ACDC, BINARY_2D, CUBE, LONG, WIDE, UpstreamSizes, small, upstream_state, upstream_table
from ucseg_export.manifest_writer import model_spec
from ucseg_runtime.backends.graphs import engine_tile_shape
from ucseg_runtime.errors import ManifestError, ModelError, OutputError
from ucseg_training import upstream
from ucseg_training.checkpoint import load_checkpoint, save_checkpoint
from ucseg_training.nets import DualNet, TrioConfig
from ucseg_training.upstream import emit_upstream, import_upstream, read_upstream

State = dict[str, Tensor]

BOX = small(CUBE, tokens=18, token_side=16)  # 48 x 48 x 32
BOX_TILE = (48, 48, 32)
BOX_CONFIG = TrioConfig(
    dim=3,
    in_channels=1,
    num_classes=2,
    tile_shape=BOX_TILE,
    unet_width=2,
    vnet_width=3,
    token_side=16,
    attention_width=14,
    heads=2,
    head_dim=5,
    mlp_hidden=7,
    head_widths=(11, 12, 13, 15, 17),
    activation="sigmoid",
)
PLANE = small(BINARY_2D, tokens=4, token_side=16)
CHAMBERS = small(ACDC, tokens=16, token_side=8)
CHAMBERS_CONFIG = TrioConfig(
    dim=2,
    in_channels=3,
    num_classes=4,
    tile_shape=(32, 32),
    unet_width=2,
    vnet_width=3,
    token_side=8,
    attention_width=14,
    heads=2,
    head_dim=5,
    mlp_hidden=7,
    head_widths=(11, 12, 13, 15, 17),
    activation="softmax",
)
POSITIONS = "generate_pseudo_simple.cross_attn.pos_embed"
TEMPERATURE = "generate_pseudo_simple.cross_attn.attn.temperature"
COUNTER = "generate_pseudo_simple.final_head.conv6.1.num_batches_tracked"
WEIGHT = "net_2.block_five.conv.2.weight"


def _saved(folder: Path, state: object, name: str = "canary_12.pth") -> Path:
    """A file whose folder and name must not turn up in messages."""
    path = folder / "canary" / name
    path.parent.mkdir(exist_ok=True)
    torch.save(state, path)
    return path


def _without_memory(sizes: UpstreamSizes) -> State:
    """A state dict of full size in a small file: every tensor repeats one element."""
    return {
        name: torch.full((1,), 0.5).expand(shape) if shape else torch.tensor(3)
        for name, shape in upstream_table(sizes).items()
    }


def _refusal(path: Path, **arguments: Any) -> ModelError:
    """The error that names what is wrong in one line, says what to do, and tells no path."""
    with pytest.raises(ModelError) as caught:
        read_upstream(path, **arguments)
    assert caught.value.exit_code == 4
    assert "\n" not in str(caught.value)
    assert "canary" not in str(caught.value)
    return caught.value


def _same(left: State, right: State) -> bool:
    """Equal in names, types, shapes and every bit."""
    return left.keys() == right.keys() and all(
        left[name].dtype == right[name].dtype
        and left[name].shape == right[name].shape
        and left[name].numpy().tobytes() == right[name].numpy().tobytes()
        for name in left
    )


def _load(path: Path) -> State:
    state = torch.load(path, weights_only=True)
    assert type(state) is dict
    return state


# Sizes


@pytest.mark.parametrize(
    ("sizes", "elements", "expected"),
    [
        pytest.param(CUBE, 28_934_346, TrioConfig.upstream_3d(), id="96x96x96"),
        pytest.param(LONG, 28_964_042, TrioConfig.upstream_3d((112, 112, 80)), id="112x112x80"),
        pytest.param(WIDE, 29_040_842, TrioConfig.upstream_3d((128, 128, 80)), id="128x128x80"),
        pytest.param(BINARY_2D, 5_423_536, TrioConfig.upstream_2d_binary(), id="2d"),
        pytest.param(ACDC, 5_435_544, TrioConfig.upstream_acdc(), id="acdc"),
    ],
)
def test_sizes_of_upstreams_own_networks_are_read_from_the_shapes(
    tmp_path: Path, sizes: UpstreamSizes, elements: int, expected: TrioConfig
) -> None:
    model = read_upstream(_saved(tmp_path, _without_memory(sizes)))
    assert model.config == expected
    assert sum(tensor.numel() for tensor in model.state.values()) == elements
    assert model.assumed_grid == (sizes.dim == 3)


@pytest.mark.parametrize(
    ("sizes", "tile_shape", "expected"),
    [pytest.param(BOX, BOX_TILE, BOX_CONFIG, id="3d"), pytest.param(CHAMBERS, None, CHAMBERS_CONFIG, id="2d")],
)
def test_every_width_is_read_from_the_shapes(
    tmp_path: Path, sizes: UpstreamSizes, tile_shape: tuple[int, ...] | None, expected: TrioConfig
) -> None:
    model = read_upstream(_saved(tmp_path, upstream_state(sizes)), tile_shape=tile_shape)
    assert model.config == expected
    assert not model.assumed_grid


@pytest.mark.parametrize(
    ("classes", "given", "expected"),
    [(2, None, "sigmoid"), (2, "softmax", "softmax"), (4, None, "softmax"), (4, "softmax", "softmax")],
)
def test_two_channels_are_sigmoid_and_more_softmax_unless_told(
    tmp_path: Path, classes: int, given: Any, expected: str
) -> None:
    path = _saved(tmp_path, upstream_state(small(ACDC, tokens=4, classes=classes)))
    assert read_upstream(path, activation=given).config.activation == expected


def test_sigmoid_is_refused_for_more_than_two_channels(tmp_path: Path) -> None:
    error = _refusal(_saved(tmp_path, upstream_state(CHAMBERS)), activation="sigmoid")
    assert "4 channels" in error.message
    assert "softmax" in error.hint


def test_known_number_of_tokens_yields_to_a_given_tile_shape(tmp_path: Path) -> None:
    path = _saved(tmp_path, upstream_state(small(CUBE, tokens=216)))
    assert read_upstream(path).config.tile_shape == (96, 96, 96)
    given = read_upstream(path, tile_shape=(192, 144, 32))
    assert given.config.tile_shape == (192, 144, 32)
    assert not given.assumed_grid


def test_unknown_number_of_tokens_needs_a_tile_shape(tmp_path: Path) -> None:
    path = _saved(tmp_path, upstream_state(BOX))
    error = _refusal(path)
    assert "18 tokens of 16 x 16 x 16 voxels" in error.message
    assert "--tile-shape" in error.hint


@pytest.mark.parametrize(
    ("sizes", "tile_shape"),
    [
        pytest.param(BOX, (48, 48, 48), id="more tokens"),
        pytest.param(BOX, (48, 48, 16), id="fewer tokens"),
        pytest.param(BOX, (48, 40, 32), id="cuts a token"),
        pytest.param(BOX, (48, 48), id="two sides"),
        pytest.param(BOX, (-48, -48, 32), id="negative"),
        pytest.param(BOX, (0, 48, 32), id="zero"),
        pytest.param(small(CUBE, tokens=216), (112, 112, 80), id="against the convention"),
        pytest.param(PLANE, (48, 48), id="2d"),
        pytest.param(PLANE, (64, 16), id="2d not square"),
        pytest.param(PLANE, (32, 32, 32), id="2d with three sides"),
    ],
)
def test_tile_shape_that_contradicts_the_file_is_refused(
    tmp_path: Path, sizes: UpstreamSizes, tile_shape: tuple[int, ...]
) -> None:
    error = _refusal(_saved(tmp_path, upstream_state(sizes)), tile_shape=tile_shape)
    assert f"a tile of {' x '.join(map(str, tile_shape))} voxels does not fit" in error.message


def test_given_tile_shape_that_agrees_is_taken_in_2d(tmp_path: Path) -> None:
    path = _saved(tmp_path, upstream_state(PLANE))
    assert read_upstream(path, tile_shape=(32, 32)).config == read_upstream(path).config


def test_number_of_tokens_that_makes_no_square_is_refused_in_2d(tmp_path: Path) -> None:
    error = _refusal(_saved(tmp_path, upstream_state(small(BINARY_2D, tokens=12))))
    assert "12 tokens of 14 x 14 voxels" in error.message
    assert "square" in error.message


def test_sides_that_the_subnets_cannot_halve_four_times_are_refused(tmp_path: Path) -> None:
    error = _refusal(_saved(tmp_path, upstream_state(small(BINARY_2D, tokens=9, token_side=8))))
    assert "multiple of 16" in error.message


# Names, shapes, types, values

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
    error = _refusal(_saved(tmp_path, state), tile_shape=BOX_TILE)
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
        path = _saved(tmp_path, {other: tensor for other, tensor in state.items() if other != name})
        assert _refusal(path).message.endswith(f": 1 missing ({name}).")


@pytest.mark.parametrize("sizes", [BOX, CHAMBERS], ids=["3d", "2d"])
def test_single_tensor_with_an_axis_too_many_is_named(tmp_path: Path, sizes: UpstreamSizes) -> None:
    state = upstream_state(sizes)
    for name in _some_names(sizes):
        path = _saved(tmp_path, {**state, name: state[name][..., None]})
        expected = f"{name} {(*state[name].shape, 1)}, expected {tuple(state[name].shape)}"
        assert _refusal(path).message.endswith(f": 1 misshaped ({expected}).")


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
    message = _refusal(_saved(tmp_path, state)).message
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
    message = _refusal(_saved(tmp_path, state)).message
    assert "misshaped" in message
    assert named in message


def test_tokens_that_are_no_cube_are_named(tmp_path: Path) -> None:
    attention = "generate_pseudo_simple.cross_attn"
    state = upstream_state(BOX)
    state[f"{attention}.to_patch_embedding.1.weight"] = torch.zeros(14, 4000)
    state[f"{attention}.to_out.0.weight"] = torch.zeros(4000, 14)
    state[f"{attention}.to_out.0.bias"] = torch.zeros(4000)
    message = _refusal(_saved(tmp_path, state)).message
    assert "3 misshaped" in message
    assert "to_out.0.weight (4000, 14), expected (4096, 14)" in message


def test_sizes_that_no_trio_can_have_are_refused(tmp_path: Path) -> None:
    assert "num_classes is 1" in _refusal(_saved(tmp_path, upstream_state(small(CUBE, classes=1)))).message


def test_at_most_ten_names_of_a_kind_are_listed_and_all_are_counted(tmp_path: Path) -> None:
    message = _refusal(_saved(tmp_path, {f"layer{index:03d}": torch.zeros(1) for index in range(200)})).message
    assert "152 missing (" in message
    assert "and 142 more" in message
    assert "200 unexpected (" in message
    assert "layer009 and 190 more" in message
    assert "layer010" not in message


def test_names_from_the_file_cannot_break_the_line(tmp_path: Path) -> None:
    state = {**upstream_state(BOX), "evil\nname\x1b[31m": torch.zeros(1), "x" * 5000: torch.zeros(1)}
    message = _refusal(_saved(tmp_path, state)).message
    assert r"evil\nname\x1b[31m" in message
    assert len(message) < 1000


def test_empty_state_dict_misses_everything(tmp_path: Path) -> None:
    assert "152 missing" in _refusal(_saved(tmp_path, {})).message


def test_parts_of_a_model_of_the_other_dimension_are_named(tmp_path: Path) -> None:
    mixed = {**upstream_state(BOX), **{k: v for k, v in upstream_state(PLANE).items() if k.startswith("net_2.")}}
    message = _refusal(_saved(tmp_path, mixed)).message
    assert "136 missing (net_1.decoder." in message
    assert "38 unexpected (net_1.center." in message


def test_prefix_of_parallel_wrappers_is_taken_off(tmp_path: Path) -> None:
    state = upstream_state(BOX)
    model = read_upstream(_saved(tmp_path, {f"module.{name}": v for name, v in state.items()}), tile_shape=BOX_TILE)
    assert _same(model.state, state)


def test_prefix_on_some_names_only_is_unexpected(tmp_path: Path) -> None:
    state = upstream_state(BOX)
    state[f"module.{WEIGHT}"] = state.pop(WEIGHT)
    message = _refusal(_saved(tmp_path, state)).message
    assert f"1 missing ({WEIGHT}); 1 unexpected (module.{WEIGHT})" in message


@pytest.mark.parametrize("dtype", [torch.int32, torch.float16, torch.float64])
def test_weights_of_another_type_are_refused(tmp_path: Path, dtype: torch.dtype) -> None:
    state = _changed(BOX, lambda state: state.update({WEIGHT: state[WEIGHT].to(dtype)}))
    error = _refusal(_saved(tmp_path, state), tile_shape=BOX_TILE)
    assert (
        f"1 tensors of the state dict are of another type ({WEIGHT} {dtype}, expected torch.float32)" in error.message
    )
    assert "float()" in error.hint


def test_counter_that_is_no_integer_is_refused(tmp_path: Path) -> None:
    state = _changed(BOX, lambda state: state.update({COUNTER: torch.tensor(2.0)}))
    assert f"{COUNTER} torch.float32, expected torch.int64" in _refusal(_saved(tmp_path, state)).message


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
        in _refusal(_saved(tmp_path, state), tile_shape=BOX_TILE).message
    )


def test_negative_variance_is_refused(tmp_path: Path) -> None:
    name = "generate_pseudo_simple.final_head.conv2.1.running_var"
    state = _changed(BOX, lambda state: state[name].neg_())
    assert f"variances of the state dict are negative ({name})" in _refusal(_saved(tmp_path, state)).message


# Files


@pytest.mark.parametrize(
    ("content", "named"),
    [
        pytest.param({"state_dict": {"a": torch.zeros(1)}, "epoch": torch.tensor(3)}, "(state_dict)", id="wrapper"),
        pytest.param({"model": {}, "optimizer": {"state": {}}, "epoch": 3}, "(model, optimizer)", id="several"),
    ],
)
def test_wrapper_is_refused_with_the_way_out(tmp_path: Path, content: object, named: str) -> None:
    error = _refusal(_saved(tmp_path, content))
    assert "wraps" in error.message
    assert named in error.message
    assert "torch.save" in error.hint


@pytest.mark.parametrize(
    ("value", "named"),
    [
        (3, "step: int"),
        ([torch.zeros(1)], "step: list"),
        (None, "step: NoneType"),
        ("text", "step: str"),
        (torch.eye(3).to_sparse(), "step: Tensor"),
        (torch.zeros(3, device="meta"), "step: Tensor"),
    ],
    ids=["number", "list", "none", "text", "sparse tensor", "tensor without values"],
)
def test_value_that_is_no_plain_tensor_is_refused(tmp_path: Path, value: object, named: str) -> None:
    error = _refusal(_saved(tmp_path, {**upstream_state(BOX), "step": value}))
    assert f"1 values of the state dict are not plain tensors ({named})" in error.message


@pytest.mark.parametrize("content", [torch.zeros(3), [torch.zeros(3)], 7], ids=["tensor", "list", "number"])
def test_content_without_names_is_refused(tmp_path: Path, content: object) -> None:
    assert "expected names with tensors" in _refusal(_saved(tmp_path, content)).message


class _Payload:
    """Creates a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize("inside", [True, False], ids=["among tensors", "alone"])
def test_code_in_the_file_is_refused_and_not_run(tmp_path: Path, zipped: bool, inside: bool) -> None:
    ran, path = tmp_path / "ran", _saved(tmp_path, {})
    payload = _Payload(ran)
    content = {**upstream_state(BOX), "net_1.final.bias": payload} if inside else payload
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    error = _refusal(path)
    assert "could run code" in error.message
    assert "state_dict()" in error.hint
    assert not ran.exists()
    pickle.loads(pickle.dumps(payload))  # noqa: S301  (the test's own bytes: the payload must be a live one)
    assert ran.exists()


@pytest.mark.parametrize("content", [nn.Linear(2, 2), {"lr": np.float64(0.1)}], ids=["module", "numpy scalar"])
def test_objects_are_refused(tmp_path: Path, content: object) -> None:
    assert "objects that are not tensors" in _refusal(_saved(tmp_path, content)).message


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b"hello world", id="text"),
        pytest.param(pickle.dumps({"a": 1}), id="plain pickle"),
        pytest.param(b"\x80\x02]" + b"]" * 5000, id="deep pickle"),
        pytest.param(b"\x08\x00\x00\x00\x00\x00\x00\x00{}      ", id="safetensors"),
    ],
)
def test_file_that_torch_did_not_write_is_refused(tmp_path: Path, content: bytes) -> None:
    path = _saved(tmp_path, {})
    path.write_bytes(content)
    assert "not one that torch.save writes" in _refusal(path).message


def test_other_zip_archive_is_refused(tmp_path: Path) -> None:
    path = _saved(tmp_path, {})
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme.txt", "weights are elsewhere")
    assert "the state dict cannot be read" in _refusal(path).message


@pytest.mark.parametrize("kind", ["missing", "folder"])
def test_file_that_cannot_be_opened_is_refused(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "canary"
    if kind == "folder":
        path.mkdir()
    assert "the state dict cannot be read" in _refusal(path).message


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_damaged_files_are_refused_or_read_but_never_end_otherwise(tmp_path: Path, zipped: bool) -> None:
    path = _saved(tmp_path, {})
    torch.save(upstream_state(PLANE), path, _use_new_zipfile_serialization=zipped)
    good = path.read_bytes()
    generator = np.random.default_rng(0)
    refusals = []
    for attempt in range(30):
        damaged = bytearray(good)
        if attempt % 3 == 0:
            del damaged[int(generator.integers(len(good))) :]
        else:
            # The names and shapes stand in the first bytes; that is where damage matters.
            for at in generator.integers(min(len(good), 20_000), size=attempt):
                damaged[at] ^= int(generator.integers(1, 256))
        path.write_bytes(damaged)
        try:
            read_upstream(path)
        except ModelError as error:
            refusals.append(str(error))
    assert len(refusals) > 15
    assert not any("canary" in refusal for refusal in refusals)


def test_files_of_older_versions_of_torch_are_read(tmp_path: Path) -> None:
    path, state = _saved(tmp_path, {}), upstream_state(PLANE)
    torch.save(state, path, _use_new_zipfile_serialization=False)
    assert not zipfile.is_zipfile(path)
    assert _same(read_upstream(path).state, state)


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_other_pickle_protocol_is_refused_without_a_warning(
    tmp_path: Path, zipped: bool, recwarn: pytest.WarningsRecorder
) -> None:
    path = _saved(tmp_path, {})
    torch.save(upstream_state(PLANE), path, _use_new_zipfile_serialization=zipped, pickle_protocol=4)
    _refusal(path)
    assert not recwarn.list


def test_parameters_and_tensors_of_shared_memory_come_in_as_own_tensors(tmp_path: Path) -> None:
    state = upstream_state(PLANE)
    attention = "generate_pseudo_simple.cross_attn.attn"
    state[f"{attention}.w_k.weight"] = nn.Parameter(state[f"{attention}.w_q.weight"])
    state[f"{attention}.w_k.bias"] = torch.zeros(1).expand(10)
    path, out = _saved(tmp_path, state), tmp_path / "out.safetensors"
    assert _load(path)[f"{attention}.w_k.bias"].stride() == (0,), "the file keeps what the tensors share"
    import_upstream(path, out)
    assert _same(dict(load_checkpoint(out).net.state_dict()), {name: value.detach() for name, value in state.items()})


# Import


@pytest.mark.parametrize(
    ("sizes", "tile_shape", "config"),
    [pytest.param(BOX, BOX_TILE, BOX_CONFIG, id="3d"), pytest.param(CHAMBERS, None, CHAMBERS_CONFIG, id="2d")],
)
def test_imported_networks_compute_exactly_what_the_same_tensors_compute(
    tmp_path: Path, sizes: UpstreamSizes, tile_shape: tuple[int, ...] | None, config: TrioConfig
) -> None:
    state = upstream_state(sizes)
    import_upstream(_saved(tmp_path, state), tmp_path / "out.safetensors", tile_shape=tile_shape)
    imported = load_checkpoint(tmp_path / "out.safetensors").net
    net = DualNet(config)
    net.load_state_dict(state, strict=True)
    image = torch.randn(1, config.in_channels, *config.tile_shape, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        expected, found = net.eval()(image), imported(image)
    assert torch.equal(found.fused_logits, expected.fused_logits)
    assert torch.equal(found.logits_a, expected.logits_a)
    assert torch.equal(found.logits_b, expected.logits_b)
    assert found.fused_logits.std() > 0.0


@pytest.mark.parametrize(
    ("name", "step"),
    [
        ("best_12000.pth", 12000),
        ("best_model_400.pth", 400),
        ("best.pth", 0),
        ("best_12000_old.pth", 0),
        ("model_9.pth", 0),
    ],
)
def test_training_steps_come_from_upstreams_file_names(tmp_path: Path, name: str, step: int) -> None:
    out = tmp_path / "out.safetensors"
    report = import_upstream(_saved(tmp_path, upstream_state(PLANE), name), out)
    assert report.step == load_checkpoint(out).step == step
    assert any("training steps" in note for note in report.notes) == (step == 0)


def test_import_without_a_description_says_that_the_export_will_ask(tmp_path: Path) -> None:
    out = tmp_path / "out.safetensors"
    report = import_upstream(_saved(tmp_path, upstream_state(BOX)), out, tile_shape=BOX_TILE)
    checkpoint = load_checkpoint(out)
    assert report.spec is None
    assert checkpoint.model_spec == {}
    with pytest.raises(ManifestError, match="name: Field required"):
        model_spec(checkpoint.model_spec, checkpoint.net.config)
    note = report.notes[-1]
    for needed in ("--describe", "--spec", "axis_order xyz", "tile_shape [32, 48, 48]", "activation sigmoid"):
        assert needed in note


def test_assumed_grid_is_told(tmp_path: Path) -> None:
    path, out = _saved(tmp_path, upstream_state(small(CUBE, tokens=245))), tmp_path / "out.safetensors"
    assert "245 tokens are taken for tiles of 112 x 112 x 80 voxels" in import_upstream(path, out).notes[0]
    given = import_upstream(path, out, tile_shape=(112, 112, 80)).notes
    assert not any("are taken for" in note for note in given)


# Description


def _least_description(classes: int = 1) -> dict[str, Any]:
    """What no state dict says, and nothing else."""
    fields = tiny_model_spec(classes)
    for known in ("dim", "channels", "activation", "fusion", "default_precision", "tiling", "postprocessing"):
        del fields[known]
    del fields["provenance"]
    return fields


def _described(folder: Path, fields: object, name: str = "canary.yaml") -> Path:
    path = folder / name
    path.write_text(json.dumps(fields) if name.lower().endswith(".json") else yaml.safe_dump(fields), encoding="utf-8")
    return path


@pytest.mark.parametrize("name", ["canary.yaml", "canary.yml", "canary.json", "CANARY.JSON"])
def test_description_is_read_as_yaml_and_as_json(tmp_path: Path, name: str) -> None:
    path, out = _saved(tmp_path, upstream_state(BOX)), tmp_path / "out.safetensors"
    description = _described(tmp_path, _least_description(), name)
    report = import_upstream(path, out, description=description, tile_shape=BOX_TILE)
    assert report.spec is not None
    assert report.spec.name == "tiny"
    assert load_checkpoint(out).model_spec == report.spec.model_dump(mode="json")


def test_description_is_filled_with_what_upstreams_3d_networks_are(tmp_path: Path) -> None:
    path, out = _saved(tmp_path, upstream_state(small(CUBE, tokens=245))), tmp_path / "out.safetensors"
    import_upstream(path, out, description=_described(tmp_path, _least_description()))
    checkpoint = load_checkpoint(out)
    spec = model_spec(checkpoint.model_spec, checkpoint.net.config)  # as the export checks it
    assert (spec.dim, spec.channels, spec.num_classes, spec.activation) == (3, 1, 2, "sigmoid")
    assert spec.tiling.axis_order == "xyz"
    assert spec.tiling.tile_shape == (80, 112, 112)
    assert engine_tile_shape(spec.tiling) == checkpoint.net.config.tile_shape == (112, 112, 80)
    assert spec.postprocessing.largest_component == (1,)
    assert spec.fusion == "upg"
    assert spec.default_precision == "f32"
    assert spec.provenance == {
        "imported_from": f"UC-Seg state dict, sha256 {hashlib.sha256(path.read_bytes()).hexdigest()}"
    }


def test_description_is_filled_with_what_upstreams_2d_networks_are(tmp_path: Path) -> None:
    path, out = _saved(tmp_path, upstream_state(CHAMBERS)), tmp_path / "out.safetensors"
    import_upstream(path, out, description=_described(tmp_path, _least_description(classes=3)))
    checkpoint = load_checkpoint(out)
    spec = model_spec(checkpoint.model_spec, checkpoint.net.config)
    assert (spec.dim, spec.channels, spec.num_classes, spec.activation) == (2, 3, 4, "softmax")
    assert (spec.tiling.tile_shape, spec.tiling.axis_order) == ((1, 32, 32), "zyx")
    assert spec.postprocessing.largest_component == ()


def test_what_the_description_says_is_kept(tmp_path: Path) -> None:
    fields = _least_description() | {
        "dim": 3,
        "channels": 1,
        "activation": "softmax",
        "default_precision": "bf16",
        "tiling": {"overlap": 0.25, "weighting": "uniform"},
        "postprocessing": {"smallest_component_ml": {"1": 2.5}},
        "provenance": {"patients": "80 of one centre"},
    }
    path, out = _saved(tmp_path, upstream_state(BOX)), tmp_path / "out.safetensors"
    report = import_upstream(path, out, description=_described(tmp_path, fields), tile_shape=BOX_TILE)
    assert report.spec is not None
    assert report.config.activation == report.spec.activation == "softmax"
    assert report.spec.default_precision == "bf16"
    assert (report.spec.tiling.overlap, report.spec.tiling.weighting) == (0.25, "uniform")
    assert report.spec.postprocessing.largest_component == ()
    assert report.spec.postprocessing.smallest_component_ml == {1: 2.5}
    assert set(report.spec.provenance) == {"patients", "imported_from"}


@pytest.mark.parametrize(
    ("tiling", "networks"),
    [
        pytest.param({"tile_shape": [32, 48, 48]}, (48, 48, 32), id="upstream's axes"),
        pytest.param({"tile_shape": [48, 48, 32], "axis_order": "xyz"}, (32, 48, 48), id="said to be upstream's"),
        pytest.param({"tile_shape": [32, 48, 48], "axis_order": "zyx"}, (32, 48, 48), id="trained on other axes"),
    ],
)
def test_tile_shape_of_the_description_counts(
    tmp_path: Path, tiling: dict[str, Any], networks: tuple[int, ...]
) -> None:
    fields = _least_description() | {"tiling": tiling}
    path, out = _saved(tmp_path, upstream_state(BOX)), tmp_path / "out.safetensors"
    report = import_upstream(path, out, description=_described(tmp_path, fields))
    assert report.config.tile_shape == networks
    assert report.spec is not None
    assert report.spec.tiling.tile_shape == tuple(tiling["tile_shape"])


def test_tile_shape_of_a_2d_description_counts(tmp_path: Path) -> None:
    path, out = _saved(tmp_path, upstream_state(PLANE)), tmp_path / "out.safetensors"
    good = _described(tmp_path, _least_description() | {"tiling": {"tile_shape": [1, 32, 32]}})
    assert import_upstream(path, out, description=good).config.tile_shape == (32, 32)
    wrong = _described(tmp_path, _least_description() | {"tiling": {"tile_shape": [1, 48, 48]}})
    with pytest.raises(ModelError, match="4 tokens of 16 x 16 voxels in a tile; a tile of 48 x 48 voxels"):
        import_upstream(path, out, description=wrong)


def _import_error(folder: Path, fields: object, name: str = "canary.yaml", **arguments: Any) -> ManifestError:
    """The error of an import, which must leave nothing behind and tell no path."""
    path, out = _saved(folder, upstream_state(BOX)), folder / "out.safetensors"
    description = folder / name if fields is None else _described(folder, fields, name)
    with pytest.raises(ManifestError) as caught:
        import_upstream(path, out, description=description, **{"tile_shape": BOX_TILE, **arguments})
    assert "\n" not in str(caught.value)
    assert "canary" not in str(caught.value)
    assert not out.exists()
    return caught.value


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"dim": 2}, "dim 2, networks 3"),
        ({"channels": 3}, "channels 3, networks 1"),
        ({"fusion": "mean"}, "fusion mean, networks upg"),
        ({"tiling": {"tile_shape": [48, 48, 32]}}, "tile shape in the networks' order of axes (32, 48, 48), networks"),
        ({"tiling": {"axis_order": "zyx", "tile_shape": [32, 48, 48]}}, "(32, 48, 48), networks (48, 48, 32)"),
        ({"classes": tiny_model_spec(2)["classes"], "activation": "softmax"}, "classes with background 3, networks 2"),
    ],
)
def test_description_of_other_networks_is_refused(tmp_path: Path, change: dict[str, Any], named: str) -> None:
    error = _import_error(tmp_path, _least_description() | change)
    assert named in error.message


def test_activation_that_contradicts_the_description_is_refused(tmp_path: Path) -> None:
    error = _import_error(tmp_path, _least_description() | {"activation": "sigmoid"}, activation="softmax")
    assert "activation sigmoid, networks softmax" in error.message


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"licence": None}, "licence: "),
        ({"unknown": 1}, "unknown: Extra inputs"),
        ({"activation": "relu"}, "activation: "),
        ({"fusion": "vote"}, "fusion: "),
        ({"tiling": 7}, "tiling: "),
        ({"tiling": {"tile_shape": [0, 1]}}, "tiling.tile_shape"),
        ({"tiling": {"overlap": 1.5}}, "tiling.overlap: "),
        ({"version": 1.0}, "version: "),
    ],
)
def test_description_that_breaks_the_schema_is_refused(tmp_path: Path, change: dict[str, Any], named: str) -> None:
    error = _import_error(
        tmp_path, _least_description() | change, tile_shape=None if "tile_shape" in named else BOX_TILE
    )
    assert "breaks the schema" in error.message
    assert named in error.message


def test_every_missing_field_is_named(tmp_path: Path) -> None:
    message = _import_error(tmp_path, {}).message
    for name in ("name", "version", "licence", "intended_use", "modality", "classes", "preprocessing"):
        assert f"{name}: Field required" in message


@pytest.mark.parametrize("fields", [[1, 2], "text", 5], ids=["list", "text", "number"])
def test_description_without_names_is_refused(tmp_path: Path, fields: object) -> None:
    assert "expected names with values" in _import_error(tmp_path, fields).message


@pytest.mark.parametrize(
    ("name", "content", "named"),
    [
        ("canary.json", b'{\n"name": }', "not JSON: line 2"),
        ("canary.yaml", b"name: x\nclasses: [", "not YAML: line 2"),
        ("canary.yaml", b"name: !!python/object/apply:os.getcwd []", "not YAML: line 1"),
        ("canary.yaml", b"name: \x00", "not YAML"),
        ("canary.yaml", b"\xff\xfe\xff", "cannot be read"),
        ("canary.json", b"\xff", "cannot be read"),
        ("canary.json", b"[" * 100_000, "cannot be read"),
        ("canary.yaml", None, "cannot be read (FileNotFoundError)"),
    ],
)
def test_description_that_cannot_be_parsed_is_refused(
    tmp_path: Path, name: str, content: bytes | None, named: str
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    assert named in _import_error(tmp_path, None, name).message


# Round trip


@pytest.mark.parametrize(
    ("sizes", "tile_shape", "prefix"),
    [
        pytest.param(BOX, BOX_TILE, "", id="3d"),
        pytest.param(CHAMBERS, None, "", id="2d"),
        pytest.param(PLANE, None, "module.", id="2d with prefix"),
    ],
)
def test_tensors_come_out_as_they_went_in(
    tmp_path: Path, sizes: UpstreamSizes, tile_shape: tuple[int, ...] | None, prefix: str
) -> None:
    state = upstream_state(sizes)
    checkpoint, out = tmp_path / "out.safetensors", tmp_path / "again.pth"
    path = _saved(tmp_path, {prefix + name: tensor for name, tensor in state.items()})
    import_upstream(path, checkpoint, tile_shape=tile_shape)
    assert emit_upstream(checkpoint, out) == ()
    emitted = _load(out)
    assert _same(emitted, state)
    assert emitted[COUNTER].dtype == torch.int64
    assert emitted[TEMPERATURE].unique().numel() == 2, "the values of the file, not the ones that a new net has"


def test_full_size_3d_state_dict_comes_out_as_it_went_in(tmp_path: Path) -> None:
    state = upstream_state(CUBE)
    assert sum(tensor.numel() for tensor in state.values()) == 28_934_346
    checkpoint, out = tmp_path / "out.safetensors", tmp_path / "again.pth"
    report = import_upstream(_saved(tmp_path, state, "best_6000.pth"), checkpoint)
    assert report.config == TrioConfig.upstream_3d()
    emit_upstream(checkpoint, out)
    assert _same(_load(out), state)


def test_extreme_values_keep_their_bits(tmp_path: Path) -> None:
    state = upstream_state(PLANE)
    odd = [-0.0, 1e-45, torch.finfo(torch.float32).max, torch.finfo(torch.float32).tiny / 2]
    state["net_2.block_one.conv.0.weight"].view(-1)[: len(odd)] = torch.tensor(odd)
    state[COUNTER] = torch.tensor(2**62 + 1)
    checkpoint, out = tmp_path / "out.safetensors", tmp_path / "again.pth"
    import_upstream(_saved(tmp_path, state), checkpoint)
    emit_upstream(checkpoint, out)
    assert _same(_load(out), state)


def test_own_checkpoint_is_emitted_with_the_names_of_the_table(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = DualNet(TINY)
    checkpoint, out = tmp_path / "own.safetensors", tmp_path / "own.pth"
    save_checkpoint(checkpoint, net.state_dict(), TINY, 5, tiny_model_spec())
    notes = emit_upstream(checkpoint, out)
    sizes = UpstreamSizes(
        classes=3, tokens=64, token_side=8, width_a=2, width_b=2, attention=8, heads=2, inner=8, hidden=8, head=(2,) * 5
    )
    assert {name: tuple(tensor.shape) for name, tensor in _load(out).items()} == upstream_table(sizes)
    assert "(z, y, x)" in notes[0]
    again = read_upstream(out, tile_shape=TINY.tile_shape)
    assert again.config == TINY
    assert _same(again.state, dict(net.state_dict()))


def test_imported_3d_model_is_emitted_without_a_note_on_axes(tmp_path: Path) -> None:
    path, checkpoint = _saved(tmp_path, upstream_state(BOX)), tmp_path / "out.safetensors"
    description = _described(tmp_path, _least_description())
    import_upstream(path, checkpoint, description=description, tile_shape=BOX_TILE)
    assert emit_upstream(checkpoint, tmp_path / "again.pth") == ()


def test_emission_of_something_else_is_a_model_error(tmp_path: Path) -> None:
    path = _saved(tmp_path, upstream_state(PLANE))
    with pytest.raises(ModelError, match="cannot be read as safetensors"):
        emit_upstream(path, tmp_path / "again.pth")
    assert not (tmp_path / "again.pth").exists()


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """A small imported checkpoint."""
    import_upstream(_saved(tmp_path, upstream_state(PLANE)), tmp_path / "out.safetensors")
    return tmp_path / "out.safetensors"


def test_emission_leaves_nothing_but_the_file(tmp_path: Path, checkpoint: Path) -> None:
    folder = tmp_path / "made"
    folder.mkdir()
    emit_upstream(checkpoint, folder / "again.pth")
    emit_upstream(checkpoint, folder / "again.pth")
    assert [item.name for item in folder.iterdir()] == ["again.pth"]


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), RuntimeError("unexpected pos 64 vs 12")])
def test_failed_emission_keeps_the_old_file_and_leaves_nothing_half_written(
    tmp_path: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fail_half_way(_: object, file: Any) -> None:
        file.write(b"half")
        raise error

    folder = tmp_path / "canary-made"
    folder.mkdir()
    emit_upstream(checkpoint, folder / "again.pth")
    before = (folder / "again.pth").read_bytes()
    monkeypatch.setattr(upstream.torch, "save", fail_half_way)
    with pytest.raises(OutputError, match="cannot be written") as caught:
        emit_upstream(checkpoint, folder / "again.pth")
    assert "canary" not in str(caught.value)
    assert (folder / "again.pth").read_bytes() == before
    assert [item.name for item in folder.iterdir()] == ["again.pth"]


@pytest.mark.parametrize("place", ["missing/again.pth", "out.safetensors/again.pth", "folder"])
def test_emission_to_a_place_that_cannot_be_written_is_an_output_error(
    tmp_path: Path, checkpoint: Path, place: str
) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(OutputError, match="cannot be written"):
        emit_upstream(checkpoint, tmp_path / place)
    assert not list(tmp_path.glob(".*.part"))
