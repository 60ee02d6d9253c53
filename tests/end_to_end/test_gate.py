"""The accuracy gate on the command line: refused, passed or skipped, and said in every output."""

from __future__ import annotations

import json
from pathlib import Path

from pydicom import dcmread

from tests.command_line import run
from tests.model_phantom import ModelPhantom
from tests.proof_phantom import proof, write_proofs


def test_segment_with_an_engine_that_failed_the_gate_exits_with_4(study: Path, tmp_path: Path) -> None:
    folder = ModelPhantom(tile_shape=(16, 32, 32)).write(tmp_path / "model")
    write_proofs(folder, proof(dice=0.5))

    refused = run("segment", study, "--out", tmp_path / "out", "--model", folder, "--json")

    assert refused.exit_code == 4
    error = json.loads(refused.stdout)["error"]
    assert (error["code"], error["error"]) == ("UCSEG-E132", "AccuracyGateError")
    assert "Dice of class 1 0.5000, at least 0.9995 needed" in error["message"]
    assert not (tmp_path / "out").exists()


def test_no_gate_is_recorded_in_every_output(study: Path, tmp_path: Path) -> None:
    folder = ModelPhantom(tile_shape=(16, 32, 32)).write(tmp_path / "model")
    out = tmp_path / "out"

    result = run("segment", study, "--out", out, "--model", folder, "--no-gate", "--json")

    assert json.loads(result.stdout)["engine"]["reason"] == "the accuracy gate was skipped"
    assert json.loads((out / "record.json").read_text())["identity"]["engine"]["proven"] is False
    for name in ("segmentation.dcm", "uncertainty.dcm", "report.dcm"):
        assert "no accuracy gate" in str(dcmread(out / name).SoftwareVersions), name


def test_passed_gate_is_said_with_its_reason(study: Path, model: Path, tmp_path: Path) -> None:
    result = run("segment", study, "--out", tmp_path / "out", "--model", model, "--json")

    engine = json.loads(result.stdout)["engine"]
    assert (engine["name"], engine["proven"], engine["reason"]) == (
        "openvino",
        True,
        "passed the accuracy gate, 0.100 s a tile",
    )
    assert "gate" not in str(dcmread(tmp_path / "out" / "segmentation.dcm").SoftwareVersions)
