"""The process of a command: its log and tables, a signal, a reader that closes the output, a defect."""

from __future__ import annotations

import json
import logging
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.command_line import assert_no_patient_data, run
from ucseg_runtime.cli.reporting import print_table


def test_a_verbose_command_leaves_the_log_of_its_process_as_it_was(study: Path, model: Path) -> None:
    level = logging.getLogger("ucseg_runtime").level
    assert run("--verbose", "plan", study, "--model", model, "--no-gate").exit_code == 0
    assert logging.getLogger("ucseg_runtime").level == level


def test_tables_show_square_brackets_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    print_table("extras [a]", ("hint",), [("pip install 'ucseg[onnxruntime]'",)])

    assert "ucseg[onnxruntime]" in capsys.readouterr().out


def test_tables_in_a_pipe_hold_whole_identifiers(capsys: pytest.CaptureFixture[str]) -> None:
    study, series = "1." + "2" * 62, "1." + "3" * 62

    print_table(
        "2 series", ("study", "series", "modality", "date", "instances"), [(study, series, "CT", "20000101", "133")]
    )

    printed = capsys.readouterr().out
    assert study in printed
    assert series in printed


def test_segment_stopped_by_a_signal_leaves_nothing_and_says_so(study: Path, model: Path, tmp_path: Path) -> None:
    out = tmp_path / "results" / "out"
    out.parent.mkdir()
    command = [sys.executable, "-c", "from ucseg_runtime.cli.app import main; main()", "segment", study, "--out", out]
    process = subprocess.Popen([*command, "--model", model, "--json"], stdout=subprocess.PIPE, text=True)
    while process.poll() is None and not list(out.glob(".ucseg-staging-*")):
        time.sleep(0.002)
    process.send_signal(signal.SIGTERM)
    stdout, _ = process.communicate(timeout=60)

    assert process.returncode == 143
    assert json.loads(stdout)["error"]["code"] == "UCSEG-E198"
    assert list(out.parent.iterdir()) == []


def test_a_reader_that_closes_the_output_is_no_defect(model: Path) -> None:
    command = [sys.executable, "-c", "from ucseg_runtime.cli.app import main; main()", "models", "--model", model]
    process = subprocess.Popen([*command, "--json"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    process.stdout.close()
    _, stderr = process.communicate(timeout=60)

    assert process.returncode == 141
    assert stderr == ""


def test_a_defect_is_one_line_with_exit_code_1_and_no_value(
    study: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def explode(*_: object) -> None:
        raise KeyError("Canaryname^Phantom")

    monkeypatch.setattr("ucseg_runtime.series_steps.measure", explode)

    result = run("segment", study, "--out", tmp_path / "out", "--model", model)

    assert result.exit_code == 1
    assert "KeyError" in result.stderr
    assert_no_patient_data(result.output)
    assert not (tmp_path / "out").exists()
