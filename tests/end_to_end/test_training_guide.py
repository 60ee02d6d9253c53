"""The training guide's own lines: an example data set, a run, scores, a model folder, masks."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from ucseg_runtime.publish import MONTAGE, REPORT, SEGMENTATION, UNCERTAINTY

pytestmark = [pytest.mark.real_data, pytest.mark.slow, pytest.mark.timeout(900)]

GUIDE = Path(__file__).parents[2] / "docs" / "training.md"


def _lines_of_the_example() -> list[list[str]]:
    blocks = GUIDE.read_text(encoding="utf-8").split("```")
    (block,) = (block for block in blocks if "ucseg-train example" in block)
    return [shlex.split(line) for line in block.splitlines()[1:] if line]


def test_lines_of_the_guide_lead_from_images_to_masks(tmp_path: Path) -> None:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    # Threads of torch that wait keep a core busy, which other workers have something to do for.
    environment = {**os.environ, "PATH": path, "OMP_NUM_THREADS": "1"}
    printed = {}
    for arguments in _lines_of_the_example():
        done = subprocess.run(arguments, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{arguments}\n{done.stderr[-3000:]}"
        printed[" ".join(arguments[:2])] = done.stdout

    scores = [json.loads(line) for line in printed["ucseg-train evaluate"].splitlines()]
    assert {(row["case"], row["segment"]) for row in scores} == {("C", "liver")}
    assert {row["output"] for row in scores} >= {"fused", "subnet_a", "subnet_b"}
    assert "merged" in (tmp_path / "models" / "liver" / "parity.md").read_text(encoding="utf-8")
    written = {path.name for path in (tmp_path / "results" / "liver").iterdir()}
    assert {SEGMENTATION, UNCERTAINTY, REPORT, MONTAGE} <= written
