"""The programs of the viewer tests: where they come from, and that they end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import requests

from tests.debian import ProgramsUnreachableError
from tests.orthanc import running_pacs
from tests.processes import running
from tests.viewer.programs import (
    OHIF_ARCHIVE,
    OHIF_PACKAGE,
    ViewerPrograms,
    install_programs,
    unpack_npm_package,
)

KILLED_RUN = """
import sys, time
from pathlib import Path
from tests.processes import running
with running(["sleep", "600"], {"PATH": sys.argv[1]}, Path(sys.argv[2])) as process:
    print(process.pid, flush=True)
    time.sleep(600)
"""


def test_machine_without_package_managers_is_told_what_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("UCSEG_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PATH", str(tmp_path))

    with pytest.raises(ProgramsUnreachableError, match="apt-get"):
        install_programs()
    with pytest.raises(ProgramsUnreachableError, match=f"{OHIF_PACKAGE}.*npm"):
        unpack_npm_package(OHIF_PACKAGE, OHIF_ARCHIVE, "0" * 64)
    assert not list((tmp_path / "cache").iterdir()), "nothing half-done stays"


def test_other_archive_than_the_checked_one_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UCSEG_CACHE", str(tmp_path / "cache"))
    npm = tmp_path / "npm"
    npm.write_text(f'#!/bin/sh\necho other > "$4/{OHIF_ARCHIVE}"\n')
    npm.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)

    with pytest.raises(ValueError, match=r"has SHA-256 .*, expected"):
        unpack_npm_package(OHIF_PACKAGE, OHIF_ARCHIVE, "0" * 64)
    assert not list((tmp_path / "cache").iterdir())


def test_program_ends_when_the_test_run_is_killed(tmp_path: Path) -> None:
    command = [sys.executable, "-c", KILLED_RUN, os.environ["PATH"], str(tmp_path / "log")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as run:
        assert run.stdout is not None
        program = Path("/proc") / run.stdout.readline().strip()
        _wait_until_it_runs(program, "sleep")
        run.send_signal(signal.SIGKILL)
    _wait_until_gone(program)


def test_program_that_fails_to_stop_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.processes.STOP_TIMEOUT_S", 0.2)
    deaf = [
        sys.executable,
        "-c",
        "import signal, time; signal.signal(15, signal.SIG_IGN); print(1, flush=True); time.sleep(600)",
    ]
    with running(deaf, os.environ, tmp_path / "log") as process:
        while not (tmp_path / "log").read_bytes():
            time.sleep(0.05)
    assert process.returncode == -signal.SIGKILL


@pytest.mark.slow
def test_orthanc_listens_as_long_as_it_is_wanted_and_no_longer(viewer_programs: ViewerPrograms, tmp_path: Path) -> None:
    with running_pacs(viewer_programs, tmp_path) as pacs:
        assert requests.get(f"{pacs.url}/studies", timeout=10.0).json() == []
    with pytest.raises(requests.ConnectionError):
        requests.get(f"{pacs.url}/studies", timeout=10.0)


def _wait_until_it_runs(process: Path, name: str) -> None:
    deadline = time.monotonic() + 10.0
    while (process / "comm").read_text().strip() != name:
        assert time.monotonic() < deadline, f"the process never became {name}"
        time.sleep(0.05)


def _wait_until_gone(process: Path) -> None:
    deadline = time.monotonic() + 10.0
    while process.exists() and "State:\tZ" not in (process / "status").read_text():
        assert time.monotonic() < deadline, "the program outlives the test run"
        time.sleep(0.05)
