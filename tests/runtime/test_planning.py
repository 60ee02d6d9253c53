"""Predictions that a user plans with: exact tiles, memory near what a real run takes, and plans that fit a budget."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from ucseg_runtime.backends.choice import choose
from ucseg_runtime.backends.load import EngineLoad, engine_load, live_activation_bytes
from ucseg_runtime.config import InferenceOptions, OutputOptions, SegEncoding
from ucseg_runtime.errors import MemoryBudgetError
from ucseg_runtime.geometry import VolumeGeometry
from ucseg_runtime.model_folder import default_model_folder, load_model
from ucseg_runtime.planning import RunPlan, plan_run

BENCHMARK = Path(__file__).resolve().parents[2] / "benchmarks" / "memory.py"
LOAD = EngineLoad(parallel_tiles=2, opened_mb=180.0, tile_mb=90.0, seconds_per_tile=0.5)
F32 = InferenceOptions(engine="openvino", precision="f32", gate=False)


def plan(slices: int, outputs: OutputOptions | None = None, load: EngineLoad = LOAD, max_memory_mb: int = 0) -> RunPlan:
    spec = load_model(default_model_folder()).manifest
    affine = np.array([[0.0, 0.0, 0.7, 0.0], [0.0, 0.7, 0.0, 0.0], [2.5, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 1.0]])
    return plan_run(VolumeGeometry(affine, (slices, 512, 512)), spec, outputs or OutputOptions(), load, max_memory_mb)


@pytest.mark.slow
def test_memory_is_within_15_percent_of_what_a_real_run_takes() -> None:
    command = [sys.executable, str(BENCHMARK), "--slices", "60", "--mode", "latency"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=280)
    measured_mb = json.loads(done.stdout)["peak_mb"]["whole run"]
    model, options = load_model(default_model_folder()), replace(F32, mode="latency")
    predicted = plan(60, load=engine_load(model, choose(model, options), options))
    assert predicted.parallel_tiles == 1
    assert predicted.peak_memory_mb == pytest.approx(measured_mb, rel=0.15)


@pytest.mark.parametrize(("slices", "measured_mb"), [(100, 739), (300, 1220)])
def test_memory_is_within_15_percent_of_what_was_measured_with_two_tiles(slices: int, measured_mb: float) -> None:
    model = load_model(default_model_folder())
    load = replace(engine_load(model, choose(model, F32), F32), parallel_tiles=2)
    assert plan(slices, load=load).peak_memory_mb == pytest.approx(measured_mb, rel=0.15)


def test_prediction_for_512_x_512_x_300_is_at_most_1200_mb_above_the_volume() -> None:
    assert plan(300).peak_memory_mb - 300 * 512 * 512 * 2 / 1e6 < 1200


def test_fractional_objects_need_a_byte_more_per_voxel_and_class() -> None:
    more = plan(133, OutputOptions(SegEncoding("fractional"))).peak_memory_mb - plan(133).peak_memory_mb
    assert more == pytest.approx(133 * 512 * 512 * 5 / 1e6)


def test_time_of_the_network_is_that_of_its_tiles() -> None:
    found = plan(133)
    assert found.model_shape == (111, 119, 119)
    assert found.tiles == 12
    assert found.network_seconds == 6.0


def test_unknown_engine_has_no_time() -> None:
    assert plan(133, load=replace(LOAD, seconds_per_tile=None)).network_seconds is None


def test_budget_takes_the_most_tiles_at_the_same_time_that_fit() -> None:
    eight = replace(LOAD, parallel_tiles=8)
    needs = [plan(133, load=replace(LOAD, parallel_tiles=count)).peak_memory_mb for count in range(1, 9)]
    assert needs == sorted(needs)
    for count, needed_mb in enumerate(needs, start=1):
        found = plan(133, load=eight, max_memory_mb=int(needed_mb) + 1)
        assert found.parallel_tiles == count
        assert found.peak_memory_mb == needed_mb
    assert plan(133, load=eight).parallel_tiles == 8


def test_budget_that_nothing_fits_is_refused_with_what_is_needed() -> None:
    needed_mb = plan(133, load=replace(LOAD, parallel_tiles=1)).peak_memory_mb
    with pytest.raises(
        MemoryBudgetError, match=rf"133 x 512 x 512 .* {int(needed_mb) + 1} MB.* allows 400 MB"
    ) as caught:
        plan(133, max_memory_mb=400)
    assert (caught.value.exit_code, caught.value.code) == (3, "UCSEG-E127")


@pytest.mark.parametrize(
    ("options", "measured_mb"),
    [
        pytest.param(replace(F32, mode="latency"), 242, id="openvino, one tile"),
        pytest.param(F32, 373, id="openvino, two tiles"),
        pytest.param(replace(F32, engine="onnxruntime"), 328, id="onnxruntime"),
    ],
)
def test_engine_takes_within_15_percent_of_what_was_measured(options: InferenceOptions, measured_mb: float) -> None:
    model = load_model(default_model_folder())
    load = engine_load(model, choose(model, options), replace(options, threads=2))
    assert load.opened_mb + load.parallel_tiles * load.tile_mb == pytest.approx(measured_mb, rel=0.15)


def test_activations_are_those_that_exist_at_the_same_time() -> None:
    model = load_model(default_model_folder())
    tile_bytes = 4 * 64 * 80 * 80
    live = live_activation_bytes(model.graph("merged"))
    assert live % 4 == 0
    assert 30 * tile_bytes < live < 200 * tile_bytes  # tens of full-size channels, not the hundreds of the whole graph
