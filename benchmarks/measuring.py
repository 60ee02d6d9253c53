"""What every benchmark needs: the environment, medians with their spread, child processes, peak memory.

A measurement runs in a process of its own, so that start-up and peak memory are its own. The script calls
`run_child` with a request; started again as the child, it finds the request with `child_request` and answers with
`answer`.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

_CHILD = "--child"
_LAST_LINES = 3
_FOLDER = Path(__file__).resolve().parent

Json = dict[str, Any]
"""A JSON object; its values are whatever the benchmark reports."""


class ChildFailedError(Exception):
    """A measurement did not answer; the message holds the end of what it printed."""


def environment(packages: Sequence[str]) -> Json:
    """Machine, versions and commit.

    Args:
        packages: Distributions whose versions belong to the result; None stands for one that is not installed.
    """
    return {
        "processor": processor(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1),
        "load_before": round(os.getloadavg()[0], 2),
        "python": platform.python_version(),
        "versions": {name: installed_version(name) for name in packages},
        "commit": commit(),
    }


def installed_version(distribution: str) -> str | None:
    """Version of a distribution; None where it is not installed."""
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def processor() -> str:
    """Name of the processor as the kernel gives it."""
    for line in Path("/proc/cpuinfo").read_text(encoding="ascii").splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor()


def commit() -> str:
    """The checkout that this file belongs to, marked when it has uncommitted changes."""
    command = ["git", "describe", "--always", "--dirty"]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=_FOLDER).stdout.strip()


def spread(values: Sequence[float], digits: int = 4) -> Json:
    """Median, minimum and maximum."""
    found = {"median": statistics.median(values), "min": min(values), "max": max(values)}
    return {name: round(value, digits) for name, value in found.items()}


def seconds_of(work: Callable[[], object], n: int) -> list[float]:
    """Wall times of `n` runs, after one that does not count."""
    work()
    found = []
    for _ in range(n):
        started = time.perf_counter()
        work()
        found.append(time.perf_counter() - started)
    return found


def peak_memory_mb() -> float:
    """Largest resident memory of this process so far.

    From the kernel's high-water mark, not `getrusage`: that one keeps the parent's size across the start of a child.
    """
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(re.findall(r"VmHWM:\s+(\d+)", status)[0]) / 1024


def run_child(script: str, request: Mapping[str, object], limit_s: float | None = None) -> Json:
    """Answer of a fresh process that runs `script` on `request`.

    Args:
        script: ``__file__`` of the benchmark.
        request: JSON-able; `child_request` returns it in the child.
        limit_s: Longest wall time in s.

    Raises:
        ChildFailedError: The process failed, or took longer than the limit.
    """
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "answer.json"
        command = [sys.executable, script, _CHILD, json.dumps(request), str(target)]
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=limit_s)
        except subprocess.TimeoutExpired as error:
            raise ChildFailedError(f"no answer within {limit_s} s") from error
        if done.returncode != 0 or not target.is_file():
            last = " | ".join(done.stderr.strip().splitlines()[-_LAST_LINES:])
            raise ChildFailedError(f"exit status {done.returncode}: {last}")
        answered: Json = json.loads(target.read_text(encoding="utf-8"))
        return answered


def child_request() -> Json | None:
    """What `run_child` asked for; None where this process is no child."""
    if sys.argv[1:2] != [_CHILD]:
        return None
    request: Json = json.loads(sys.argv[2])
    return request


def answer(result: Mapping[str, object]) -> None:
    """Give the result of this child to the process that started it. Whatever the child prints is not read."""
    Path(sys.argv[3]).write_text(json.dumps(result), encoding="utf-8")
