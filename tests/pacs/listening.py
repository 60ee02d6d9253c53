"""``ucseg pacs listen`` in a process of its own, to be sent to, killed and started again."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tests.processes import LOOPBACK

START_TIMEOUT_S = 60.0
_PROGRAM = "from ucseg_runtime.cli.app import main; main()"


@dataclass
class Listening:
    """A listener that can be started any number of times on the same spool.

    Attributes:
        folder: For its spool and what it says.
        options: Of the command.
    """

    folder: Path
    options: Sequence[str]
    port: int = 0
    monitor_port: int = 0
    process: subprocess.Popen[bytes] = field(init=False, repr=False)

    @property
    def spool(self) -> Path:
        """Its folder."""
        return self.folder / "spool"

    @property
    def said(self) -> str:
        """Everything that it has said, over all starts."""
        return (self.folder / "said").read_text(errors="replace")

    def start(self) -> None:
        """Start it and wait until it listens."""
        before = len(self.said) if (self.folder / "said").exists() else 0
        command = [
            *(sys.executable, "-c", _PROGRAM, "pacs", "listen"),
            *("--spool", str(self.spool), "--port", str(self.port), "--host", LOOPBACK, "--monitor", "0"),
            *self.options,
        ]
        with (self.folder / "said").open("ab") as stream:
            self.process = subprocess.Popen(
                ["setpriv", "--pdeathsig", "KILL", *command],  # noqa: S607  (of util-linux, wherever it is)
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=subprocess.STDOUT,
            )
        deadline = time.monotonic() + START_TIMEOUT_S
        while (found := re.search(r"listening as \S+ on port (\d+)", self.said[before:])) is None:
            self._check_it_runs(deadline)
        self.port = int(found[1])
        page = re.search(r"monitoring at http://[\d.]+:(\d+)/", self.said[before:])
        self.monitor_port = int(page[1]) if page else 0

    def kill(self) -> None:
        """End it at once, as a power failure would."""
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def wait_until_it_says(self, text: str, seconds: float = 60.0) -> None:
        """Wait for a piece of what it says."""
        deadline = time.monotonic() + seconds
        while text not in self.said:
            self._check_it_runs(deadline)

    def _check_it_runs(self, deadline: float) -> None:
        assert self.process.poll() is None, self.said
        assert time.monotonic() < deadline, self.said
        time.sleep(0.05)


@contextmanager
def listening(folder: Path, *options: object) -> Iterator[Listening]:
    """A started listener, ended with the block."""
    folder.mkdir(exist_ok=True)
    listener = Listening(folder, [str(option) for option in options])
    listener.start()
    try:
        yield listener
    finally:
        if listener.process.poll() is None:
            listener.process.terminate()
            try:
                listener.process.wait(20.0)
            except subprocess.TimeoutExpired:
                listener.kill()
