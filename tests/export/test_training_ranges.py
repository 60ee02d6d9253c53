"""`ucseg-export ranges`: what training cases look like goes into the manifest, and nothing else changes."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml
from typer.testing import CliRunner, Result

from tests.model_phantom import ModelPhantom, manifest_fields
from tests.phantoms import CtPhantom, write_ct_series
from tests.proof_phantom import proven
from ucseg_export.cli.app import app
from ucseg_runtime.backends.graphs import GRAPHS
from ucseg_runtime.cli.app import app as runtime_app
from ucseg_runtime.manifest import MANIFEST_NAME
from ucseg_runtime.model_folder import load_model
from ucseg_runtime.nifti import write_nifti

MODEL = ModelPhantom(centres=(-8.0, 0.5, 6.0), tile_shape=(16, 32, 32))
PHANTOM = CtPhantom(shape=(12, 40, 48))
SHORTER = replace(PHANTOM, shape=(8, 40, 48), study="B")
HELD_OUT = replace(PHANTOM, shape=(40, 40, 48), study="C")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return MODEL.write(tmp_path / "model")


@pytest.fixture
def data_set(tmp_path: Path) -> tuple[Path, Path]:
    """List and description: two training cases, of which one has no label, and one that is held out."""
    rows = []
    for name, split, phantom in (
        ("one", "train", PHANTOM),
        ("two", "unlabelled", SHORTER),
        ("three", "test", HELD_OUT),
    ):
        write_ct_series(tmp_path / name, phantom)
        rows.append({"name": name, "patient": name, "image": name, "split": split})
    labels = np.where(PHANTOM.labels > 2, 0, PHANTOM.labels).astype(np.uint8)
    write_nifti(tmp_path / "labels.nii.gz", labels, PHANTOM.geometry)
    rows[0]["label"] = "labels.nii.gz"
    fields = manifest_fields(MODEL, dict.fromkeys(GRAPHS, b""))
    shared = ("modality", "dim", "activation", "classes", "preprocessing")
    spec = {name: fields[name] for name in shared}
    spec |= {"name": "made-up", "title": "made up", "tiling": {"tile_shape": [16, 32, 32]}}
    spec |= {"labels": {"kind": "values", "values": {1: 1, 2: 2}}}
    (tmp_path / "cases.json").write_text(json.dumps(rows), encoding="utf-8")
    (tmp_path / "spec.yaml").write_text(yaml.safe_dump(json.loads(json.dumps(spec))), encoding="utf-8")
    return tmp_path / "cases.json", tmp_path / "spec.yaml"


def ranges(folder: Path, *arguments: object) -> Result:
    return CliRunner().invoke(app, ["ranges", str(folder), *map(str, arguments)])


def test_ranges_are_those_of_the_training_cases_alone(folder: Path, data_set: tuple[Path, Path]) -> None:
    before = json.loads((folder / MANIFEST_NAME).read_text(encoding="utf-8"))
    digest = load_model(folder).digest

    result = ranges(folder, "--data", data_set[0], "--spec", data_set[1], "--json")

    assert result.exit_code == 0, result.output
    model = load_model(folder)
    found = model.manifest.training_ranges
    assert found is not None
    assert found.cases == 2
    assert found.figures["slices"] == (8.0, 12.0), "the case with 40 slices is held out"
    volume_ml = found.figures["volume_ml/1"]
    assert volume_ml[0] == volume_ml[1], "what is found in an unlabelled case may be anything"
    assert found.figures["present/1"] == (1.0, 1.0)
    assert found.figures["subnet_dice/1"] == (1.0, 1.0), "both subnets of this model decide alike"
    assert json.loads(result.stdout) == json.loads(found.model_dump_json())
    after = json.loads((folder / MANIFEST_NAME).read_text(encoding="utf-8"))
    assert after.pop("training_ranges")["cases"] == 2
    assert after == before
    assert model.digest != digest


def test_a_training_case_is_accepted_by_the_model_that_was_measured_on_it(
    folder: Path, data_set: tuple[Path, Path], tmp_path: Path
) -> None:
    assert ranges(folder, "--data", data_set[0], "--spec", data_set[1]).exit_code == 0
    proven(folder)

    arguments = ["segment", str(tmp_path / "one"), "--out", str(tmp_path / "out"), "--model", str(folder), "--json"]
    found = CliRunner().invoke(runtime_app, arguments)

    decision = json.loads(found.stdout)["decision"]
    assert decision["outcome"] == "accept"
    assert decision["score"] < 1e-6


def test_what_is_measured_has_to_be_said_once(folder: Path, data_set: tuple[Path, Path]) -> None:
    for arguments in ((), ("--data", data_set[0]), ("--demo-cases", "--data", data_set[0], "--spec", data_set[1])):
        assert ranges(folder, *arguments).exit_code == 2


def test_a_data_set_without_training_cases_is_refused_and_the_manifest_stays(
    folder: Path, data_set: tuple[Path, Path]
) -> None:
    before = (folder / MANIFEST_NAME).read_bytes()
    rows = [row for row in json.loads(data_set[0].read_text(encoding="utf-8")) if row["split"] == "test"]
    data_set[0].write_text(json.dumps(rows), encoding="utf-8")

    result = ranges(folder, "--data", data_set[0], "--spec", data_set[1])

    assert result.exit_code == 3
    assert "no training case" in result.output
    assert (folder / MANIFEST_NAME).read_bytes() == before
