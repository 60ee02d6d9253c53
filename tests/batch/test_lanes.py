"""A batch in several processes side by side, some of which die."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tests.batch.batch_process import PROGRAM, wait_for
from tests.batch.exports import tree, write_export
from tests.processes import heeding_interrupts
from ucseg_runtime.batch.lanes import LaneRunner, lanes_of
from ucseg_runtime.batch.run import STATE_FOLDER
from ucseg_runtime.batch.runners import Finished, LocalRunner
from ucseg_runtime.cli.app import app
from ucseg_runtime.config import InferenceOptions, OutputOptions
from ucseg_runtime.errors import BackendError, ModelError, SpacingError, UcsegError
from ucseg_runtime.model_folder import load_model
from ucseg_runtime.neighbours import SeriesJob
from ucseg_runtime.segmentation import EngineInfo
from ucseg_runtime.server_options import TritonServer, server_address

SERIES = 6


@dataclass(frozen=True)
class Sorting:
    """In place of the runner of a lane: does with a series what the name of its folder says, and notes it in a file.

    Attributes:
        notes: Folder; each series leaves a file with the process that had it, and what else that had then.
    """

    notes: Path

    def engine(self) -> EngineInfo | None:
        return None

    def segment(self, jobs: Iterable[SeriesJob | None], finished: Finished) -> None:
        begun: list[tuple[int, SeriesJob]] = []
        ordinal = 0
        for job in jobs:
            if job is not None:
                ordinal += 1
                begun.append((ordinal, job))
            while len(begun) > (1 if job is not None else 0):
                self._finish(*begun.pop(0), finished, beside=len(begun))

    def _finish(self, ordinal: int, job: SeriesJob, finished: Finished, *, beside: int) -> None:
        name = job.folder.name
        with (self.notes / name).open("a") as note:
            note.write(f"{os.getpid()} {beside}\n")
        if "poison" in name or ("once" in name and len(self.of(name)) == 1):
            os.kill(os.getpid(), signal.SIGKILL)
        if "unusable" in name:
            raise ModelError("the engine cannot be used.")
        if "talks" in name:
            logging.getLogger("ucseg_runtime.somewhere").info("about %s", name)
        finished(ordinal, SpacingError("a gap.") if "gap" in name else None)

    def of(self, name: str) -> list[str]:
        return (self.notes / name).read_text().splitlines()


def jobs_of(names: Iterable[str]) -> Iterator[SeriesJob]:
    return (SeriesJob(Path("in"), Path(name)) for name in names)


def told(runner: Sorting, jobs: Iterable[SeriesJob | None], lanes: int = 2) -> dict[int, UcsegError | None]:
    """What was said of each job, which must be once."""
    said: list[tuple[int, UcsegError | None]] = []
    LaneRunner((runner,) * lanes).segment(jobs, lambda ordinal, error: said.append((ordinal, error)))
    assert len(said) == len(dict(said))
    return dict(said)


def test_every_series_is_done_once_and_a_failed_one_stops_nothing(tmp_path: Path) -> None:
    runner = Sorting(tmp_path)

    said = told(runner, jobs_of("gap" if number == 7 else str(number) for number in range(1, 41)))

    assert sorted(said) == list(range(1, 41))
    assert [ordinal for ordinal, error in said.items() if error is not None] == [7]
    assert isinstance(said[7], SpacingError)
    assert all(len(runner.of(path.name)) == 1 for path in tmp_path.iterdir())


def test_what_a_dead_process_had_is_done_by_another_and_it_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    runner = Sorting(tmp_path)

    said = told(runner, jobs_of("once" if number == 5 else str(number) for number in range(20)))

    assert said == dict.fromkeys(range(1, 21))
    first, second = (line.split()[0] for line in runner.of("once"))
    assert first != second
    assert caplog.messages == ["a process of this batch was ended by signal 9 (SIGKILL); what it had is tried again"]


def test_what_a_lane_logs_is_logged_here(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "ucseg_runtime")

    told(Sorting(tmp_path), jobs_of(["1", "talks", "3"]))

    assert [(record.levelname, record.message) for record in caplog.records] == [("INFO", "about talks")]


def test_series_over_which_every_process_dies_fails_alone(tmp_path: Path) -> None:
    runner = Sorting(tmp_path)

    said = told(runner, jobs_of("poison" if number == 5 else str(number) for number in range(20)))

    assert [ordinal for ordinal, error in said.items() if error is not None] == [6]
    assert "3 processes died over this series" in str(said[6])
    assert [line.split()[1] for line in runner.of("poison")][1:] == ["0", "0"], "nothing else died with it"


def test_processes_that_only_die_end_the_batch(tmp_path: Path) -> None:
    with pytest.raises(BackendError, match="11 processes have died one after the other"):
        told(Sorting(tmp_path), jobs_of(f"poison {number}" for number in range(1000)), lanes=1)


def test_process_that_cannot_work_ends_the_batch_with_its_reason(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"the engine cannot be used\."):
        told(Sorting(tmp_path), jobs_of(["1", "unusable", "3", "4"]))


def test_no_lane_waits_for_another_s_series_with_work_in_its_hand(tmp_path: Path) -> None:
    in_work: set[str] = set()

    def jobs() -> Iterator[SeriesJob | None]:
        for name in "123":
            in_work.add(name)
            yield SeriesJob(Path("in"), Path(name))
        while in_work:
            yield None
        in_work.add("4")
        yield SeriesJob(Path("in"), Path("4"))

    LaneRunner((Sorting(tmp_path),) * 2).segment(jobs(), lambda ordinal, error: in_work.remove(str(ordinal)))

    assert in_work == set()


def test_lanes_share_cores_and_begin_with_different_servers(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ucseg_runtime.batch.lanes.usable_cores", lambda: 8)
    alone = LocalRunner(load_model(model), InferenceOptions(), OutputOptions())
    assert [runner.inference.threads for runner in local(lanes_of(alone, 3))] == [2, 2, 2]

    chosen = LocalRunner(alone.model, InferenceOptions(threads=5), OutputOptions())
    assert [runner.inference.threads for runner in local(lanes_of(chosen, 2))] == [5, 5]

    addresses = tuple(server_address(f"grpc://host{number}:8001") for number in range(2))
    remote = LocalRunner(alone.model, InferenceOptions(server=TritonServer(addresses)), OutputOptions())
    servers = [runner.inference.server for runner in local(lanes_of(remote, 3))]
    assert [server and server.addresses[0] for server in servers] == [addresses[0], addresses[1], addresses[0]]


def local(lanes: LaneRunner) -> list[LocalRunner]:
    return [runner for runner in lanes.runners if isinstance(runner, LocalRunner)]


def test_lanes_are_refused_on_a_cluster(tmp_path: Path) -> None:
    refused = CliRunner().invoke(app, ["batch", str(tmp_path), "--out", "out", "--runner", "ray", "--lanes", "2"])
    assert refused.exit_code == 2
    assert "--actors" in refused.output


@pytest.fixture(scope="module")
def export(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_export(tmp_path_factory.mktemp("export"), SERIES)


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory, model: Path, export: Path) -> dict[str, bytes]:
    """What a single process writes."""
    out = tmp_path_factory.mktemp("alone") / "out"
    subprocess.run(command(export, out, model, 1), check=True, capture_output=True)
    return tree(out)


def command(export: Path, out: Path, model: Path, lanes: int) -> list[str]:
    options = ["--out", str(out), "--model", str(model), "--lanes", str(lanes), "--json"]
    return [*PROGRAM, "batch", str(export), *options]


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_lanes_write_what_one_process_writes_although_one_is_killed(
    tmp_path: Path, model: Path, export: Path, alone: dict[str, bytes]
) -> None:
    out = tmp_path / "out"
    with subprocess.Popen(command(export, out, model, 2), stdout=subprocess.PIPE, text=True) as process:
        wait_for(out, 1, process)
        os.kill(children(process.pid)[0], signal.SIGKILL)
        said, _ = process.communicate(timeout=300)

    assert process.returncode == 0, said
    assert json.loads(said)["counts"] == {"segmented": SERIES}
    assert tree(out) == alone
    assert list((out / STATE_FOLDER / "leases").iterdir()) == []


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    "signum", [signal.SIGTERM, signal.SIGKILL, pytest.param(signal.SIGINT, marks=pytest.mark.long)]
)
def test_batch_that_is_stopped_takes_its_lanes_along_and_the_next_goes_on(
    tmp_path: Path, model: Path, export: Path, alone: dict[str, bytes], signum: signal.Signals
) -> None:
    out = tmp_path / "out"
    stopped = subprocess.Popen(
        command(export, out, model, 2),
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=heeding_interrupts,
    )
    with stopped:
        wait_for(out, 1, stopped)
        begun = time.monotonic()
        if signum == signal.SIGINT:
            os.killpg(stopped.pid, signum)  # as a terminal does
        else:
            stopped.send_signal(signum)
        stopped.communicate(timeout=60)
        while is_group_alive(stopped.pid):
            assert time.monotonic() - begun < 30.0
            time.sleep(0.05)

    assert stopped.returncode == {signal.SIGTERM: 143, signal.SIGINT: 130}.get(signum, -signum)
    assert all(alone[name] == content for name, content in tree(out).items())
    done = subprocess.run(command(export, out, model, 2), check=True, capture_output=True, text=True)
    assert sum(json.loads(done.stdout)["counts"].values()) == SERIES
    assert tree(out) == alone


def is_group_alive(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.slow
def test_lanes_work_where_standard_streams_are_closed(tmp_path: Path, model: Path) -> None:
    export = write_export(tmp_path / "one", 1)
    closed = ["sh", "-c", 'exec "$@" <&- 2>&-', "sh", *command(export, tmp_path / "out", model, 2)]

    done = subprocess.run(closed, stdout=subprocess.PIPE, text=True, check=False)

    assert done.returncode == 0, done.stdout
    assert json.loads(done.stdout)["counts"] == {"segmented": 1}
