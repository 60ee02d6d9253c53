"""``ucseg segment --second-look``: more tiles, another result under other UIDs, and where it cannot be had."""

from __future__ import annotations

import json
from pathlib import Path

import pydicom
import pytest
from typer.testing import Result

from tests.command_line import run
from tests.model_phantom import ModelPhantom
from tests.proof_phantom import proven


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Small tiles whose answer depends on where in the tile a voxel lies, so that more tiles change the average."""
    phantom = ModelPhantom(sharpness=6.0, tile_shape=(8, 8, 8), overlap=0.25, ramp=0.03)
    return proven(phantom.write(tmp_path_factory.mktemp("model") / "phantom"))


def segment(study: Path, out: Path, model: Path, *more: str) -> Result:
    return run("segment", study, "--out", out, "--model", model, "--whole-volume", "--json", *more)


def test_second_look_is_another_result_and_recorded(small_study: Path, model: Path, tmp_path: Path) -> None:
    once, twice = (
        segment(small_study, tmp_path / out, model, *more) for out, more in (("1", ()), ("2", ("--second-look",)))
    )

    assert (once.exit_code, twice.exit_code) == (0, 0), twice.output
    records = [json.loads((tmp_path / out / "record.json").read_text()) for out in "12"]
    assert "second_look" not in records[0]["settings"]
    assert records[1]["settings"]["second_look"] is True
    maps = [pydicom.dcmread(tmp_path / out / "uncertainty.dcm") for out in "12"]
    assert maps[0].SOPInstanceUID != maps[1].SOPInstanceUID
    assert maps[0].PixelData != maps[1].PixelData


def test_second_look_of_the_same_study_is_the_same_again(small_study: Path, model: Path, tmp_path: Path) -> None:
    for out in "12":
        assert segment(small_study, tmp_path / out, model, "--second-look").exit_code == 0
    one, other = ((tmp_path / out / "uncertainty.dcm").read_bytes() for out in "12")
    assert one == other


def test_second_look_with_a_memory_budget_is_a_usage_error(small_study: Path, model: Path, tmp_path: Path) -> None:
    result = segment(small_study, tmp_path / "out", model, "--second-look", "--max-memory", "9000")
    assert result.exit_code == 2
    assert not (tmp_path / "out").exists()


def test_server_that_takes_whole_volumes_takes_no_second_look(small_study: Path, model: Path, tmp_path: Path) -> None:
    server = ("--engine", "triton", "--url", "grpc://127.0.0.1:1", "--triton-mode", "volume")
    result = segment(small_study, tmp_path / "out", model, "--second-look", *server)
    assert result.exit_code == 5
    assert "takes no second look" in json.loads(result.stdout)["error"]["message"]
    assert not (tmp_path / "out").exists()
