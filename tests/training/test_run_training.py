"""``ucseg-train run``: from a list of files to a checkpoint that can be scored, exported and deployed."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch
import yaml
from typer.testing import CliRunner, Result

from tests.training_phantom import tiny_model_spec
from ucseg_export.cli.app import app as export_app
from ucseg_runtime.errors import InputError
from ucseg_runtime.model_folder import load_model
from ucseg_training.checkpoint import load_checkpoint, load_training_state
from ucseg_training.cli.app import app
from ucseg_training.data.presets import load_dataset_spec, preset_names
from ucseg_training.errors import TrainingError
from ucseg_training.method.config import Method
from ucseg_training.nets import TrioConfig
from ucseg_training.run_training import RunOptions, run_training, trio_for, try_training
from ucseg_training.training_plan import TrainingPlan

SHAPE = (30, 36, 34)


def _write_case(folder: Path, name: str, seed: int) -> None:
    """A bright ball in noise, its label beside it, as NIfTI (x, y, z)."""
    rng = np.random.default_rng(seed)
    centre, radius = rng.uniform(12, 20, size=3), rng.uniform(5, 9)
    index = np.stack(np.meshgrid(*map(np.arange, SHAPE), indexing="ij"), axis=-1)
    mask = ((index - centre) ** 2).sum(axis=-1) <= radius**2
    voxels = np.where(mask, 300.0, -300.0) + rng.normal(0, 40, SHAPE)
    affine = np.diag([3.0, 3.0, 3.0, 1.0])
    nibabel.save(nibabel.Nifti1Image(voxels.astype(np.float32), affine), folder / f"{name}.nii.gz")
    nibabel.save(nibabel.Nifti1Image(mask.astype(np.uint8), affine), folder / f"{name}_label.nii.gz")


def _rows() -> list[dict[str, str]]:
    splits = {"a": "train", "b": "train", "c": "unlabelled", "d": "unlabelled", "e": "val", "f": "test"}
    return [
        {"name": name, "patient": name, "image": f"{name}.nii.gz", "split": split}
        | ({} if split == "unlabelled" else {"label": f"{name}_label.nii.gz"})
        for name, split in splits.items()
    ]


def _description() -> dict[str, Any]:
    model = tiny_model_spec(foreground=1, activation="sigmoid")
    kept = ("modality", "dim", "channels", "classes", "activation", "preprocessing")
    return {
        **{name: model[name] for name in kept},
        "name": "balls",
        "tiling": {"tile_shape": [32, 32, 32]},
        "batch_size": 2,
    }


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with six cases, their list ``cases.json`` and their description ``balls.yaml``."""
    folder = tmp_path_factory.mktemp("data")
    for seed, row in enumerate(_rows()):
        _write_case(folder, row["name"], seed)
    (folder / "cases.json").write_text(json.dumps(_rows()), encoding="utf-8")
    (folder / "balls.yaml").write_text(yaml.safe_dump(_description()), encoding="utf-8")
    return folder


@pytest.fixture
def options(data: Path) -> RunOptions:
    return RunOptions(
        data=data / "cases.json",
        spec_name=str(data / "balls.yaml"),
        steps=4,
        size="slim",
        validate_every=2,
        checkpoint_every=2,
    )


