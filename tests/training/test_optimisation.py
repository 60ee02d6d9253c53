"""Learning rates and optimisers are the ones that were asked for."""

from __future__ import annotations

import pytest
import torch

from ucseg_training.optimisation import Optimisation, make_optimizer

COSINE = Optimisation(kind="adamw", learning_rate=2.0, schedule="cosine", warm_up=4)


@pytest.mark.parametrize(
    ("step", "expected"),
    [
        pytest.param(0, 1 / 4, id="warm-up starts at its first part"),
        pytest.param(2, 3 / 4, id="warm-up is linear"),
        pytest.param(3, 1.0, id="warm-up ends at the largest"),
        pytest.param(4, 1.0, id="cosine starts at the largest"),
        pytest.param(54, 0.01 + 0.99 / 2, id="middle of the cosine"),
        pytest.param(104, 0.01, id="cosine ends at one percent"),
    ],
)
def test_learning_rate_warms_up_and_falls_along_half_a_cosine(step: int, expected: float) -> None:
    assert COSINE.rate_at(step, 104) == pytest.approx(2.0 * expected)


@pytest.mark.parametrize(("step", "expected"), [(0, 0.01), (25_000, 0.005), (50_000, 0.0), (50_010, 0.0)])
def test_upstream_rate_falls_on_a_line_and_stays_at_zero(step: int, expected: float) -> None:
    assert Optimisation().rate_at(step, 50_000) == pytest.approx(expected)


def test_average_has_a_short_memory_at_first() -> None:
    optimisation = Optimisation(average_decay=0.99)
    assert [optimisation.average_decay_at(step) for step in (0, 8, 10_000)] == [0.1, 0.5, 0.99]


def test_default_optimiser_is_upstreams() -> None:
    weight = torch.nn.Parameter(torch.ones(1))
    (group,) = make_optimizer([weight], Optimisation()).param_groups
    assert (group["lr"], group["momentum"], group["weight_decay"]) == (0.01, 0.9, 1e-5)
    assert isinstance(make_optimizer([weight], COSINE), torch.optim.AdamW)


@pytest.mark.parametrize(
    "values",
    [{"learning_rate": 0.0}, {"accumulate": 0}, {"warm_up": -1}, {"average_decay": 1.0}, {"average_decay": -0.1}],
    ids=str,
)
def test_impossible_choices_are_refused(values: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="must|expected"):
        Optimisation(**values)
