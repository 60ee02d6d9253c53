"""A batch in a process of its own, and how far it has come."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

from ucseg_runtime.publish import RECORD

PROGRAM = [sys.executable, "-c", "from ucseg_runtime.cli.app import main; main()"]


def records(out: Path) -> int:
    """Published ones; those that are staged lie deeper, or in a folder whose name begins with a dot."""
    return len(list(out.glob(f"[!.]*/[!.]*/{RECORD}")))


def wait_for(out: Path, count: int, process: subprocess.Popen[str]) -> None:
    """Wait until so many are there."""
    deadline = time.monotonic() + 240
    while records(out) < count:
        assert process.poll() is None, "it ended too soon"
        assert time.monotonic() < deadline
        time.sleep(0.01)
