"""Usable cores: what the control groups allow, not what the host has."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from ucseg_runtime.backends.cores import usable_cores


@pytest.fixture(autouse=True)
def eight_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)


def groups(folder: Path, membership: str, files: dict[str, str]) -> tuple[Path, Path]:
    """A membership file and a hierarchy that hold the given texts."""
    for name, text in files.items():
        (folder / "fs" / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / "fs" / name).write_text(text)
    (folder / "cgroup").write_text(membership)
    return folder / "cgroup", folder / "fs"


@pytest.mark.parametrize(
    ("membership", "files", "cores"),
    [
        pytest.param("0::/\n", {"cpu.max": "max 100000\n"}, 8, id="v2 without a limit"),
        pytest.param("0::/\n", {"cpu.max": "300000 100000\n"}, 3, id="v2 limit"),
        pytest.param("0::/\n", {"cpu.max": "250000 100000\n"}, 3, id="part of a core counts as one"),
        pytest.param("0::/\n", {"cpu.max": "1000 100000\n"}, 1, id="never below one"),
        pytest.param("0::/a/b\n", {"a/cpu.max": "200000 100000\n"}, 2, id="v2 limit of a group around"),
        pytest.param("0::/a\n", {"cpu.max": "200000 100000", "a/cpu.max": "600000 100000"}, 2, id="least limit"),
        pytest.param("0::/\n", {"cpu.max": "9900000 100000\n"}, 8, id="limit above the affinity"),
        pytest.param(
            "3:cpuset:/\n1:cpu,cpuacct:/job\n0::/\n",
            {"cpu/job/cpu.cfs_quota_us": "400000\n", "cpu/job/cpu.cfs_period_us": "100000\n"},
            4,
            id="v1 limit",
        ),
        pytest.param(
            "1:cpu:/", {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, 8, id="v1 without a limit"
        ),
        pytest.param("", {}, 8, id="no control groups"),
    ],
)
def test_cores_are_limited_by_control_groups(
    tmp_path: Path, membership: str, files: dict[str, str], cores: int
) -> None:
    assert usable_cores(*groups(tmp_path, membership, files)) == cores
