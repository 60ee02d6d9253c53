"""How far the subnets agree: on the command line, in the JSON, in the record and in the report."""

from __future__ import annotations

import json
from pathlib import Path

import pydicom
import pytest
from pydicom.dataset import Dataset

from tests.command_line import run
from tests.model_phantom import ModelPhantom
from tests.proof_phantom import proven
from tests.results import conformance


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Both subnets decide alike; nothing of the phantom belongs to the last class."""
    phantom = ModelPhantom(centres=(-8.0, 0.5, 25.0), tile_shape=(16, 32, 32))
    return proven(phantom.write(tmp_path_factory.mktemp("model") / "phantom"))


def segment(study: Path, out: Path, model: Path, *more: str) -> list[float | None]:
    result = run("segment", study, "--out", out, "--model", model, "--json", *more)
    assert result.exit_code == 0, result.output
    record = json.loads((out / "record.json").read_text())
    found = [item["between_subnet_dice"] for item in json.loads(result.stdout)["measurements"]]
    assert [item["between_subnet_dice"] for item in record["measurements"]] == found
    return found


def reported(item: Dataset) -> list[float]:
    """Every between-subnet Dice at any depth of a report."""
    found = [value for child in item.get("ContentSequence", ()) for value in reported(child)]
    names = item.get("ConceptNameCodeSequence")
    if names and names[0].CodeValue == "subnet-dice":
        found.append(float(item.MeasuredValueSequence[0].NumericValue))
    return found


def test_agreement_is_measured_when_asked_for(small_study: Path, model: Path, tmp_path: Path) -> None:
    found = segment(small_study, tmp_path, model, "--subnet-agreement")

    assert found == [1.0, None], "both agree on the first class, and neither finds the second"
    assert reported(pydicom.dcmread(tmp_path / "report.dcm")) == [1.0]
    assert not conformance(tmp_path / "report.dcm").errors


def test_nothing_is_said_of_it_otherwise(small_study: Path, model: Path, tmp_path: Path) -> None:
    assert segment(small_study, tmp_path, model) == [None, None]
    assert reported(pydicom.dcmread(tmp_path / "report.dcm")) == []
