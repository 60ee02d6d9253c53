"""The command line with several inputs: numbered folders, one outcome each, exit code 7, an interruption."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.command_line import assert_no_patient_data, run
from tests.phantoms import CtPhantom, write_ct_series
from ucseg_runtime.publish import RECORD


@pytest.fixture
def studies(tmp_path: Path) -> list[Path]:
    """Two good ones with a damaged one between them, in folders whose names must not turn up anywhere."""
    folders = [tmp_path / "in" / f"canary^{name}" for name in ("zoe", "max", "ann")]
    for number, folder in enumerate(folders):
        omit = (7,) if number == 1 else ()
        write_ct_series(folder, CtPhantom(shape=(20, 40, 48), study=str(number)), omit=omit)
    return folders


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_several_inputs_get_numbered_folders_and_a_failure_gives_exit_code_7(
    studies: list[Path], model: Path, tmp_path: Path
) -> None:
    result = run("segment", *studies, "--out", tmp_path / "out", "--model", model, "--json")

    assert result.exit_code == 7, result.output
    first, second, third = json.loads(result.stdout)
    assert [item["study"] for item in (first, second, third)] == [1, 2, 3]
    assert second["error"]["error"] == "SpacingError"
    assert [item["name"] for item in first["measurements"]] == ["class 1", "class 2"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["1", "3"]
    assert_no_patient_data(result.output)
    alone = run("segment", studies[2], "--out", tmp_path / "alone", "--model", model, "--json")
    assert alone.exit_code == 0
    assert content(tmp_path / "alone") == content(tmp_path / "out" / "3")
    assert json.loads(alone.stdout)["measurements"] == third["measurements"]


def test_several_good_inputs_give_one_table_and_exit_code_0(studies: list[Path], model: Path, tmp_path: Path) -> None:
    result = run("segment", studies[0], studies[2], "--out", tmp_path / "out", "--model", model)

    assert result.exit_code == 0, result.output
    assert "study 2 of 2: done" in result.stderr
    assert "class 1" in result.stdout
    assert_no_patient_data(result.output)


@pytest.mark.parametrize("option", [("--series", "1.2.3"), ("--max-memory", "4000")], ids=lambda option: option[0])
def test_options_for_one_input_are_refused_with_several(
    option: tuple[str, str], studies: list[Path], model: Path, tmp_path: Path
) -> None:
    result = run("segment", *studies, "--out", tmp_path / "out", "--model", model, *option)

    assert result.exit_code == 2
    assert f"{option[0]} is for one input" in result.stderr
    assert not (tmp_path / "out").exists()


def test_a_signal_leaves_every_study_complete_or_absent_and_no_process(
    studies: list[Path], model: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    command = [sys.executable, "-c", "from ucseg_runtime.cli.app import main; main()", "segment"]
    arguments = [*(studies[0], studies[2]) * 4, "--out", out, "--model", model, "--json"]
    process = subprocess.Popen([*command, *map(str, arguments)], stdout=subprocess.PIPE, text=True)
    while process.poll() is None and not list(out.glob("*/.ucseg-staging-*")):
        time.sleep(0.002)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text(encoding="ascii").split()
    process.send_signal(signal.SIGTERM)
    stdout, _ = process.communicate(timeout=60)

    assert process.returncode == 143
    assert json.loads(stdout)["error"]["code"] == "UCSEG-E198"
    assert len(children) >= 2
    assert not any(Path(f"/proc/{child}").exists() for child in children)
    for folder in out.iterdir() if out.is_dir() else ():
        assert RECORD in content(folder)
    assert not list(tmp_path.rglob(".ucseg-staging-*"))
