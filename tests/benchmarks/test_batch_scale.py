"""A quick sample of the script that plans, runs and resumes very many series."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "batch_scale.py"


@pytest.mark.slow
def test_time_and_memory_of_a_batch_grow_as_the_number_of_its_series() -> None:
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "--n", "800"], capture_output=True, text=True, check=False, timeout=240
    )

    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    quarter, whole = found["sizes"]["200"], found["sizes"]["800"]
    assert whole["run_mb_per_1000"] < 5.0, "a leak of a file's content or of headers would be more"
    assert found["peak_mb_per_1000"] < 10.0
    assert whole["resume"]["s"] < 20.0
    # Four times as many; the eightfold leaves room for what a machine does besides, and none for squares.
    assert whole["processor_s"] < 8 * quarter["processor_s"]
