"""The GPU benchmark takes all its paths on a machine without a GPU."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "gpu.py"


@pytest.mark.slow
@pytest.mark.long
def test_dry_run_gives_a_figure_or_a_reason_for_every_contender() -> None:
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "--dry-run"], capture_output=True, text=True, check=False, timeout=240
    )

    assert done.returncode == 0, done.stderr
    (size,) = json.loads(done.stdout)["sizes"]
    (batch,) = size["batches"]
    assert batch["gflop_per_tile"] > 0
    assert batch["floor_ms_per_tile"]["NVIDIA H100 80GB HBM3"]["f32"] > 0
    measured = {(row["contender"], row["arithmetic"]) for row in batch["rows"] if "ms_per_tile" in row}
    assert measured >= {
        ("torch eager", "f32"),
        ("torch AMP", "bf16"),
        ("torch.compile", "f32"),
        ("ONNX Runtime", "f32"),
    }
    exact = [row["difference"] for row in batch["rows"] if row["arithmetic"] == "f32" and "difference" in row]
    assert max(exact) < 1e-3, "float32 rounding, and no other network or image"
    assert all(row["skipped"] for row in batch["rows"] if "ms_per_tile" not in row), "no row may fail"
