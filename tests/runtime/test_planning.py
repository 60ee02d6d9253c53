"""Predictions that a user plans with: exact tiles, and memory near what was measured."""

from __future__ import annotations

import numpy as np
import pytest

from ucseg_runtime.config import OutputOptions
from ucseg_runtime.geometry import VolumeGeometry
from ucseg_runtime.model_folder import default_model_folder, load_model
from ucseg_runtime.planning import RunPlan, plan_run


def plan(slices: int, outputs: OutputOptions | None = None, seconds_per_tile: float | None = 0.5) -> RunPlan:
    spec = load_model(default_model_folder()).manifest
    affine = np.array([[0.0, 0.0, 0.7, 0.0], [0.0, 0.7, 0.0, 0.0], [2.5, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 1.0]])
    return plan_run(VolumeGeometry(affine, (slices, 512, 512)), spec, outputs or OutputOptions(), seconds_per_tile)


@pytest.mark.parametrize(("slices", "measured_mb"), [(66, 521), (133, 780)])
def test_memory_is_within_a_tenth_of_what_was_measured(slices: int, measured_mb: float) -> None:
    assert plan(slices).peak_memory_mb == pytest.approx(measured_mb, rel=0.1)


@pytest.mark.parametrize(("slices", "measured_mb"), [(66, 605), (133, 948)])
def test_fractional_objects_need_more(slices: int, measured_mb: float) -> None:
    assert plan(slices, OutputOptions(seg_type="fractional")).peak_memory_mb == pytest.approx(measured_mb, rel=0.1)


def test_time_of_the_network_is_that_of_its_tiles() -> None:
    found = plan(133)
    assert found.model_shape == (111, 119, 119)
    assert found.tiles == 12
    assert found.network_seconds == 6.0


def test_unknown_engine_has_no_time() -> None:
    assert plan(133, seconds_per_tile=None).network_seconds is None
