"""The processor: its name, and how many of its cores this process may really use."""

from __future__ import annotations

import math
import os
import platform
from collections.abc import Iterator
from pathlib import Path

_MEMBERSHIP = Path("/proc/self/cgroup")
_HIERARCHY = Path("/sys/fs/cgroup")
_PROCESSORS = Path("/proc/cpuinfo")


def usable_cores(membership: Path = _MEMBERSHIP, hierarchy: Path = _HIERARCHY) -> int:
    """Cores of the process's affinity, limited by the quotas of its control groups; at least 1.

    Engines count the cores of the host, and in a container with a quota then start threads that are stopped most of the
    time.

    Args:
        membership: File that lists the control groups of the process.
        hierarchy: Folder under which control groups are mounted.

    Source: Linux kernel documentation, ``cpu.max`` (cgroup v2), ``cpu.cfs_quota_us`` and ``cpu.cfs_period_us`` (v1).
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    limits = [quota for group in _groups(membership, hierarchy) if (quota := _quota(group)) is not None]
    return max(1, min([cores, *(math.ceil(limit) for limit in limits)]))


def processor_name() -> str:
    """What the processor calls itself; ``unknown`` where the system does not say."""
    lines = (line.partition(":") for line in _text(_PROCESSORS).splitlines())
    named = (value.strip() for key, _, value in lines if key.strip() == "model name")
    return next(named, "") or platform.processor() or "unknown"


def _groups(membership: Path, hierarchy: Path) -> Iterator[Path]:
    """Folders of the groups that this process is in and of all groups around them; not all need exist."""
    for line in _text(membership).splitlines():
        _, controllers, name = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        mount = hierarchy / "cpu" if controllers else hierarchy
        group = mount / name.strip("/")
        yield group
        yield from (parent for parent in group.parents if parent.is_relative_to(mount))


def _quota(group: Path) -> float | None:
    """Cores' worth of time that a group may use; None where it is not limited."""
    quota, period = (_text(group / "cpu.max").split() + ["", ""])[:2]
    if not quota:
        quota, period = _text(group / "cpu.cfs_quota_us").strip(), _text(group / "cpu.cfs_period_us").strip()
    if not quota.isdigit() or not period.isdigit() or int(period) == 0:
        return None
    return int(quota) / int(period)


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="ascii")
    except (OSError, UnicodeDecodeError):
        return ""
