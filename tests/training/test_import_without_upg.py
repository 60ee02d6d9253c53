"""State dicts of two subnets alone: read strictly when asked for, and told from a whole trio everywhere else."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from tests.upstream_state import ACDC, CUBE, UpstreamSizes, small, upstream_state
from ucseg_runtime.errors import ModelError
from ucseg_training.checkpoint import load_checkpoint
from ucseg_training.cli.app import app
from ucseg_training.upstream import import_upstream

SIZES = {"3d": (small(CUBE), (32, 48, 16)), "2d": (small(ACDC), (64, 64))}


def pair(sizes: UpstreamSizes) -> dict[str, torch.Tensor]:
    return {name: t for name, t in upstream_state(sizes).items() if not name.startswith("generate_pseudo_simple.")}


def saved(folder: Path, state: dict[str, torch.Tensor]) -> Path:
    torch.save(state, folder / "best_40.pth")
    return folder / "best_40.pth"


@pytest.mark.parametrize("dim", SIZES)
def test_two_subnets_come_in_as_a_checkpoint_without_a_upg(dim: str, tmp_path: Path) -> None:
    sizes, tile_shape = SIZES[dim]
    state, out = pair(sizes), tmp_path / "pair.safetensors"

    report = import_upstream(saved(tmp_path, state), out, tile_shape=tile_shape, with_upg=False)
    found = load_checkpoint(out, needs_upg=False)

    assert (found.has_upg, found.step, found.net.config.tile_shape) == (False, 40, tile_shape)
    assert found.net.config.num_classes == sizes.classes
    loaded = found.net.state_dict()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in state.items())
    assert any("ucseg-export fusion" in note for note in report.notes)
    with pytest.raises(ModelError, match="two subnets without a UPG") as caught:
        load_checkpoint(out)
    assert "--rule" in caught.value.hint


def test_a_whole_trio_and_half_a_one_are_refused_as_two_subnets(tmp_path: Path) -> None:
    whole, out = upstream_state(small(CUBE)), tmp_path / "out.safetensors"
    with pytest.raises(ModelError, match="unexpected"):
        import_upstream(saved(tmp_path, whole), out, tile_shape=(32, 32, 32), with_upg=False)
    less = pair(small(CUBE))
    del less["net_2.out_conv.bias"]
    with pytest.raises(ModelError, match=r"1 missing \(net_2.out_conv.bias\)"):
        import_upstream(saved(tmp_path, less), out, tile_shape=(32, 32, 32), with_upg=False)
    with pytest.raises(ModelError, match="54 missing"):
        import_upstream(saved(tmp_path, pair(small(CUBE))), out, tile_shape=(32, 32, 32))
    assert not out.exists()


def test_tile_shape_must_be_given_and_fit_the_networks(tmp_path: Path) -> None:
    path = saved(tmp_path, pair(small(CUBE)))
    command = ["import", str(path), "--out", str(tmp_path / "out.safetensors"), "--without-upg"]
    for more, told in ([], "does not say the tile shape"), (["--tile-shape", "32,32,30"], "multiple of 16"):
        result = CliRunner().invoke(app, [*command, *more])
        assert result.exit_code == 4
        assert told in " ".join(result.stderr.split())
    assert CliRunner().invoke(app, [*command, "--tile-shape", "32,32,32"]).exit_code == 0
