"""Tensors come out as they went in, bit for bit, and a file is written whole or not at all."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.training_phantom import TINY, tiny_model_spec
from tests.upstream_files import (
    BOX,
    BOX_TILE,
    CHAMBERS,
    COUNTER,
    PLANE,
    TEMPERATURE,
    described,
    least_description,
    loaded,
    same,
    saved,
)
from tests.upstream_state import CUBE, UpstreamSizes, upstream_state, upstream_table
from ucseg_runtime.errors import ModelError, OutputError
from ucseg_training import upstream
from ucseg_training.checkpoint import save_checkpoint
from ucseg_training.nets import DualNet, TrioConfig
from ucseg_training.upstream import emit_upstream, import_upstream, read_upstream


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
    path = saved(tmp_path, {prefix + name: tensor for name, tensor in state.items()})
    import_upstream(path, checkpoint, tile_shape=tile_shape)
    assert emit_upstream(checkpoint, out) == ()
    emitted = loaded(out)
    assert same(emitted, state)
    assert emitted[COUNTER].dtype == torch.int64
    assert emitted[TEMPERATURE].unique().numel() == 2, "the values of the file, not the ones that a new net has"


def test_full_size_3d_state_dict_comes_out_as_it_went_in(tmp_path: Path) -> None:
    state = upstream_state(CUBE)
    assert sum(tensor.numel() for tensor in state.values()) == 28_934_346
    checkpoint, out = tmp_path / "out.safetensors", tmp_path / "again.pth"
    report = import_upstream(saved(tmp_path, state, "best_6000.pth"), checkpoint)
    assert report.config == TrioConfig.upstream_3d()
    emit_upstream(checkpoint, out)
    assert same(loaded(out), state)


def test_extreme_values_keep_their_bits(tmp_path: Path) -> None:
    state = upstream_state(PLANE)
    odd = [-0.0, 1e-45, torch.finfo(torch.float32).max, torch.finfo(torch.float32).tiny / 2]
    state["net_2.block_one.conv.0.weight"].view(-1)[: len(odd)] = torch.tensor(odd)
    state[COUNTER] = torch.tensor(2**62 + 1)
    checkpoint, out = tmp_path / "out.safetensors", tmp_path / "again.pth"
    import_upstream(saved(tmp_path, state), checkpoint)
    emit_upstream(checkpoint, out)
    assert same(loaded(out), state)


def test_own_checkpoint_is_emitted_with_the_names_of_the_table(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = DualNet(TINY)
    checkpoint, out = tmp_path / "own.safetensors", tmp_path / "own.pth"
    save_checkpoint(checkpoint, net.state_dict(), TINY, 5, tiny_model_spec())
    notes = emit_upstream(checkpoint, out)
    sizes = UpstreamSizes(
        classes=3, tokens=64, token_side=8, width_a=2, width_b=2, attention=8, heads=2, inner=8, hidden=8, head=(2,) * 5
    )
    assert {name: tuple(tensor.shape) for name, tensor in loaded(out).items()} == upstream_table(sizes)
    assert "(z, y, x)" in notes[0]
    again = read_upstream(out, tile_shape=TINY.tile_shape)
    assert again.config == TINY
    assert same(again.state, dict(net.state_dict()))


def test_imported_3d_model_is_emitted_without_a_note_on_axes(tmp_path: Path) -> None:
    path, checkpoint = saved(tmp_path, upstream_state(BOX)), tmp_path / "out.safetensors"
    description = described(tmp_path, least_description())
    import_upstream(path, checkpoint, description=description, tile_shape=BOX_TILE)
    assert emit_upstream(checkpoint, tmp_path / "again.pth") == ()


def test_emission_of_something_else_is_a_model_error(tmp_path: Path) -> None:
    path = saved(tmp_path, upstream_state(PLANE))
    with pytest.raises(ModelError, match="cannot be read as safetensors"):
        emit_upstream(path, tmp_path / "again.pth")
    assert not (tmp_path / "again.pth").exists()


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """A small imported checkpoint."""
    import_upstream(saved(tmp_path, upstream_state(PLANE)), tmp_path / "out.safetensors")
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
