"""The scaling page shows what the simulation says, and the simulation agrees with the formulas where it must."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import scaling_simulation
from benchmarks.scaling_simulation import (
    ENGINES,
    GOALS,
    TABLES,
    Engine,
    Queue,
    Site,
    cost_of,
    header_share,
    rate_by_formula,
    rate_by_simulation,
    site_for,
    slowest_share,
)

PAGE = Path(__file__).resolve().parents[2] / "docs" / "scaling.md"


@pytest.mark.parametrize("name", TABLES)
def test_every_table_of_the_page_is_the_one_of_the_simulation(name: str) -> None:
    assert "\n".join([f"<!-- {name} -->", *TABLES[name]()]) in PAGE.read_text(encoding="utf-8")


def test_runner_alone_takes_its_own_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scaling_simulation, "SPREAD", 0.0)
    cost = cost_of("processor, demo model")
    seconds = cost.runner_s + cost.moved_mb / 1000.0

    site = Site("processor, demo model", 1, 0, 1000.0)

    assert rate_by_formula(site).per_hour == pytest.approx(3600 / seconds)
    assert rate_by_simulation(site) == pytest.approx(3600 / seconds, rel=1e-6)


@pytest.mark.parametrize(
    ("site", "limit", "per_hour"),
    [
        (Site("processor, demo model", 200, 0, 100.0), "storage", 3600 * 100.0),
        (Site("GPU, upstream's sizes", 40, 1, 1e6), "GPUs", 3600.0),
    ],
    ids=["storage", "GPUs"],
)
def test_what_is_short_sets_the_rate(site: Site, limit: str, per_hour: float) -> None:
    cost = cost_of(site.engine)
    expected = per_hour / (cost.moved_mb if limit == "storage" else cost.gpu_s)

    assert rate_by_formula(site).limit == limit
    assert rate_by_formula(site).per_hour == pytest.approx(expected)
    assert rate_by_simulation(site) == pytest.approx(expected, rel=0.02)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(("series", "days"), GOALS)
def test_sites_of_the_plan_reach_their_goals_although_requests_meet(engine: Engine, series: int, days: int) -> None:
    site = site_for(engine, series, days)

    simulated = rate_by_simulation(site)

    assert 0.9 * rate_by_formula(site).per_hour <= simulated <= 1.02 * rate_by_formula(site).per_hour
    assert series / simulated / 24 <= days


def test_requests_wait_for_their_turn() -> None:
    queue = Queue(2)

    assert [queue.end_of(0.0, 2.0), queue.end_of(0.0, 3.0), queue.end_of(1.0, 2.0), queue.end_of(9.0, 1.0)] == [
        2,
        3,
        4,
        10,
    ]


def test_shards_cost_headers_and_are_uneven() -> None:
    assert header_share(1) < header_share(8) < header_share(64) < 1
    assert slowest_share(10**4, 1) == 1
    assert 1 < slowest_share(10**4, 64) < 1.5
