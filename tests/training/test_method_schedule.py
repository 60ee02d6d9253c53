"""Schedules: published values, and where the two modes part."""

from __future__ import annotations

import math
from typing import Any

import pytest

from ucseg_training.method import Method, MethodConfig
from ucseg_training.method.schedule import (
    TermWeights,
    is_mixing,
    ramp,
    term_weights,
    uncertainty_weight,
    unsupervised_weight,
    write_threshold,
)
from ucseg_training.nets import TrioConfig

TRIOS = {2: TrioConfig.upstream_acdc(), 3: TrioConfig.upstream_3d()}
MODES = pytest.mark.parametrize("mode", ["compat", "fixed"])


def method(dim: int = 3, **values: Any) -> Method:
    return Method(MethodConfig(**values), TRIOS[dim])


@MODES
@pytest.mark.parametrize(
    ("step", "weight"), [(0, 0.10), (6_000, 0.61), (12_000, 2.48), (25_000, 13.0), (30_000, 15.0), (50_000, 15.0)]
)
def test_unsupervised_weight_has_the_published_values(mode: Any, step: int, weight: float) -> None:
    assert unsupervised_weight(step, method(mode=mode)) == pytest.approx(weight, abs=0.02)
    assert unsupervised_weight(step, method(mode=mode, unsupervised_factor=1.5)) == pytest.approx(
        weight / 100, abs=2e-4
    )


@MODES
def test_ramp_of_a_full_run_changes_every_150_steps(mode: Any) -> None:
    def expected(step: int) -> float:
        return 0.1 * math.exp(-5.0 * (1.0 - min(step // 150, 200) / 200) ** 2)

    steps = [0, 149, 150, 151, 299, 300, 5_999, 29_849, 29_850, 29_999, 30_000, 49_999]
    assert [ramp(step, method(mode=mode)) for step in steps] == pytest.approx([expected(s) for s in steps], rel=1e-12)


def test_short_run_keeps_upstream_steps_in_compat_and_fractions_in_fixed() -> None:
    compat, fixed = (method(mode=mode, total_steps=1_000) for mode in ("compat", "fixed"))
    assert ramp(600, fixed) == pytest.approx(0.1)
    assert ramp(300, fixed) == pytest.approx(0.1 * math.exp(-5.0 * 0.25))
    assert ramp(600, compat) == pytest.approx(0.1 * math.exp(-5.0 * (1 - 4 / 200) ** 2))
    assert ramp(300, method(total_steps=1_000, ramp_end=0.3)) == pytest.approx(0.1)


@MODES
@pytest.mark.parametrize(("dim", "start"), [(2, 12_000), (3, 6_000)])
def test_mixing_starts_at_the_published_step(mode: Any, dim: int, start: int) -> None:
    assert [is_mixing(step, method(dim, mode=mode)) for step in (0, start - 1, start, 49_999)] == [0, 0, 1, 1]


@pytest.mark.parametrize(("dim", "start"), [(2, 240), (3, 120)])
def test_mixing_of_a_short_run_starts_at_its_fraction_in_fixed_alone(dim: int, start: int) -> None:
    fixed, compat = (method(dim, mode=mode, total_steps=1_000) for mode in ("fixed", "compat"))
    assert [is_mixing(step, fixed) for step in (start - 1, start)] == [False, True]
    assert not is_mixing(999, compat)
    chosen = method(dim, total_steps=1_000, mixing_start=0.5)
    assert [is_mixing(step, chosen) for step in (499, 500)] == [False, True]


def test_nothing_is_mixed_where_mixing_is_off() -> None:
    assert not is_mixing(50_000, method(use_mixing=False))


@MODES
@pytest.mark.parametrize(("step", "weight"), [(0, 0.01), (25_000, 0.1), (50_000, 1.0)])
def test_uncertainty_weight_has_the_published_values(mode: Any, step: int, weight: float) -> None:
    assert uncertainty_weight(step, method(mode=mode)) == pytest.approx(weight, rel=1e-12)


@MODES
@pytest.mark.parametrize(("dim", "first", "middle", "last"), [(3, 0.2, 0.48, 0.76), (2, 0.5, 0.73, 0.96)])
def test_write_threshold_has_the_published_values(
    mode: Any, dim: int, first: float, middle: float, last: float
) -> None:
    found = [write_threshold(step, method(dim, mode=mode)) for step in (0, 25_000, 50_000)]
    assert found == pytest.approx([first, middle, last], rel=1e-12)


@MODES
def test_schedules_stand_still_beyond_the_run(mode: Any) -> None:
    """Quirk 14: upstream's run on, since a run there ends with the epoch; here one ends with its last step."""
    assert uncertainty_weight(60_000, method(mode=mode)) == 1.0
    assert write_threshold(60_000, method(mode=mode)) == write_threshold(50_000, method(mode=mode))


@MODES
def test_weights_are_those_of_the_published_sums(mode: Any) -> None:
    weight = 0.1 * 150 * math.exp(-5.0 * 0.64)  # at step 6 000
    # L = 0.5 (L_1 + L_2) + … with L_i = … + 0.5 D_i + λ L_uns,i + 0.2 L_proto,i and 0.1 L_patch.
    plain = TermWeights(difference=0.25, unsupervised=0.5 * weight, prototype=0.1, patch=0.1)
    # With mixing 0.25 D_i + 0.5 λ L_uns,i + 0.1 L_proto,i and 0.05 L_patch.
    shared = TermWeights(difference=0.125, unsupervised=0.25 * weight, prototype=0.05, patch=0.05)
    for mixing, expected in ((False, plain), (True, shared)):
        found = term_weights(6_000, method(mode=mode), mixing)
        for name in ("difference", "unsupervised", "prototype", "patch"):
            assert getattr(found, name) == pytest.approx(getattr(expected, name), rel=1e-12), name