def _run(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_checkpoint_of_a_run_is_scored_exported_and_loads_as_a_model(data: Path, tmp_path: Path) -> None:
    listed, spec, out = data / "cases.json", data / "balls.yaml", tmp_path / "runs" / "balls"
    trained = _run("run", listed, "--spec", spec, "--out", out, "--size", "slim", "--steps", 2, "--validate-every", 1)
    assert trained.exit_code == 0, trained.output
    checkpoint = Path(trained.stdout.strip())
    assert load_checkpoint(checkpoint).step == 2
    assert "validation Dice" in (out / "train.log").read_text(encoding="utf-8")
    assert list((out / "tensorboard").iterdir())
    for protocol in ((), ("--paper-protocol",)):
        scored = _run("evaluate", checkpoint, "--data", listed, "--spec", spec, *protocol)
        assert scored.exit_code == 0, scored.output
        rows = [json.loads(line) for line in scored.stdout.splitlines()]
        assert {row["case"] for row in rows} == {"f"}
        assert all(0.0 <= row["dice"] <= 1.0 for row in rows)
        assert ("hd95_voxels" in rows[0]) == bool(protocol)
    exported = CliRunner().invoke(export_app, ["onnx", str(checkpoint), "--out", str(tmp_path / "model")])
    assert exported.exit_code == 0, exported.output
    manifest = load_model(tmp_path / "model").manifest
    assert (manifest.name, manifest.num_classes, manifest.activation) == ("balls", 2, "sigmoid")
    assert "pseudo-labels upg" in manifest.provenance["method"]


def test_run_goes_on_where_it_stopped(options: RunOptions, tmp_path: Path) -> None:
    whole, parts = tmp_path / "a" / "whole", tmp_path / "b" / "parts"
    run_training(options, whole, show_progress=False)
    run_training(replace(options, stop_after=2), parts, show_progress=False)
    run_training(options, parts, show_progress=False)
    states = [load_training_state(folder / "state.safetensors") for folder in (whole, parts)]
    assert states[0].step == states[1].step == 4
    for name, tensor in states[0].weights.items():
        assert torch.equal(tensor, states[1].weights[name]), name
    assert states[0].objective
    for name, tensor in states[0].objective.items():
        assert torch.equal(tensor, states[1].objective[name]), name


def test_dry_run_measures_and_leaves_no_state(options: RunOptions, tmp_path: Path) -> None:
    found = try_training(options, tmp_path / "runs" / "dry", steps=2)
    assert (found.labelled, found.unlabelled, found.validation, found.refused) == (2, 2, 1, 0)
    assert found.seconds_per_step > 0
    assert found.peak_memory_mb > 0
    assert not list((tmp_path / "runs").glob("dry/*.safetensors"))


def test_dry_run_of_a_run_of_one_step_tries_that_step(options: RunOptions, tmp_path: Path) -> None:
    found = try_training(replace(options, steps=1, validate_every=0), tmp_path / "runs" / "dry")
    assert found.seconds_per_step > 0
    assert 0 < found.peak_memory_mb < found.memory_mb


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"validate_every": 1}, "the validation list"),
        ({"validate_every": 0}, "none: the weights of the last step"),
        ({"validate_every": 9}, "none: the weights of the last step"),
    ],
)
def test_checkpoint_says_on_which_list_its_weights_were_chosen(
    options: RunOptions, tmp_path: Path, changes: dict[str, Any], expected: str
) -> None:
    path = run_training(replace(options, steps=1, **changes), tmp_path / "runs" / "a", show_progress=False)
    provenance = load_checkpoint(path).model_spec["provenance"]
    assert isinstance(provenance, dict)
    assert provenance["weights_chosen_on"] == expected


def test_run_that_stopped_before_its_first_validation_can_go_on(options: RunOptions, tmp_path: Path) -> None:
    def chosen_on() -> object:
        provenance = load_checkpoint(tmp_path / "runs" / "a" / "trio.safetensors").model_spec["provenance"]
        assert isinstance(provenance, dict)
        return provenance["weights_chosen_on"]

    run_training(replace(options, stop_after=1), tmp_path / "runs" / "a", show_progress=False)
    assert chosen_on() == "none: the weights of the last step"
    run_training(replace(options, steps=4), tmp_path / "runs" / "a", show_progress=False)
    assert chosen_on() == "the validation list"


@pytest.mark.parametrize(("option", "expected"), [((), True), (("--no-largest-component",), False)])
def test_pseudo_labels_may_keep_every_piece_of_a_class(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, option: tuple[str, ...], expected: bool
) -> None:
    plans: list[TrainingPlan] = []
    monkeypatch.setattr(
        "ucseg_training.run_training.train", lambda batches, plan, *_, **__: plans.append(plan) or tmp_path
    )
    spec = data / "balls.yaml"
    done = _run("run", data / "cases.json", "--spec", spec, "--out", tmp_path / "r" / "a", "--size", "slim", *option)
    assert done.exit_code == 0, done.output
    assert Method(plans[0].method, plans[0].trio).largest_component == expected


