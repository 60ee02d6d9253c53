"""A run that was killed in the middle of a step goes on with the losses that it would have had."""

from __future__ import annotations

import csv
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.training.killed_run import STEPS, run
from ucseg_training.checkpoint import load_training_state
from ucseg_training.trainer import STATE_NAME

REPOSITORY = Path(__file__).parents[2]


def _terms(folder: Path) -> dict[int, dict[str, str]]:
    """Terms by step as they were written; of a step that was done twice, those of the second time."""
    found: dict[int, dict[str, str]] = {}
    with (folder / "terms.csv").open(encoding="utf-8", newline="") as stream:
        for row in csv.reader(stream):
            if len(row) == 3:  # the last line of a killed run may be cut
                found.setdefault(int(row[0]), {})[row[1]] = row[2]
    return found


@pytest.mark.slow
def test_the_next_twenty_losses_after_a_kill_are_those_of_an_undisturbed_run(tmp_path: Path) -> None:
    undisturbed, killed = tmp_path / "undisturbed", tmp_path / "killed"
    command = [sys.executable, "-m", "tests.training.killed_run", str(killed)]
    process = subprocess.Popen(command, cwd=REPOSITORY)
    deadline = time.monotonic() + 120
    while not (killed / STATE_NAME).exists():
        assert process.poll() is None, "the run ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait(timeout=30)
    done = load_training_state(killed / STATE_NAME).step
    assert 3 <= done <= STEPS - 20, "twenty steps must be left"
    (killed / "terms.csv").unlink()

    run(killed)
    run(undisturbed)

    after, expected = _terms(killed), _terms(undisturbed)
    assert min(after) == done + 1
    for step in range(done + 1, done + 21):
        assert after[step] == expected[step], step
    assert any(name.startswith("mixed_") for name in after[done + 20])
