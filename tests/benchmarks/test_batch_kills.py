"""A batch that is killed again and again ends with the tree of an undisturbed one."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from benchmarks.batch_kills import Findings, Limits, as_json, judge, killed_rounds


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_five_kills_over_eight_series_lose_and_change_nothing(tmp_path: Path) -> None:
    found, _ = killed_rounds(tmp_path, Limits(kills=5, minutes=8.0), series=8, seed=3, at_once=2)

    assert found.kills.total() >= 5
    assert (found.lost, found.changed, found.foreign, found.bad_exits) == (0, 0, 0, 0)


def test_the_judge_sees_what_is_lost_changed_and_foreign() -> None:
    found = Findings()

    judge(
        {"a/record.json": "1", "a/x": "9", "b/left": "0"},
        {"a/record.json": "1", "a/x": "2", "b/record.json": "3"},
        found,
    )

    assert (found.lost, found.changed, found.foreign) == (1, 1, 1)


def test_findings_are_printed_as_json() -> None:
    printed = json.loads(as_json(Findings(Counter({"parent": 2})), {"series": 8}))

    assert (printed["kills"], printed["lost"], printed["series"]) == ({"parent": 2}, 0, 8)
