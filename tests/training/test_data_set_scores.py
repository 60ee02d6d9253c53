"""Scores of a data set: volumes on their own grid as deployed; by the published protocol as upstream's programs do."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
import yaml
from typer.testing import CliRunner

from tests.dataset_phantom import (
    block_labels,
    dataset,
    plane_fields,
    random_volume,
    write_hdf5,
    write_nifti,
    write_picture,
)
from tests.fake_backend import FakeBackend
from tests.training_phantom import TINY, block_case, tiny_model_spec
from tests.volume_phantom import STRAIGHT, centred_geometry
from ucseg_runtime.arrays import Float32Array
from ucseg_runtime.manifest import ModelSpec
from ucseg_training import evaluate as module
from ucseg_training.checkpoint import save_checkpoint
from ucseg_training.cli.app import app
from ucseg_training.data.dataset_spec import DatasetSpec
from ucseg_training.data.presets import load_dataset_spec
from ucseg_training.data_set_scores import score_data_set
from ucseg_training.nets import DualNet, TrioConfig
from ucseg_training.scoring import MEAN_OF_CLASSES


def test_volume_is_scored_on_its_own_grid_by_the_deployed_flow(tmp_path: Path, seen: Any) -> None:
    case, model = block_case(), tiny_model_spec()
    fields = {n: model[n] for n in ("modality", "dim", "channels", "classes", "activation", "preprocessing", "tiling")}
    (tmp_path / "blocks.yaml").write_text(yaml.safe_dump({"name": "blocks", **fields}))
    fine = case.geometry.regridded((48, 40, 42))
    labels = case.label_map.repeat(2, axis=0)
    labels[36, 4:28, 2:20] = 1  # half a slice of the model grid more than there is
    write_nifti(tmp_path / "p.nii.gz", case.voxels.repeat(2, axis=0), fine)
    write_nifti(tmp_path / "l.nii.gz", labels, fine)
    row = {"name": "p", "image": "p.nii.gz", "label": "l.nii.gz", "split": "test"}
    (tmp_path / "cases.json").write_text(json.dumps([row]))
    checkpoint = tmp_path / "trio.safetensors"
    save_checkpoint(checkpoint, DualNet(TINY).state_dict(), TINY, 1, model)
    inputs = np.array([-1.0, 0.4, -0.4], dtype=np.float32).reshape(-1, 1, 1, 1)
    seen(lambda tile: (np.abs(tile - inputs).argmin(axis=0) == np.arange(3).reshape(-1, 1, 1, 1)).astype(np.float32))

    rows = list(score_data_set(checkpoint, tmp_path / "cases.json", str(tmp_path / "blocks.yaml"), "test"))

    scores = {row.segment: row.scores for row in rows if row.output == "fused"}
    assert scores["block 1"]["truth_ml"] == pytest.approx(29 * 24 * 18 * 0.0135)
    assert scores["block 1"]["dice"] == pytest.approx(2 * 28 / (28 + 29))
    assert scores["block 1"]["hd95_mm"] in (0.0, 1.5)
    assert scores["block 2"]["dice"] == 1.0


def _checkpoint(path: Path, spec: DatasetSpec) -> Path:
    config = TrioConfig(
        dim=2,
        in_channels=spec.channels,
        num_classes=len(spec.classes) + 1,
        tile_shape=spec.tiling.tile_shape[1:],
        unet_width=2,
        vnet_width=2,
        attention_width=4,
        heads=2,
        head_dim=2,
        mlp_hidden=4,
        head_widths=(2, 2, 2, 2, 2),
        activation=spec.activation,
    )
    model = spec.model_fields_of() | {
        "name": spec.name,
        "version": "0.1.0",
        "licence": "none",
        "intended_use": "tests",
        "default_precision": "f32",
        "quality": [],
    }
    torch.manual_seed(0)
    save_checkpoint(path, DualNet(config).state_dict(), config, 1, model)
    return path


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[Float32Array], Float32Array]], list[Float32Array]]:
    """Replaces the networks by a function of the tile, and gives the list of the tiles that it saw."""

    def rigged(probabilities: Callable[[Float32Array], Float32Array]) -> list[Float32Array]:
        tiles: list[Float32Array] = []

        def noted(tile: Float32Array) -> Float32Array:
            tiles.append(tile)
            return probabilities(tile)

        def backend(_: DualNet, spec: ModelSpec, *__: object, **___: object) -> FakeBackend:
            return FakeBackend(spec, noted)

        monkeypatch.setattr(module, "TorchBackend", backend)
        return tiles

    return rigged


def test_picture_is_given_and_scored_on_the_grid_of_the_published_code(tmp_path: Path, seen: Any) -> None:
    fields = plane_fields()
    (tmp_path / "polyp.yaml").write_text(yaml.safe_dump(fields))
    image = np.random.default_rng(0).integers(0, 128, (64, 96, 3)).astype(np.uint8)
    mask = np.zeros((64, 96), np.uint8)
    mask[11:34, 21:60] = 255
    image[mask > 0, 0] = 255
    write_picture(tmp_path / "a.png", image)
    write_picture(tmp_path / "a_mask.png", mask)
    row = {"name": "a", "image": "a.png", "label": "a_mask.png", "split": "test"}
    (tmp_path / "cases.json").write_text(json.dumps([row]))
    checkpoint = _checkpoint(tmp_path / "trio.safetensors", dataset(**fields))
    tiles = seen(lambda tile: (tile[2:] > 0.9).astype(np.float32))

    rows = list(score_data_set(checkpoint, tmp_path / "cases.json", str(tmp_path / "polyp.yaml"), "test", paper=True))

    (tile,) = tiles
    nearest = cv2.resize(image, (32, 32), interpolation=cv2.INTER_NEAREST)
    np.testing.assert_allclose(tile[:, 0], nearest[..., ::-1].transpose(2, 0, 1) / 255.0, atol=1e-6)
    assert [row.scores for row in rows] == [{"dice": 1.0, "jaccard": 1.0, "hd95_voxels": 0.0, "asd_voxels": 0.0}]


def _acdc_list(folder: Path, image: str, label: str) -> Path:
    path = folder / f"{image}.json"
    path.write_text(json.dumps([{"name": "patient001", "image": image, "label": label, "split": "test"}]))
    return path


def test_cardiac_volume_in_scanner_units_is_scored_like_the_scaled_one(tmp_path: Path, seen: Any) -> None:
    labels = block_labels((2, 40, 36), np.s_[:, 4:12, 4:16], np.s_[:, 16:24, 8:18], np.s_[:, 26:36, 10:24])
    voxels = np.rint(100.0 + 300.0 * labels + random_volume(0, labels.shape, 0.0, 50.0)).astype(np.float32)
    scaled = (voxels - voxels.min()) / (voxels.max() - voxels.min())
    write_nifti(tmp_path / "v.nii.gz", voxels, centred_geometry(labels.shape, (10.0, 1.5, 1.5), STRAIGHT[:, ::-1]))
    write_nifti(tmp_path / "l.nii.gz", labels, centred_geometry(labels.shape, (10.0, 1.5, 1.5), STRAIGHT[:, ::-1]))
    write_hdf5(tmp_path / "v.h5", scaled.astype(np.float32), labels)
    checkpoint = _checkpoint(tmp_path / "trio.safetensors", load_dataset_spec("acdc"))

    def by_grey(tile: Float32Array) -> Float32Array:
        level = np.clip(np.floor(tile[0] * 3.5), 0, 3)
        return np.stack([level == label for label in range(4)]).astype(np.float32)

    tiles = seen(by_grey)
    found = {
        image: [row.scores for row in score_data_set(checkpoint, listed, "acdc", "test", paper=True)]
        for image, listed in (
            ("v.h5", _acdc_list(tmp_path, "v.h5", "v.h5")),
            ("v.nii.gz", _acdc_list(tmp_path, "v.nii.gz", "l.nii.gz")),
        )
    }
    assert len(tiles) == 4
    assert all(tile.min() >= 0.0 and tile.max() <= 1.0 for tile in tiles)
    assert found["v.h5"] == found["v.nii.gz"]
    assert all(scores["dice"] > 0.9 for scores in found["v.h5"])


def test_summary_of_several_classes_by_the_protocol_ends_with_their_mean(tmp_path: Path, seen: Any) -> None:
    labels = block_labels((1, 40, 36), np.s_[:, 4:12, 4:16], np.s_[:, 16:24, 8:18], np.s_[:, 26:36, 10:24])
    write_hdf5(tmp_path / "v.h5", (labels / 3.0).astype(np.float32), labels)
    checkpoint = _checkpoint(tmp_path / "trio.safetensors", load_dataset_spec("acdc"))
    seen(lambda tile: np.stack([np.rint(tile[0] * 3.0) == label for label in (0, 1, 2, 5)]).astype(np.float32))
    listed = _acdc_list(tmp_path, "v.h5", "v.h5")
    arguments = ["evaluate", str(checkpoint), "--data", str(listed), "--spec", "acdc", "--paper-protocol", "--summary"]

    done = CliRunner().invoke(app, arguments)

    assert done.exit_code == 0, done.output
    dice = {row["segment"]: row["mean"] for row in map(json.loads, done.stdout.splitlines()) if row["score"] == "dice"}
    assert list(dice) == ["right ventricle", "myocardium", "left ventricle", MEAN_OF_CLASSES]
    assert dice["left ventricle"] == 0.0
    assert dice[MEAN_OF_CLASSES] == pytest.approx(sum(list(dice.values())[:3]) / 3)
