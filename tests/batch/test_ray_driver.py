"""The driver's side of a batch on a cluster, with a cluster that does as the test says."""

from __future__ import annotations

import importlib.util
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NoReturn

import pytest

from tests.batch.fake_ray import ENGINE, Death, FakeRay, RayTaskError
from ucseg_runtime.batch.actor import AHEAD, ActorSetup, Answer, Broken
from ucseg_runtime.batch.ray_cluster import RayOptions, connected, marked, own_interruptions
from ucseg_runtime.batch.ray_run import RayRunner
from ucseg_runtime.batch.run import STATE_FOLDER
from ucseg_runtime.config import InferenceOptions, OutputOptions
from ucseg_runtime.errors import (
    BackendError,
    BackendUnavailableError,
    EngineMismatchError,
    OutputError,
    SpacingError,
    UcsegError,
)
from ucseg_runtime.neighbours import SeriesJob
from ucseg_runtime.segmentation import EngineInfo

SETUP = ActorSetup(Path("model"), "0" * 64, "", InferenceOptions(), OutputOptions(), Path("in"), Path("mark"), "digest")
TWO = RayOptions(actors=2)


def job(name: str) -> SeriesJob:
    return SeriesJob(Path("in") / name, Path(name))


def done(_: int, __: SeriesJob) -> Answer:
    return None


def run(world: FakeRay, jobs: Iterable[SeriesJob | None], options: RayOptions = TWO) -> dict[int, UcsegError | None]:
    """Engine, then all jobs; what was told of each, which must be once."""
    told: list[tuple[int, UcsegError | None]] = []
    runner = RayRunner(world, options, SETUP)
    runner.engine()
    runner.segment(jobs, lambda ordinal, error: told.append((ordinal, error)))
    runner.end()
    assert len(told) == len(dict(told)), "of every series once"
    return dict(told)


def test_every_series_is_done_once_and_the_work_is_even() -> None:
    world = FakeRay(done)

    told = run(world, [job(str(number)) for number in range(40)])

    assert told == dict.fromkeys(range(1, 41))
    assert Counter(name for _, name, _ in world.given) == Counter(str(number) for number in range(40))
    assert min(Counter(number for number, _, _ in world.given).values()) >= AHEAD
    assert max(had for _, _, had in world.given) == AHEAD - 1
    assert sorted(world.killed) == [0, 1], "actors end with the batch"


def test_failed_series_is_told_and_stops_nothing() -> None:
    def gap_in_3(_: int, given: SeriesJob) -> Answer:
        return SpacingError("a gap.") if given.folder.name == "3" else None

    told = run(FakeRay(gap_in_3), [job(str(number)) for number in range(1, 9)])

    assert [ordinal for ordinal, error in told.items() if error is not None] == [3]
    assert isinstance(told[3], SpacingError)


def test_series_of_a_dead_actor_go_to_another_one() -> None:
    def first_dies(number: int, _: SeriesJob) -> Answer:
        if number == 0:
            raise Death
        return None

    world = FakeRay(first_dies)

    told = run(world, [job(str(number)) for number in range(20)])

    assert told == dict.fromkeys(range(1, 21))
    assert {number for number, _, _ in world.given} == {0, 1, 2}, "it was replaced"
    assert 0 in world.killed


def test_series_that_kills_every_actor_fails_alone() -> None:
    def poisoned(_: int, given: SeriesJob) -> Answer:
        if given.folder.name == "poison":
            raise Death
        return None

    world = FakeRay(poisoned)

    told = run(world, [job("poison" if number == 5 else str(number)) for number in range(30)])

    assert [ordinal for ordinal, error in told.items() if error is not None] == [6]
    assert isinstance(told[6], BackendError)
    tries = [(number, had) for number, name, had in world.given if name == "poison"]
    assert len(tries) == 3
    assert [had for _, had in tries[1:]] == [0, 0], "nothing else is in an actor over which one may die"
    for number, _ in tries[1:]:
        after = [name for of, name, _ in world.given if of == number]
        assert after == ["poison"] or after.index("poison") == len(after) - 1


