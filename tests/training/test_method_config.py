"""Choices that exclude each other or do not fit the networks are refused; open ones follow the trio and the mode."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from ucseg_training.errors import TrainingError
from ucseg_training.method import Method, MethodConfig
from ucseg_training.nets import TrioConfig

VOLUMES, IMAGES, ACDC = TrioConfig.upstream_3d(), TrioConfig.upstream_2d_binary(), TrioConfig.upstream_acdc()


@pytest.mark.parametrize(
    "values",
    [
        {"mode": "upstream"},
        {"pseudo_labels": "UPG"},
        {"dice": "volume"},
        {"axis_order": "yxz"},
        {"total_steps": 0},
        {"queue_length": -144},
        {"mixing_start": 0.0},
        {"ramp_end": 1.5},
        {"temperature": 0.0},
        {"temperature": float("nan")},
        {"unsupervised_factor": -1.0},
        {"teacher_noise": float("inf")},
        {"mode": "compat", "mixing_start": 0.3},
        {"mode": "compat", "ramp_end": 0.3},
        {"pseudo_labels": "none", "use_mixing": False},
        {"pseudo_labels": "teacher", "use_ccp": False},
    ],
    ids=str,
)
def test_choices_out_of_range_or_excluding_each_other_are_refused(values: dict[str, Any]) -> None:
    with pytest.raises(TrainingError, match=r"MethodConfig\.\w+ is .*; expected"):
        MethodConfig(**values)


def test_method_is_the_fixed_one_with_every_part_by_default() -> None:
    config = MethodConfig()
    assert (config.mode, config.pseudo_labels, config.use_ccp, config.use_mixing) == ("fixed", "upg", True, True)
    assert (config.total_steps, config.unsupervised_factor, config.temperature) == (50_000, 150.0, 0.3)


@pytest.mark.parametrize(
    ("trio", "queue_length", "largest_component"),
    [
        pytest.param(VOLUMES, 144, True, id="3D"),
        pytest.param(IMAGES, 1440, False, id="2D binary"),
        pytest.param(ACDC, 1440, True, id="ACDC"),
    ],
)
@pytest.mark.parametrize(("mode", "dice"), [("compat", "slice"), ("fixed", "tile")])
def test_open_choices_follow_trio_and_mode(
    trio: TrioConfig, queue_length: int, largest_component: bool, mode: Any, dice: str
) -> None:
    method = Method(MethodConfig(mode=mode), trio)
    assert method.queue_length == queue_length
    assert method.largest_component is largest_component
    assert method.dice_rule == dice
    chosen = Method(MethodConfig(mode="fixed", queue_length=24, largest_component=True, dice="batch"), trio)
    assert (chosen.queue_length, chosen.largest_component, chosen.dice_rule) == (24, True, "batch")


def test_more_than_two_sigmoid_channels_are_refused() -> None:
    with pytest.raises(TrainingError, match="3 sigmoid channels"):
        Method(MethodConfig(), replace(VOLUMES, num_classes=3))


def test_contrast_of_subnets_of_other_widths_is_refused() -> None:
    other = replace(VOLUMES, vnet_width=8)
    with pytest.raises(TrainingError, match="16 and 8 wide"):
        Method(MethodConfig(), other)
    Method(MethodConfig(use_ccp=False), other)


def test_largest_component_of_2d_sigmoid_is_refused_in_compat_alone() -> None:
    with pytest.raises(TrainingError, match="2D sigmoid"):
        Method(MethodConfig(mode="compat", largest_component=True), IMAGES)
    assert Method(MethodConfig(largest_component=True), IMAGES).largest_component
