"""Made-up planes, and the small models for planes that are taught on them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from ucseg_export.cli.app import app as export_app
from ucseg_runtime.model_folder import load_model
from ucseg_training.checkpoint import load_checkpoint
from ucseg_training.cli.app import app
from ucseg_training.data.phantom_planes import PhantomPlanes, draw_phantom_plane
from ucseg_training.phantom_training import SIDE


@pytest.mark.parametrize("channels", [1, 3])
def test_object_of_a_plane_looks_other_than_what_is_around_it(channels: int) -> None:
    planes = [draw_phantom_plane(96, channels, np.random.default_rng(seed)) for seed in range(30)]
    shown = [plane for plane in planes if plane.mask.any()]
    assert 20 < len(shown) < 30, "some planes must be without an object"
    for plane in planes:
        assert (plane.image.shape, plane.image.dtype) == ((channels, 96, 96), np.float32)
        assert plane.image.min() >= 0
        assert plane.image.max() <= 255
    differences = [
        plane.image[:, plane.mask].mean(axis=1) - plane.image[:, ~plane.mask].mean(axis=1) for plane in shown
    ]
    red_or_grey, rest = np.mean(differences, axis=0)[0], np.mean(differences, axis=0)[1:]
    assert (red_or_grey > 10) if channels == 3 else (red_or_grey < -20)
    assert (rest < 0).all()


def test_colours_are_given_to_the_network_blue_first() -> None:
    batch = PhantomPlanes(side=32, channels=3, tiles=2).draw(0)
    rng = np.random.default_rng((42, 0, 0))
    first = draw_phantom_plane(32, 3, rng)
    np.testing.assert_array_equal(batch.labelled[0].numpy(), first.image[::-1] / np.float32(255))
    np.testing.assert_array_equal(batch.target.label_map[0].numpy(), first.mask)
    assert batch.unlabelled is not None
    assert batch.labelled.shape == batch.unlabelled.shape == (2, 3, 32, 32)


def test_batch_depends_on_its_number_and_the_seed_alone() -> None:
    planes = PhantomPlanes(side=32, channels=1, tiles=1)
    assert torch.equal(planes.draw(3).labelled, PhantomPlanes(side=32, channels=1, tiles=1).draw(3).labelled)
    assert not torch.equal(planes.draw(3).labelled, planes.draw(4).labelled)
    assert not torch.equal(planes.draw(3).labelled, PhantomPlanes(32, 1, 1, seed=43).draw(3).labelled)
    assert planes.describe() != PhantomPlanes(32, 1, 1, seed=43).describe()


def test_few_labelled_planes_come_again_turned_and_mirrored() -> None:
    planes = PhantomPlanes(side=32, channels=1, tiles=8, labelled_planes=2)
    drawn = np.concatenate([planes.draw(number).labelled[:, 0].numpy() for number in range(4)])
    others = np.concatenate([replace(planes, stream=1).draw(number).labelled[:, 0].numpy() for number in range(4)])
    kinds = {np.sort(plane, axis=None).tobytes() for plane in drawn}
    assert len(kinds) == 2
    assert len({plane.tobytes() for plane in drawn}) > 4, "each plane must come in several positions"
    assert {np.sort(plane, axis=None).tobytes() for plane in others} == kinds


def test_mask_turns_with_its_plane() -> None:
    batch = PhantomPlanes(side=96, channels=1, tiles=16, labelled_planes=3).draw(0)
    inside = [
        float(image[0][label > 0].mean() - image[0][label == 0].mean())
        for image, label in zip(batch.labelled, batch.target.label_map, strict=True)
        if (label > 0).any()
    ]
    assert len(inside) > 5
    assert max(inside) < -0.05


def test_planes_without_unlabelled_ones() -> None:
    assert PhantomPlanes(side=32, channels=1, tiles=2, unlabelled=False).draw(0).unlabelled is None


@pytest.mark.slow
@pytest.mark.parametrize("channels", [1, 3])
def test_phantom_model_is_trained_exported_and_says_what_it_is(channels: int, tmp_path: Path) -> None:
    arguments = ["demo", "--dim", "2", "--channels", str(channels), "--steps", "1", "--out", str(tmp_path / "run")]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    checkpoint = Path(result.stdout.strip())
    assert load_checkpoint(checkpoint).net.config.in_channels == channels
    exported = CliRunner().invoke(
        export_app, ["onnx", str(checkpoint), "--out", str(tmp_path / "model"), "--tiles-per-set", "1"]
    )
    assert exported.exit_code == 0, exported.output
    manifest = load_model(tmp_path / "model").manifest
    assert (manifest.dim, manifest.channels, manifest.tiling.tile_shape) == (2, channels, (1, SIDE, SIDE))
    assert "Phantom-trained" in manifest.intended_use


def test_three_channels_are_for_planes_alone(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["demo", "--channels", "3", "--out", str(tmp_path / "run")])
    assert result.exit_code == 2
    assert not (tmp_path / "run").exists()
