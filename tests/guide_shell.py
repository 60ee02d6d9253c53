"""Runs the commands of a guide as they stand, with the files, ports and model of a test in the place of the guide's."""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest
from typer.testing import CliRunner

from ucseg_runtime.cli.app import app

_OF_A_SHELL = re.compile(r"[<>|&;$\"'\n]")


class GuideShell:
    """A folder in which commands run.

    Args:
        folder: Made when missing.
        replaced: What stands in the guide, and what takes its place.
        added: Pairs of a pattern and options: a command in which the pattern is found gets them.
    """

    def __init__(
        self, folder: Path, replaced: Mapping[str, str] | None = None, added: Sequence[tuple[str, str]] = ()
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self._replaced = replaced or {}
        self._added = added
        self.environment = {
            **os.environ,
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "XDG_STATE_HOME": str(folder / "state"),
        }

    def command(self, line: str) -> str:
        """The line as it is run."""
        options = [options for pattern, options in self._added if re.search(pattern, line)]
        for written, real in self._replaced.items():
            line = line.replace(written, real)
        in_the_background = line.endswith(" &")
        return " ".join([line.removesuffix(" &"), *options, *(["&"] if in_the_background else [])])

    def run(self, line: str, monkeypatch: pytest.MonkeyPatch) -> str:
        """What a command prints; it must succeed. Those of ucseg alone run in this process, which is faster."""
        if line.startswith("ucseg ") and not _OF_A_SHELL.search(line):
            return self._invoke(line, monkeypatch)
        return self._run_by_sh(line)

    def _invoke(self, line: str, monkeypatch: pytest.MonkeyPatch) -> str:
        monkeypatch.chdir(self.folder)
        finished = CliRunner().invoke(app, shlex.split(self.command(line))[1:])
        assert finished.exit_code == 0, f"{line}\n{finished.output}"
        return finished.stdout

    def _run_by_sh(self, line: str) -> str:
        finished = subprocess.run(
            ["/bin/sh", "-c", self.command(line)],
            cwd=self.folder,
            env=self.environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )
        assert finished.returncode == 0, f"{line}\n{finished.stdout}{finished.stderr}"
        return finished.stdout

    @contextmanager
    def running(
        self, line: str, ready: str, ends_with: int = 143, by: signal.Signals = signal.SIGTERM
    ) -> Iterator[None]:
        """A command that goes on, until the block ends.

        Args:
            line: As it stands in the guide.
            ready: What it prints, on any of its outputs, when it is.
            ends_with: Exit code after the signal.
            by: Signal that ends it.
        """
        log = self.folder / f"{len(list(self.folder.glob('*.log')))}.log"
        with log.open("wb") as stream:
            process = subprocess.Popen(
                ["/bin/sh", "-c", f"exec {self.command(line)}"],
                cwd=self.folder,
                env=self.environment,
                stdout=stream,
                stderr=subprocess.STDOUT,
            )
        try:
            deadline = time.monotonic() + 120.0
            while ready.encode() not in log.read_bytes():
                assert process.poll() is None, log.read_text()
                assert time.monotonic() < deadline, log.read_text()
                time.sleep(0.05)
            yield
        finally:
            process.send_signal(by)
            assert process.wait(60.0) == ends_with, log.read_text()
