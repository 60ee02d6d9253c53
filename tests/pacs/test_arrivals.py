"""When a series is complete: nothing came for a while, and the archive has no more of it."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.batch.exports import TINY
from tests.phantoms import CtPhantom, write_ct_series
from ucseg_runtime.pacs.arrivals import Arrivals, Judged, Patience
from ucseg_runtime.pacs.objects import read_header
from ucseg_runtime.pacs.spool import FAILURE, Spool, opened_spool, read_json

SERIES = replace(TINY, study="arriving")
PATIENCE = Patience(quiet_s=60.0, longest_s=600.0)


class Clock:
    """Says what it is told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Archive:
    """Says how many instances it has; None for it cannot tell."""

    def __init__(self, count: int | None = None) -> None:
        self.count = count
        self.asked: list[tuple[str, str]] = []

    def __call__(self, study_uid: str, series_uid: str) -> int | None:
        self.asked.append((study_uid, series_uid))
        return self.count


@pytest.fixture
def spool(tmp_path: Path) -> Iterator[Spool]:
    with opened_spool(tmp_path / "spool", b"secret") as opened:
        yield opened


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    return write_ct_series(tmp_path / "canary series", SERIES)


def receive(arrivals: Arrivals, spool: Spool, files: list[Path]) -> None:
    for path in files:
        partial = Path(shutil.copy(path, spool.partial))
        arrivals.take(partial, read_header(partial))


def key_of(spool: Spool, phantom: CtPhantom = SERIES) -> str:
    return spool.series_key(phantom.study_uid, phantom.series_uid)


def test_series_is_complete_when_nothing_came_for_the_quiet_time(spool: Spool, files: list[Path]) -> None:
    clock = Clock()
    arrivals = Arrivals(spool, PATIENCE, Archive(), clock)
    receive(arrivals, spool, files[:3])
    clock.now += 59.0
    receive(arrivals, spool, files[3:])
    clock.now += 59.0
    assert arrivals.judge() == [], "the last one came less than a minute ago"

    clock.now += 1.0

    assert arrivals.judge() == [Judged(key_of(spool), "complete", len(files))]
    assert arrivals.hand_over(arrivals.judge()[0])
    assert len(spool.files("ready", key_of(spool))) == len(files)
    assert len(arrivals) == 0
    assert arrivals.judge() == []


def test_instance_that_comes_while_a_series_is_handed_over_keeps_it_back(spool: Spool, files: list[Path]) -> None:
    clock = Clock()
    arrivals = Arrivals(spool, PATIENCE, Archive(), clock)
    receive(arrivals, spool, files[:-1])
    clock.now += 60.0
    (judged,) = arrivals.judge()
    receive(arrivals, spool, files[-1:])

    assert not arrivals.hand_over(judged)
    assert arrivals.judge() == [], "it is not quiet any more"
    assert not spool.keys("ready")


def test_same_instance_twice_is_one(spool: Spool, files: list[Path]) -> None:
    arrivals = Arrivals(spool, PATIENCE, Archive(), Clock())
    receive(arrivals, spool, [*files, *files])

    assert len(spool.files("arriving", key_of(spool))) == len(files)


def test_series_waits_for_what_the_archive_has_and_says_so(spool: Spool, files: list[Path]) -> None:
    clock, archive = Clock(), Archive(len(files))
    arrivals = Arrivals(spool, PATIENCE, archive, clock)
    receive(arrivals, spool, files[:-1])
    clock.now += 60.0

    assert arrivals.judge() == []
    assert arrivals.waits == {key_of(spool): len(files)}
    assert archive.asked == [(SERIES.study_uid, SERIES.series_uid)]

    receive(arrivals, spool, files[-1:])
    clock.now += 60.0
    assert arrivals.judge() == [Judged(key_of(spool), "complete", len(files), len(files))]


def test_archive_that_has_fewer_does_not_keep_a_series_back(spool: Spool, files: list[Path]) -> None:
    clock = Clock()
    arrivals = Arrivals(spool, PATIENCE, Archive(1), clock)
    receive(arrivals, spool, files)
    clock.now += 60.0

    assert [item.state for item in arrivals.judge()] == ["complete"]


def test_series_whose_rest_never_comes_is_put_aside_with_the_reason(spool: Spool, files: list[Path]) -> None:
    clock = Clock()
    arrivals = Arrivals(spool, PATIENCE, Archive(99), clock)
    receive(arrivals, spool, files)
    states = []
    for _ in range(11):
        clock.now += 60.0
        states += [item.state for item in arrivals.judge()]
    assert states == ["short"], "after the quiet time and ten minutes more"

    clock.now += 60.0
    (judged,) = arrivals.judge()
    assert arrivals.hand_over(judged)

    assert len(spool.files("failed", key_of(spool))) == len(files)
    reason = read_json(spool.series("failed", key_of(spool)) / FAILURE)
    assert isinstance(reason, dict)
    assert reason["code"] == "UCSEG-E115"
    assert "6 images came, and the archive has 99" in reason["message"]


def test_clock_of_the_machine_may_jump(spool: Spool, files: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    arrivals = Arrivals(spool, Patience(quiet_s=0.3), Archive())
    receive(arrivals, spool, files)
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() + 86_400.0)
    assert arrivals.judge() == [], "a day forward makes no series complete"
    monkeypatch.setattr(time, "time", lambda: real() - 86_400.0)
    time.sleep(0.35)
    assert len(arrivals.judge()) == 1, "a day back keeps none"


def test_what_came_before_a_restart_is_found_again_and_has_its_quiet_time(spool: Spool, files: list[Path]) -> None:
    clock = Clock()
    receive(Arrivals(spool, PATIENCE, Archive(), clock), spool, files)
    again, archive = Arrivals(spool, PATIENCE, Archive(), clock), Archive()
    assert again.judge() == []
    clock.now += 60.0

    assert again.judge() == [Judged(key_of(spool), "complete", len(files))]
    assert archive.asked == []


def test_nothing_in_the_spool_is_called_by_a_value_of_a_file(spool: Spool, files: list[Path]) -> None:
    arrivals = Arrivals(spool, PATIENCE, Archive(), Clock())
    receive(arrivals, spool, files)
    names = "\n".join(str(path.relative_to(spool.root)) for path in spool.root.rglob("*"))

    assert SERIES.series_uid not in names
    assert SERIES.study_uid not in names
    assert "canary" not in names.lower()
