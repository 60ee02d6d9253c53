"""Runners that are stopped, that work side by side, and whose own files cannot be written."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tests.batch.exports import tree, write_export
from tests.batch.faulty_disk import NEEDING_ROOM, Effect, faulty_disk
from ucseg_runtime.batch.run import STATE_FOLDER
from ucseg_runtime.cli.app import app
from ucseg_runtime.publish import RECORD

LONG = os.environ.get("UCSEG_TEST_LONG") == "1"
SERIES, RUNNERS = (40, 4) if LONG else (6, 2)


@pytest.fixture(scope="module")
def export(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_export(tmp_path_factory.mktemp("export"), SERIES)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, model: Path, export: Path) -> dict[str, bytes]:
    out = tmp_path_factory.mktemp("undisturbed") / "out"
    process = start(export, out, model)
    process.communicate(timeout=280)
    assert process.returncode == 0
    return tree(out)


def start(export: Path, out: Path, model: Path) -> subprocess.Popen[str]:
    program = "from ucseg_runtime.cli.app import main; main()"
    command = [sys.executable, "-c", program, "batch", export, "--out", out, "--model", model, "--json"]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_runners_side_by_side_do_every_series_once(
    tmp_path: Path, model: Path, export: Path, undisturbed: dict[str, bytes]
) -> None:
    runners = [start(export, tmp_path / "out", model) for _ in range(RUNNERS)]
    reports = [json.loads(runner.communicate(timeout=800)[0]) for runner in runners]

    assert [runner.returncode for runner in runners] == [0] * RUNNERS
    work = Counter[str]()
    for report in reports:
        work.update(report["counts"])
    assert SERIES <= work["segmented"] <= 1.05 * SERIES
    assert work["segmented"] + work["done"] == RUNNERS * SERIES, "each runner accounts for every series"
    assert tree(tmp_path / "out") == undisturbed
    assert list((tmp_path / "out" / STATE_FOLDER / "leases").iterdir()) == []


@pytest.mark.slow
def test_sigterm_ends_a_batch_between_complete_series_and_the_next_run_goes_on(
    tmp_path: Path, model: Path, export: Path, undisturbed: dict[str, bytes]
) -> None:
    out = tmp_path / "out"
    process = start(export, out, model)
    # A record that is being written lies in a folder whose name begins with a dot, and which goes.
    while process.poll() is None and not list(out.glob(f"[!.]*/[!.]*/{RECORD}")):
        time.sleep(0.01)
    begun = time.monotonic()
    process.send_signal(signal.SIGTERM)
    stdout, _ = process.communicate(timeout=60)

    assert time.monotonic() - begun < 30.0
    assert process.returncode == 143
    assert json.loads(stdout)["error"]["code"] == "UCSEG-E198"
    left = tree(out)
    complete = {Path(name).parent for name in left if Path(name).name == RECORD}
    assert 0 < len(complete) < SERIES
    assert left == {name: content for name, content in undisturbed.items() if Path(name).parent in complete}
    assert not list(out.rglob(".ucseg-staging-*"))
    assert list((out / STATE_FOLDER / "leases").iterdir()) == []

    again = start(export, out, model)
    report = json.loads(again.communicate(timeout=280)[0])
    assert report["counts"] == {"done": len(complete), "segmented": SERIES - len(complete)}
    assert tree(out) == undisturbed


@pytest.mark.slow
@pytest.mark.parametrize("effect", ["full", pytest.param("fails", marks=pytest.mark.long)])
def test_files_of_the_batch_itself_that_cannot_be_written_cost_no_result(
    tmp_path: Path, model: Path, effect: Effect
) -> None:
    export = write_export(tmp_path / "in", 1)
    arguments = ["batch", str(export), "--model", str(model), "--json", "--out"]
    with faulty_disk() as disk:
        assert CliRunner().invoke(app, [*arguments, str(tmp_path / "undisturbed")]).exit_code == 0
    able_to_go_wrong = NEEDING_ROOM if effect == "full" else set(disk.operations)
    points = [number for number, asked in enumerate(disk.operations, start=1) if asked in able_to_go_wrong]
    for point in points if LONG else points[::5]:
        out = tmp_path / f"{effect} {point}"
        with faulty_disk(effect, point):
            result = CliRunner().invoke(app, [*arguments, str(out)])
        where = f"{effect} at {point} ({disk.operations[point - 1]}) of {len(disk.operations)}"
        assert result.exit_code == 6, f"{where}: {result.output}"
        assert json.loads(result.stdout)["error"]["code"] == "UCSEG-E150", where
        assert tree(out) in ({}, tree(tmp_path / "undisturbed")), where

        assert CliRunner().invoke(app, [*arguments, str(out)]).exit_code == 0, where
        assert tree(out) == tree(tmp_path / "undisturbed"), f"{where}: resumed"
        assert sorted(path.name for path in out.iterdir() if path.is_file()) == ["failures.csv", "summary.csv"], where