def test_labels_alone_need_no_unlabelled_case(options: RunOptions, data: Path, tmp_path: Path) -> None:
    rows = [row for row in _rows() if row["split"] != "unlabelled"]
    for row in rows:
        row |= {name: str(data / row[name]) for name in ("image", "label")}
    listed = tmp_path / "labelled.json"
    listed.write_text(json.dumps(rows), encoding="utf-8")
    options = replace(options, data=listed, steps=1, validate_every=0)
    with pytest.raises(TrainingError, match="no unlabelled case"):
        run_training(options, tmp_path / "runs" / "whole", show_progress=False)
    path = run_training(replace(options, method="none"), tmp_path / "runs" / "labels", show_progress=False)
    assert load_checkpoint(path).step == 1


@pytest.mark.parametrize(("mode", "refused"), [("fixed", True), ("compat", False)])
def test_weights_are_chosen_on_the_test_list_in_compat_alone(
    options: RunOptions, data: Path, tmp_path: Path, mode: str, refused: bool, caplog: pytest.LogCaptureFixture
) -> None:
    rows = [row for row in _rows() if row["split"] != "val"]
    for row in rows:
        row |= {name: str(data / row[name]) for name in ("image", "label") if name in row}
    listed = tmp_path / "cases.json"
    listed.write_text(json.dumps(rows), encoding="utf-8")
    options = replace(options, data=listed, mode=mode, steps=1, validate_every=1)
    if refused:
        with pytest.raises(InputError, match="no validation cases"):
            run_training(options, tmp_path / "runs" / "a", show_progress=False)
        assert not (tmp_path / "runs" / "a" / "state.safetensors").exists()
        return
    with caplog.at_level("WARNING", "ucseg_training.run_training"):
        run_training(options, tmp_path / "runs" / "a", show_progress=False)
    assert "chosen on the test list" in caplog.text
    chosen = load_checkpoint(tmp_path / "runs" / "a" / "trio.safetensors").model_spec["provenance"]
    assert isinstance(chosen, dict)
    assert chosen["weights_chosen_on"] == "the test list, as upstream does"


def test_bad_case_is_refused_by_name_or_left_out_on_request(options: RunOptions, data: Path, tmp_path: Path) -> None:
    rows = _rows()
    for row in rows:
        row |= {name: str(data / row[name]) for name in ("image", "label") if name in row}
    broken = np.full(SHAPE, np.nan, dtype=np.float32)
    nibabel.save(nibabel.Nifti1Image(broken, np.diag([3.0, 3.0, 3.0, 1.0])), tmp_path / "nan.nii.gz")
    rows.append({"name": "x", "patient": "x", "image": "nan.nii.gz", "split": "unlabelled"})
    (tmp_path / "cases.json").write_text(json.dumps(rows), encoding="utf-8")
    options = replace(options, data=tmp_path / "cases.json", steps=1, validate_every=0)
    with pytest.raises(InputError, match="case 7 of 7 \\('x'\\)"):
        run_training(options, tmp_path / "runs" / "a", show_progress=False)
    path = run_training(replace(options, skip_bad_cases=True), tmp_path / "runs" / "b", show_progress=False)
    assert load_checkpoint(path).step == 1


def test_odd_batch_is_refused_before_the_first_step(options: RunOptions, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="3 cases; expected an even number"):
        run_training(replace(options, batch_size=3), tmp_path / "runs" / "odd", show_progress=False)
    assert not (tmp_path / "runs" / "odd" / "state.safetensors").exists()


@pytest.mark.parametrize("preset", preset_names())
def test_full_networks_of_every_preset_are_upstreams(preset: str) -> None:
    spec = load_dataset_spec(preset)
    if spec.dim == 3:
        upstream = TrioConfig.upstream_3d(spec.tiling.tile_shape)
    else:
        upstream = TrioConfig.upstream_acdc() if preset == "acdc" else TrioConfig.upstream_2d_binary()
    assert trio_for(spec, "full") == upstream
    slim = trio_for(spec, "slim")
    assert (slim.unet_width, slim.tile_shape, slim.num_classes) == (8, upstream.tile_shape, upstream.num_classes)
