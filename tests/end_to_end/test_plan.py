"""``ucseg plan`` and the memory budget: what is predicted is what a run has, and a budget changes no result."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.command_line import run


def test_plan_predicts_the_tiles_that_a_run_has(study: Path, model: Path, tmp_path: Path) -> None:
    planned = json.loads(run("plan", study, "--model", model, "--json").stdout)
    seen = run("segment", study, "--out", tmp_path / "out", "--model", model).stderr

    assert f"tiles: {planned['tiles']} of {planned['tiles']}" in seen
    assert planned["network_seconds"] == pytest.approx(0.1 * planned["tiles"])
    assert planned["source_shape"] == [20, 40, 48]
    assert planned["engine"]["name"] == "openvino"
    assert "peak memory" in run("plan", study, "--model", model).stdout


def test_plan_without_gate_knows_no_time(study: Path, model: Path) -> None:
    planned = json.loads(run("plan", study, "--model", model, "--no-gate", "--json").stdout)
    assert planned["network_seconds"] is None
    assert "not known" in run("plan", study, "--model", model, "--no-gate").stdout


def test_memory_budget_changes_the_plan_and_not_a_byte_of_the_results(study: Path, model: Path, tmp_path: Path) -> None:
    def planned(*arguments: object) -> dict[str, float]:
        return json.loads(run("plan", study, "--model", model, "--threads", 2, "--json", *arguments).stdout)

    free, single = planned(), planned("--mode", "latency")
    assert (free["parallel_tiles"], single["parallel_tiles"]) == (2, 1)
    budget = int(single["peak_memory_mb"]) + 1
    assert budget < free["peak_memory_mb"]
    assert planned("--max-memory", budget)["parallel_tiles"] == 1
    outputs = {}
    for name, arguments in {
        "free": [],
        "bounded": ["--max-memory", budget],
        "latency": ["--mode", "latency"],
        "throughput": ["--mode", "throughput", "--threads", 4],
    }.items():
        out = tmp_path / name
        assert run("segment", study, "--out", out, "--model", model, "--threads", 2, *arguments).exit_code == 0
        outputs[name] = {path.name: path.read_bytes() for path in out.iterdir()}
    assert all(found == outputs["free"] for found in outputs.values())


def test_budget_that_nothing_fits_is_refused_before_pixels_are_read(
    study: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ucseg_runtime.series_steps.read_voxels", lambda series: pytest.fail("pixels were read"))
    result = run("segment", study, "--out", tmp_path / "out", "--model", model, "--max-memory", 100, "--json")
    assert result.exit_code == 3
    assert json.loads(result.stdout)["error"]["code"] == "UCSEG-E127"
    assert not (tmp_path / "out").exists()
    assert run("plan", study, "--model", model, "--max-memory", 100).exit_code == 3
