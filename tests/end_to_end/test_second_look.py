"""``ucseg segment --second-look``: more tiles, another result under other UIDs, and where it cannot be had."""

from __future__ import annotations

import json
from pathlib import Path

import pydicom
import pytest
from typer.testing import CliRunner, Result

from tests.model_phantom import ModelPhantom
from tests.phantoms import CtPhantom, write_ct_series
from tests.proof_phantom import proven
from ucseg_runtime.cli.app import app


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("study")
    write_ct_series(folder, CtPhantom(shape=(12, 40, 48)))
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Small tiles whose answer depends on where in the tile a voxel lies, so that more tiles change the average."""
    phantom = ModelPhantom(sharpness=6.0, tile_shape=(8, 8, 8), overlap=0.25, ramp=0.03)
    return proven(phantom.write(tmp_path_factory.mktemp("model") / "phantom"))


def segment(study: Path, out: Path, model: Path, *more: str) -> Result:
    arguments = ["segment", str(study), "--out", str(out), "--model", str(model), "--whole-volume", "--json", *more]
    return CliRunner().invoke(app, arguments)


def test_second_look_is_another_result_and_recorded(study: Path, model: Path, tmp_path: Path) -> None:
    once, twice = (segment(study, tmp_path / out, model, *more) for out, more in (("1", ()), ("2", ("--second-look",))))

    assert (once.exit_code, twice.exit_code) == (0, 0), twice.output
    records = [json.loads((tmp_path / out / "record.json").read_text()) for out in "12"]
    assert "second_look" not in records[0]["settings"]
    assert records[1]["settings"]["second_look"] is True
    maps = [pydicom.dcmread(tmp_path / out / "uncertainty.dcm") for out in "12"]
    assert maps[0].SOPInstanceUID != maps[1].SOPInstanceUID
    assert maps[0].PixelData != maps[1].PixelData


def test_second_look_of_the_same_study_is_the_same_again(study: Path, model: Path, tmp_path: Path) -> None:
    for out in "12":
        assert segment(study, tmp_path / out, model, "--second-look").exit_code == 0
    one, other = ((tmp_path / out / "uncertainty.dcm").read_bytes() for out in "12")
    assert one == other


def test_second_look_with_a_memory_budget_is_a_usage_error(study: Path, model: Path, tmp_path: Path) -> None:
    result = segment(study, tmp_path / "out", model, "--second-look", "--max-memory", "9000")
    assert result.exit_code == 2
    assert not (tmp_path / "out").exists()


def test_server_that_takes_whole_volumes_takes_no_second_look(study: Path, model: Path, tmp_path: Path) -> None:
    server = ("--engine", "triton", "--url", "grpc://127.0.0.1:1", "--triton-mode", "volume")
    result = segment(study, tmp_path / "out", model, "--second-look", *server)
    assert result.exit_code == 5
    assert "takes no second look" in json.loads(result.stdout)["error"]["message"]
    assert not (tmp_path / "out").exists()
