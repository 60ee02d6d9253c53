"""Imported networks compute what upstream's tensors compute, and the import says what it had to assume."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.upstream_files import BOX, BOX_CONFIG, BOX_TILE, CHAMBERS, CHAMBERS_CONFIG, PLANE, saved
from tests.upstream_state import CUBE, UpstreamSizes, small, upstream_state
from ucseg_export.manifest_writer import model_spec
from ucseg_runtime.errors import ManifestError
from ucseg_training.checkpoint import load_checkpoint
from ucseg_training.nets import DualNet, TrioConfig
from ucseg_training.upstream import import_upstream


@pytest.mark.parametrize(
    ("sizes", "tile_shape", "config"),
    [pytest.param(BOX, BOX_TILE, BOX_CONFIG, id="3d"), pytest.param(CHAMBERS, None, CHAMBERS_CONFIG, id="2d")],
)
def test_imported_networks_compute_exactly_what_the_same_tensors_compute(
    tmp_path: Path, sizes: UpstreamSizes, tile_shape: tuple[int, ...] | None, config: TrioConfig
) -> None:
    state = upstream_state(sizes)
    import_upstream(saved(tmp_path, state), tmp_path / "out.safetensors", tile_shape=tile_shape)
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
    report = import_upstream(saved(tmp_path, upstream_state(PLANE), name), out)
    assert report.step == load_checkpoint(out).step == step
    assert any("training steps" in note for note in report.notes) == (step == 0)


def test_import_without_a_description_says_that_the_export_will_ask(tmp_path: Path) -> None:
    out = tmp_path / "out.safetensors"
    report = import_upstream(saved(tmp_path, upstream_state(BOX)), out, tile_shape=BOX_TILE)
    checkpoint = load_checkpoint(out)
    assert report.spec is None
    assert checkpoint.model_spec == {}
    with pytest.raises(ManifestError, match="name: Field required"):
        model_spec(checkpoint.model_spec, checkpoint.net.config)
    note = report.notes[-1]
    for needed in ("--describe", "--spec", "axis_order xyz", "tile_shape [32, 48, 48]", "activation sigmoid"):
        assert needed in note


def test_assumed_grid_is_told(tmp_path: Path) -> None:
    path, out = saved(tmp_path, upstream_state(small(CUBE, tokens=245))), tmp_path / "out.safetensors"
    assert "245 tokens are taken for tiles of 112 x 112 x 80 voxels" in import_upstream(path, out).notes[0]
    given = import_upstream(path, out, tile_shape=(112, 112, 80)).notes
    assert not any("are taken for" in note for note in given)
