"""Leases: one owner at a time, given back, taken over from the dead, and indifferent to clocks."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ucseg_runtime.batch import leases as leases_module
from ucseg_runtime.batch.leases import Leases, held_leases

KEY = "0f" * 16


def foreign(folder: Path, machine: str = "elsewhere", process: str = "1 1") -> Path:
    """A lease that another runner has left."""
    path = folder / f"{KEY}.lease"
    path.write_text(json.dumps({"machine": machine, "process": process, "token": "t"}))
    return path


def test_second_runner_does_not_get_what_the_first_has(tmp_path: Path) -> None:
    with held_leases(tmp_path, 60) as first, held_leases(tmp_path, 60) as second:
        assert first.claim(KEY)
        assert not second.claim(KEY)
        first.release(KEY)
        assert second.claim(KEY)


def test_leases_are_given_back_whatever_happens(tmp_path: Path) -> None:
    def interrupted() -> None:
        with held_leases(tmp_path, 60) as leases:
            leases.claim(KEY)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert list(tmp_path.iterdir()) == []


class StopError(BaseException):
    """What a signal raises."""


@pytest.mark.parametrize(
    ("owner", "name"),
    [(os, "link"), (Path, "unlink"), (leases_module, "_read")],
    ids=["taking", "taken", "giving back"],
)
def test_a_signal_at_a_bad_moment_leaves_no_lease(
    owner: object, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = getattr(owner, name)

    def stopped(*arguments: object, **options: object) -> None:
        monkeypatch.undo()
        plain(*arguments, **options)
        raise StopError

    def batch() -> None:
        with held_leases(tmp_path, 60) as leases:
            monkeypatch.setattr(owner, name, stopped)
            leases.claim(KEY)
            leases.release(KEY)

    with pytest.raises(StopError):
        batch()
    assert list(tmp_path.iterdir()) == []


def test_lease_of_a_killed_process_of_this_machine_is_taken_at_once(tmp_path: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path; from ucseg_runtime.batch.leases import Leases;"
        f"Leases(Path(sys.argv[1]), 60).claim('{KEY}'); print('claimed', flush=True); time.sleep(60)"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as holder, held_leases(tmp_path, 60) as leases:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "claimed\n"
        assert not leases.claim(KEY), "its owner lives"
        holder.kill()  # not waited for: a zombie is dead as well
        deadline = time.monotonic() + 10
        while not leases.claim(KEY):
            assert time.monotonic() < deadline
            time.sleep(0.02)


def test_process_id_that_is_used_again_is_not_taken_for_the_owner(tmp_path: Path) -> None:
    foreign(tmp_path, leases_module._machine(), f"{os.getpid()} 12345")

    with held_leases(tmp_path, 60) as leases:
        assert leases.claim(KEY)


def test_lease_from_elsewhere_counts_until_it_was_silent_for_its_length(tmp_path: Path) -> None:
    path = foreign(tmp_path)
    with held_leases(tmp_path, 0.3) as leases:
        assert not leases.claim(KEY)
        time.sleep(0.2)
        os.utime(path)  # a sign of life
        assert not leases.claim(KEY)
        time.sleep(0.2)
        assert not leases.claim(KEY)
        time.sleep(0.2)
        assert leases.claim(KEY)


@pytest.mark.parametrize("when", [0.0, 4e9], ids=["1970", "2096"])
def test_clock_of_the_other_machine_does_not_matter(tmp_path: Path, when: float) -> None:
    path = foreign(tmp_path)
    os.utime(path, (when, when))

    with held_leases(tmp_path, 0.2) as leases:
        assert not leases.claim(KEY)
        time.sleep(0.3)
        assert leases.claim(KEY)


def test_half_a_lease_counts_like_a_foreign_one(tmp_path: Path) -> None:
    (tmp_path / f"{KEY}.lease").write_text("{")

    with held_leases(tmp_path, 0.2) as leases:
        assert not leases.claim(KEY)
        time.sleep(0.3)
        assert leases.claim(KEY)


def test_living_owner_is_never_robbed(tmp_path: Path) -> None:
    """The owner touches its leases oftener than they run out, as seen from another machine."""
    with held_leases(tmp_path, 0.8) as owner:
        assert owner.claim(KEY)
        stranger = Leases(tmp_path, 0.8)
        path = tmp_path / f"{KEY}.lease"
        original = leases_module._machine
        leases_module._machine = lambda: "elsewhere"  # type: ignore[assignment]
        try:
            for _ in range(20):
                assert not stranger.claim(KEY)
                time.sleep(0.1)
        finally:
            leases_module._machine = original
            stranger.end()
        assert path.exists()


def test_lease_made_while_an_abandoned_one_is_taken_away_is_put_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    foreign(tmp_path, leases_module._machine(), "1 12345")
    with held_leases(tmp_path, 60) as slow, held_leases(tmp_path, 60) as fast:
        rename = os.rename

        def overtaken(source: Path, target: Path) -> None:
            monkeypatch.setattr(os, "rename", rename)
            assert fast.claim(KEY)
            rename(source, target)

        monkeypatch.setattr(os, "rename", overtaken)
        assert not slow.claim(KEY)
        assert not slow.claim(KEY)
