"""A batch on a real Ray cluster of one node, with actors that are killed."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.batch.batch_process import PROGRAM, records, wait_for
from tests.batch.exports import tree, write_export
from ucseg_runtime.batch.run import STATE_FOLDER

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

SERIES = 8


@pytest.fixture(scope="module")
def export(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_export(tmp_path_factory.mktemp("export"), SERIES)


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory, model: Path, export: Path) -> dict[str, bytes]:
    """What a batch without a cluster writes."""
    out = tmp_path_factory.mktemp("alone") / "out"
    subprocess.run([*command(export, out, model)], check=True, capture_output=True)
    return tree(out)


@dataclass(frozen=True)
class Cluster:
    """Its address, and the process that began it."""

    address: str
    head: int


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """One on loopback that promises four processors."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    start = [
        *(Path(sys.executable).with_name("ray"), "start", "--head", "--block", "--disable-usage-stats"),
        *("--node-ip-address=127.0.0.1", f"--port={port}", "--num-cpus=4", "--object-store-memory=100000000"),
        *("--include-dashboard=false", f"--temp-dir={tmp_path_factory.mktemp('r', numbered=True)}"),
    ]
    log = (tmp_path_factory.mktemp("log") / "ray.log").open("w+")
    with log, subprocess.Popen(start, stdout=log, stderr=subprocess.STDOUT, start_new_session=True) as head:
        try:
            deadline = time.monotonic() + 120
            while "Ray runtime started" not in Path(log.name).read_text():
                assert head.poll() is None, Path(log.name).read_text()
                assert time.monotonic() < deadline, Path(log.name).read_text()
                time.sleep(0.2)
            yield Cluster(f"127.0.0.1:{port}", head.pid)
        finally:
            head.send_signal(signal.SIGTERM)
            try:
                head.wait(30)
            except subprocess.TimeoutExpired:
                os.killpg(head.pid, signal.SIGKILL)


def command(export: Path, out: Path, model: Path, *more: str) -> list[str]:
    options = ["--out", str(out), "--model", str(model), "--engine", "openvino", "--precision", "f32", "--json"]
    return [*PROGRAM, "batch", str(export), *options, *more]


def on(cluster: Cluster) -> tuple[str, ...]:
    return "--runner", "ray", "--ray-address", cluster.address, "--actors", "2", "--actor-cpus", "1"


def actors(cluster: Cluster) -> list[int]:
    """Processes that work as actors of a batch on this very cluster."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            is_actor = path.read_bytes().startswith(b"ray::SeriesActor")
            if is_actor and parent_of(parent_of(int(path.parent.name))) == cluster.head:
                found.append(int(path.parent.name))
        except OSError:
            continue  # it has ended meanwhile
    return found


def parent_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def wait_until_gone(cluster: Cluster) -> None:
    """Actors end with the batch, within moments."""
    deadline = time.monotonic() + 30
    while actors(cluster):
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_all_series_are_done_although_actors_are_killed_in_the_middle(
    tmp_path: Path, cluster: Cluster, export: Path, model: Path, alone: dict[str, bytes]
) -> None:
    out = tmp_path / "out"
    with subprocess.Popen(command(export, out, model, *on(cluster)), stdout=subprocess.PIPE, text=True) as process:
        for count in (1, 4):
            wait_for(out, count, process)
            os.kill(actors(cluster)[0], signal.SIGKILL)
        said, _ = process.communicate(timeout=300)

    assert process.returncode == 0, said
    assert json.loads(said)["counts"] == {"segmented": SERIES}
    assert tree(out) == alone
    assert [path for path in (out / STATE_FOLDER).rglob("*") if path.is_file()] == []
    wait_until_gone(cluster)


def test_driver_that_is_killed_leaves_what_the_next_run_finishes(
    tmp_path: Path, cluster: Cluster, export: Path, model: Path, alone: dict[str, bytes]
) -> None:
    out = tmp_path / "out"
    with subprocess.Popen(command(export, out, model, *on(cluster)), stdout=subprocess.PIPE, text=True) as process:
        wait_for(out, 3, process)
        process.kill()
    finished = records(out)

    done = subprocess.run(command(export, out, model), capture_output=True, text=True, check=True)

    counts = json.loads(done.stdout)["counts"]
    assert sum(counts.values()) == SERIES
    assert counts["done"] >= finished
    assert tree(out) == alone


def test_signal_ends_a_batch_on_a_cluster_in_order(
    tmp_path: Path, cluster: Cluster, export: Path, model: Path, alone: dict[str, bytes]
) -> None:
    out = tmp_path / "out"
    with subprocess.Popen(command(export, out, model, *on(cluster)), stdout=subprocess.PIPE, text=True) as process:
        wait_for(out, 2, process)
        process.terminate()
        process.communicate(timeout=60)

    assert process.returncode == 143
    assert all(alone[name] == content for name, content in tree(out).items())
    assert list((out / STATE_FOLDER / "leases").iterdir()) == []