def test_actors_that_all_die_end_the_batch() -> None:
    def dying(_: int, __: SeriesJob) -> NoReturn:
        raise Death

    with pytest.raises(BackendError, match="died one after the other"):
        run(FakeRay(dying), (job(str(number)) for number in range(10_000)))


def test_actors_that_cannot_even_begin_end_the_batch() -> None:
    def dying(_: int) -> NoReturn:
        raise Death

    with pytest.raises(BackendError, match="installed on every node"):
        run(FakeRay(done, dying), [job("1")])


def test_actor_that_cannot_work_ends_the_batch_with_its_reason() -> None:
    reason = OutputError("a node does not see the folder of results.")

    with pytest.raises(OutputError, match="does not see"):
        run(FakeRay(done, lambda number: Broken(reason)), [job("1")])
    with pytest.raises(OutputError, match="does not see"):
        run(FakeRay(lambda number, given: Broken(reason)), [job("1")])


def test_nodes_with_different_engines_are_refused() -> None:
    def differing(number: int) -> EngineInfo:
        return ENGINE if number == 0 else EngineInfo("fake", "0", "bf16", "none")

    with pytest.raises(EngineMismatchError, match="bf16"):
        run(FakeRay(done, differing), [job(str(number)) for number in range(20)])


def test_defects_of_the_actors_code_are_not_taken_for_deaths() -> None:
    def defect(_: int, __: SeriesJob) -> NoReturn:
        raise RayTaskError

    with pytest.raises(RayTaskError):
        run(FakeRay(defect), [job("1")])


def test_no_more_is_asked_for_before_something_is_answered_where_none_was_at_hand() -> None:
    in_work: set[int] = set()

    def jobs() -> Iterator[SeriesJob | None]:
        for ordinal in range(1, 4):
            in_work.add(ordinal)
            yield job(str(ordinal))
        while in_work:
            yield None
        in_work.add(4)
        yield job("4")

    runner = RayRunner(FakeRay(done), TWO, SETUP)
    runner.engine()
    runner.segment(jobs(), lambda ordinal, error: in_work.remove(ordinal))

    assert in_work == set()


def test_actors_reserve_what_was_asked_for_and_fill_the_cluster() -> None:
    world = FakeRay(done, resources={"CPU": 9.0, "GPU": 2.0})

    run(world, [job(str(number)) for number in range(40)], RayOptions(cpus=2.0, gpus=0.5))

    assert (world.reserved["num_cpus"], world.reserved["num_gpus"]) == (2.0, 0.5)
    assert {number for number, _, _ in world.given} == {0, 1, 2, 3}


def test_cluster_that_cannot_hold_one_actor_is_refused() -> None:
    with pytest.raises(BackendUnavailableError, match="has 4 CPU and 0 GPU; an actor needs 2 CPU and 1 GPU"):
        RayRunner(FakeRay(done), RayOptions(gpus=1.0), SETUP)


def test_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "ray" else find(name))

    with pytest.raises(BackendUnavailableError, match=r"'ray' extra: pip install 'ucseg\[ray\]'"), connected("auto"):
        pass


@pytest.mark.parametrize("address", ["127.0.0.1:9", "[::1]:9", "auto", "127.0.0.1:99999"])
def test_cluster_where_nobody_listens_is_said_at_once(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:9")

    with pytest.raises(BackendUnavailableError, match="no Ray cluster .* answers at"), connected(address):
        pass


def test_mark_is_in_the_state_folder_and_gone_afterwards(tmp_path: Path) -> None:
    with marked(tmp_path / "out") as mark:
        assert mark.parent == tmp_path / "out" / STATE_FOLDER
        assert mark.is_file()
    assert list(mark.parent.iterdir()) == []


def test_signal_within_compiled_code_of_ray_ends_a_batch_as_any_other() -> None:
    """Code that gives a result although the handler of a signal raised: Python says so by a SystemError."""
    with pytest.raises(KeyboardInterrupt), own_interruptions():
        raise SystemError("returned a result with an exception set") from KeyboardInterrupt()


def test_system_error_of_another_kind_stays_one() -> None:
    with pytest.raises(SystemError, match="bad argument"), own_interruptions():
        raise SystemError("bad argument to internal function")
