"""A quick sample of the damaged inputs that the scripts make by the hundred thousand."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


def sample(script: str, *arguments: object) -> dict[str, Any]:
    command = [sys.executable, str(BENCHMARKS / script), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=240)
    assert done.stdout, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.mark.slow
@pytest.mark.parametrize(
    ("script", "codes"),
    [
        ("fuzz_headers.py", {"UCSEG-E103", "UCSEG-E108", "UCSEG-E121", "volume"}),
        ("fuzz_pixels.py", {"UCSEG-E104", "UCSEG-E107", "volume"}),
    ],
)
def test_damaged_inputs_give_errors_of_ucseg_or_a_volume_and_nothing_else(script: str, codes: set[str]) -> None:
    found = sample(script, "--n", 200, "--seed", 1_000_000)

    assert found["inputs"] == 200
    assert (found["deaths"], found["hangs"], found["grown"], found["foreign"]) == ([], [], [], {})
    assert set(found["outcomes"]) >= codes, "the sample reaches all stages"


def test_a_run_goes_on_where_it_ended(tmp_path: Path) -> None:
    state = tmp_path / "state.json"
    sample("fuzz_headers.py", "--n", 30, "--state", state)
    in_pieces = sample("fuzz_headers.py", "--n", 60, "--state", state)
    at_once = sample("fuzz_headers.py", "--n", 60)

    assert (in_pieces["inputs"], in_pieces["outcomes"]) == (60, at_once["outcomes"])


def test_what_the_scripts_look_for_is_found(tmp_path: Path) -> None:
    """Inputs that kill, hang, grow and raise are each counted under their own number, and the run goes on."""
    script = tmp_path / "fuzz_nothing.py"
    script.write_text(
        f"import sys; sys.path.insert(0, {str(BENCHMARKS)!r})\n"
        "import fuzzing, os, time\n"
        "def outcome(folder, seed):\n"
        "    if seed == 3: os.abort()\n"
        "    while seed == 5: pass\n"
        "    if seed == 6: time.sleep(60)\n"
        "    if seed == 7: return 'foreign ValueError at x.py:1', 0.0\n"
        "    if seed == 9: b'x' * 400_000_000\n"
        "    return 'volume', 0.0\n"
        "fuzzing._outcome, fuzzing.LONGEST_S, fuzzing.MOST_MB, fuzzing._MOST_WINDOWS = outcome, 2.0, 350.0, 6\n"
        "fuzzing.main('test', lambda: lambda seed: (b'',))\n"
    )
    done = subprocess.run([sys.executable, str(script), "--n", "12"], capture_output=True, text=True, timeout=200)

    found = json.loads(done.stdout)
    assert done.returncode == 1
    assert (found["deaths"], found["hangs"], found["grown"]) == ([3], [5, 6], [9])
    assert found["foreign"] == {"foreign ValueError at x.py:1": [7, 1]}
    assert (found["inputs"], found["outcomes"]) == (12, {"volume": 8})


def test_answers_that_came_together_are_each_counted(tmp_path: Path) -> None:
    """A worker that answers twice before anybody looks and then hangs hung at the third input, not at the first."""
    worker = tmp_path / "worker.py"
    worker.write_text(
        "import os, time\n"
        """os.write(1, b'ready\\n[0, "volume", 0.0, 1.0, 2.0]\\n[1, "volume", 0.0, 1.0, 2.0]\\n')\n"""
        "time.sleep(60)\n"
    )
    driver = tmp_path / "driver.py"
    driver.write_text(
        f"import sys; sys.path.insert(0, {str(BENCHMARKS)!r})\n"
        "import fuzzing\n"
        f"fuzzing.LONGEST_S, fuzzing._MOST_WINDOWS, sys.argv = 0.1, 3, [{str(worker)!r}]\n"
        "with fuzzing._Watched(0, 3) as watched:\n"
        "    print(len(list(watched.answers())), watched.hung)\n"
    )
    done = subprocess.run([sys.executable, str(driver)], capture_output=True, text=True, timeout=60)
    assert done.stdout.split() == ["2", "True"], done.stderr
