"""The sizes of the networks are read from the shapes of an upstream state dict, or it is said why not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.upstream_files import BOX, BOX_CONFIG, BOX_TILE, CHAMBERS, CHAMBERS_CONFIG, PLANE, State, refusal, saved
from tests.upstream_state import ACDC, BINARY_2D, CUBE, LONG, WIDE, UpstreamSizes, small, upstream_state, upstream_table
from ucseg_training.nets import TrioConfig
from ucseg_training.upstream import read_upstream


def _without_memory(sizes: UpstreamSizes) -> State:
    """A state dict of full size in a small file: every tensor repeats one element."""
    return {
        name: torch.full((1,), 0.5).expand(shape) if shape else torch.tensor(3)
        for name, shape in upstream_table(sizes).items()
    }


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
    model = read_upstream(saved(tmp_path, _without_memory(sizes)))
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
    model = read_upstream(saved(tmp_path, upstream_state(sizes)), tile_shape=tile_shape)
    assert model.config == expected
    assert not model.assumed_grid


@pytest.mark.parametrize(
    ("classes", "given", "expected"),
    [(2, None, "sigmoid"), (2, "softmax", "softmax"), (4, None, "softmax"), (4, "softmax", "softmax")],
)
def test_two_channels_are_sigmoid_and_more_softmax_unless_told(
    tmp_path: Path, classes: int, given: Any, expected: str
) -> None:
    path = saved(tmp_path, upstream_state(small(ACDC, tokens=4, classes=classes)))
    assert read_upstream(path, activation=given).config.activation == expected


def test_sigmoid_is_refused_for_more_than_two_channels(tmp_path: Path) -> None:
    error = refusal(saved(tmp_path, upstream_state(CHAMBERS)), activation="sigmoid")
    assert "4 channels" in error.message
    assert "softmax" in error.hint


def test_known_number_of_tokens_yields_to_a_given_tile_shape(tmp_path: Path) -> None:
    path = saved(tmp_path, upstream_state(small(CUBE, tokens=216)))
    assert read_upstream(path).config.tile_shape == (96, 96, 96)
    given = read_upstream(path, tile_shape=(192, 144, 32))
    assert given.config.tile_shape == (192, 144, 32)
    assert not given.assumed_grid


def test_unknown_number_of_tokens_needs_a_tile_shape(tmp_path: Path) -> None:
    path = saved(tmp_path, upstream_state(BOX))
    error = refusal(path)
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
    error = refusal(saved(tmp_path, upstream_state(sizes)), tile_shape=tile_shape)
    assert f"a tile of {' x '.join(map(str, tile_shape))} voxels does not fit" in error.message


def test_given_tile_shape_that_agrees_is_taken_in_2d(tmp_path: Path) -> None:
    path = saved(tmp_path, upstream_state(PLANE))
    assert read_upstream(path, tile_shape=(32, 32)).config == read_upstream(path).config


def test_number_of_tokens_that_makes_no_square_is_refused_in_2d(tmp_path: Path) -> None:
    error = refusal(saved(tmp_path, upstream_state(small(BINARY_2D, tokens=12))))
    assert "12 tokens of 14 x 14 voxels" in error.message
    assert "square" in error.message


def test_sides_that_the_subnets_cannot_halve_four_times_are_refused(tmp_path: Path) -> None:
    error = refusal(saved(tmp_path, upstream_state(small(BINARY_2D, tokens=9, token_side=8))))
    assert "multiple of 16" in error.message
