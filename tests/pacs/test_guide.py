"""The commands of the PACS guide, run as they stand, in their order, with the ports of the test's archive."""

from __future__ import annotations

import os
import re
import shlex
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import trustme
from typer.testing import CliRunner

from tests.batch.exports import TINY
from tests.pacs.archive import TestArchive
from tests.phantoms import write_ct_series
from tests.processes import LOOPBACK, free_port
from ucseg_runtime.cli.app import app

GUIDE = (Path(__file__).resolve().parents[2] / "docs" / "pacs.md").read_text(encoding="utf-8")
COMMANDS = [line for block in re.findall(r"```sh\n(.*?)```", GUIDE, re.DOTALL) for line in block.splitlines()]
LISTEN = [line for line in COMMANDS if "pacs listen" in line]
CURL = [line for line in COMMANDS if line.startswith("curl ")]
OTHERS = [line for line in COMMANDS if line not in (*LISTEN, *CURL)]
STUDY = replace(TINY, study="of the guide")

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]


class Shell:
    """A folder, and a path on which there is `ucseg` with the model of the tests.

    Args:
        folder: Where commands run.
        archive: Whose ports take the place of the guide's.
        model: Of the commands that segment.
    """

    def __init__(self, folder: Path, archive: TestArchive, model: Path) -> None:
        self.folder = folder
        self.monitor, self.port = free_port(), free_port()
        self._ports = {
            "pacs.example:4242": f"{LOOPBACK}:{archive.pacs.dicom_port}",
            "pacs.example:8042": f"{LOOPBACK}:{archive.pacs.port}",
            "127.0.0.1:11180": f"{LOOPBACK}:{self.monitor}",
            "--port 11112": f"--port {self.port}",
            "STUDY": STUDY.study_uid,
            "SERIES": STUDY.series_uid,
            "/srv/ucseg": str(folder / "srv"),
        }
        self._model = f"--model {model} --engine openvino"
        program = folder / "bin" / "ucseg"
        program.parent.mkdir()
        program.write_text(
            f'#!/bin/sh\nexec {sys.executable} -c "from ucseg_runtime.cli.app import main; main()" "$@"\n'
        )
        program.chmod(program.stat().st_mode | stat.S_IXUSR)
        self.environment = {
            **os.environ,
            "PATH": f"{program.parent}{os.pathsep}{os.environ['PATH']}",
            "XDG_STATE_HOME": str(folder / "state"),
        }

    def command(self, line: str) -> str:
        """The line with the test's ports, files and model."""
        for written, real in self._ports.items():
            line = line.replace(written, real)
        if re.match(r"ucseg (segment|batch|pacs listen) ", line):
            line += f" {self._model}"
        if "pacs listen" in line:
            line += f" --quiet-time 0.5{'' if '--port' in line else f' --port {self.port}'}"
            line += "" if "--monitor" in line else f" --monitor {self.monitor}"
        return line

    def invoke(self, line: str, monkeypatch: pytest.MonkeyPatch) -> str:
        """What a command of ucseg prints; it must succeed."""
        monkeypatch.chdir(self.folder)
        program, *arguments = shlex.split(self.command(line))
        assert program == "ucseg"
        finished = CliRunner().invoke(app, arguments)
        assert finished.exit_code == 0, f"{line}\n{finished.output}"
        return finished.stdout

    def run(self, line: str) -> str:
        """What another command prints; it must succeed."""
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
    def running(self, line: str) -> Iterator[None]:
        """A command that listens, until the block ends; SIGTERM must end it with 143."""
        log = self.folder / "listener.log"
        with log.open("wb") as stream:
            process = subprocess.Popen(
                ["/bin/sh", "-c", f"exec {self.command(line)}"],
                cwd=self.folder,
                env=self.environment,
                stdout=stream,
                stderr=subprocess.STDOUT,
            )
        try:
            deadline = time.monotonic() + 60.0
            while b"listening as" not in log.read_bytes():
                assert process.poll() is None, log.read_text()
                assert time.monotonic() < deadline
                time.sleep(0.05)
            yield
        finally:
            process.terminate()
            assert process.wait(30.0) == 143, log.read_text()


@pytest.fixture(scope="module")
def shell(archive: TestArchive, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Shell:
    folder = tmp_path_factory.mktemp("guide")
    archive.pacs.store(write_ct_series(folder / "series", STUDY))
    authority = trustme.CA()
    issued = authority.issue_cert(LOOPBACK)
    issued.cert_chain_pems[0].write_to_path(folder / "cert.pem")
    issued.private_key_pem.write_to_path(folder / "key.pem")
    authority.cert_pem.write_to_path(folder / "callers.pem")
    return Shell(folder, archive, tiny_model)


def test_every_kind_of_command_stands_in_the_guide() -> None:
    assert len(LISTEN) == 3
    assert [line.rpartition("/")[2] for line in CURL] == ["readyz", "healthz", "metrics"]
    words = {" ".join(line.split()[1:3]) if "pacs" in line.split()[1] else line.split()[1] for line in OTHERS}
    assert words == {"segment", "pacs send", "pacs query", "pacs fetch", "batch"}


@pytest.mark.parametrize("line", LISTEN, ids=["plain", "options", "TLS"])
def test_listener_of_the_guide_starts_answers_and_stops(shell: Shell, line: str) -> None:
    with shell.running(line):
        for page in CURL if "--spool " in line else CURL[:1]:
            assert shell.run(page)


def test_single_commands_of_the_guide_do_what_they_say(
    shell: Shell, archive: TestArchive, monkeypatch: pytest.MonkeyPatch
) -> None:
    printed = [shell.invoke(line, monkeypatch) for line in OTHERS]

    assert printed[1:3] == ["3 of 3 objects stored\n"] * 2
    assert archive.modalities(STUDY.study_uid) == {"CT": 6, "SEG": 1, "SR": 1, "OT": 1}
    assert STUDY.series_uid in printed[4], "of the query by DICOMweb, which prints JSON"
    assert len(list((shell.folder / "found" / "1").glob("*.dcm"))) == 6
    assert len(list((shell.folder / "fetched").glob("*.dcm"))) == 9, "the series, and then the study with its results"
    assert len(list((shell.folder / "results-of-batch").rglob("record.json"))) == 1
