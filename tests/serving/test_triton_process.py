"""A Triton is ready, loses a model, is started again and ends; here with a program that stands in for it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from http.server import ThreadingHTTPServer
from pathlib import Path

import pytest

from tests.processes import free_port
from tests.serving import fake_triton
from ucseg_runtime.errors import BackendError, ServerTimeoutError
from ucseg_serving.http_gate import HttpGate
from ucseg_serving.local_server import LocalServer, keep_running
from ucseg_serving.model_processes import model_processes, wait_for_a_loss
from ucseg_serving.triton_process import TritonProcess, TritonStart

LATER_S = 0.5
SOON_S = 20.0
StartOf = Callable[..., TritonStart]


@pytest.fixture
def start_of(tmp_path: Path) -> StartOf:
    def start(*faults: str, ready_timeout_s: float = SOON_S, stop_timeout_s: float = 3.0) -> TritonStart:
        health, metrics, starts = free_port(), free_port(), tmp_path / "starts"
        starts.write_text("0", encoding="ascii")
        return TritonStart(
            [sys.executable, fake_triton.__file__, str(health), str(metrics), str(starts), *faults],
            dict(os.environ),
            f"http://127.0.0.1:{health}",
            f"http://127.0.0.1:{metrics}/metrics",
            regions="ucseg_test_",
            ready_timeout_s=ready_timeout_s,
            stop_timeout_s=stop_timeout_s,
        )

    return start


def process_of(model: str, triton: TritonProcess) -> int:
    (process,) = (process for process, name in model_processes(triton.process.pid).items() if name == model)
    return process


def local_server(triton: TritonProcess) -> LocalServer:
    return LocalServer(triton, HttpGate(), "http://127.0.0.1:1", "grpc://127.0.0.1:1", "http://127.0.0.1:1")


def test_a_server_is_ready_once_its_metrics_can_be_read_too(tmp_path: Path) -> None:
    """Triton opens their port last."""
    metrics = ThreadingHTTPServer(("127.0.0.1", 0), fake_triton.Always, bind_and_activate=False)
    metrics.server_bind()  # the port is ours, and refuses connections
    with ThreadingHTTPServer(("127.0.0.1", 0), fake_triton.Always) as health, metrics:
        threading.Thread(target=health.serve_forever, daemon=True).start()
        start = TritonStart(
            [sys.executable, "-c", "import time; time.sleep(60)"],
            dict(os.environ),
            f"http://127.0.0.1:{health.server_port}",
            f"http://127.0.0.1:{metrics.server_port}/metrics",
            regions="ucseg_test_",
            ready_timeout_s=LATER_S,
            stop_timeout_s=1.0,
        )
        with TritonProcess(start) as triton:
            with pytest.raises(ServerTimeoutError):
                triton.wait_until_ready()
            metrics.server_activate()
            threading.Thread(target=metrics.serve_forever, daemon=True).start()
            triton.wait_until_ready()
        metrics.shutdown()
        health.shutdown()


def test_a_loss_names_the_model(start_of: StartOf) -> None:
    with TritonProcess(start_of()) as triton:
        triton.wait_until_ready()
        killing = threading.Timer(4 * LATER_S, os.kill, (process_of("ucseg_volume", triton), signal.SIGKILL))
        killing.start()
        assert wait_for_a_loss(triton.process) == {"ucseg_volume"}


def lose(model: str, triton: TritonProcess) -> None:
    process = process_of(model, triton)
    os.kill(process, signal.SIGKILL)
    deadline = time.monotonic() + SOON_S
    while model_processes(triton.process.pid)[process]:
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_loss_from_before_is_seen_too(start_of: StartOf) -> None:
    with TritonProcess(start_of()) as triton:
        triton.wait_until_ready()
        lose("ucseg_merged", triton)
        assert wait_for_a_loss(triton.process) == {"a model"}


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGKILL])
def test_the_end_of_a_server_is_no_loss_of_models(start_of: StartOf, signum: signal.Signals) -> None:
    """In order, it ends one model after the other, and takes notice of each a little later."""
    with TritonProcess(start_of()) as triton:
        triton.wait_until_ready()
        os.kill(triton.process.pid, signum)
        assert wait_for_a_loss(triton.process) == frozenset()


def test_a_server_that_lost_a_model_is_started_again_and_one_that_ended_is_told(
    start_of: StartOf, caplog: pytest.LogCaptureFixture
) -> None:
    with TritonProcess(start_of()) as triton:
        triton.wait_until_ready()
        first = triton.process
        lose("ucseg_merged", triton)

        def end_the_second() -> None:
            while "ready again" not in caplog.text:
                time.sleep(0.1)
            triton.process.kill()

        threading.Thread(target=end_the_second, daemon=True).start()
        with pytest.raises(BackendError, match=r"^Triton ended with -9: Error of run 2\. Check") as error:
            keep_running(local_server(triton))
    assert error.value.code == "UCSEG-E140"
    assert first.returncode == 0, "it could end in order"


def test_a_server_that_waits_in_vain_for_the_model_that_it_lost_is_ended(start_of: StartOf) -> None:
    with TritonProcess(start_of("stuck", stop_timeout_s=90.0)) as triton:
        triton.wait_until_ready()
        first = triton.process
        lose("ucseg_volume", triton)
        started = time.monotonic()
        triton.restart()
        assert time.monotonic() - started < 60.0
        assert first.returncode == -signal.SIGKILL


def test_a_server_that_is_not_ready_again_leaves_nothing_behind(start_of: StartOf) -> None:
    with TritonProcess(start_of("once", ready_timeout_s=8.0)) as triton:
        triton.wait_until_ready()
        lose("ucseg_merged", triton)
        with pytest.raises(ServerTimeoutError, match=r"Triton was not ready after 8 s: Error of run 2\."):
            keep_running(local_server(triton))
        models = model_processes(triton.process.pid)
    assert_gone([triton.process.pid, *models])


class AskedToStopError(Exception):
    """What a signal makes of it."""


@pytest.fixture
def stop_when_waiting(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Once it is set, the next wait is ended by what a signal raises."""
    asked = threading.Event()

    def wait(seconds: float) -> None:
        if asked.is_set():
            asked.clear()
            raise AskedToStopError
        threading.Event().wait(seconds)

    monkeypatch.setattr("ucseg_serving.triton_process.time.sleep", wait)
    return asked


def test_a_second_signal_while_a_server_stops_ends_all_of_it_at_once(
    start_of: StartOf, stop_when_waiting: threading.Event
) -> None:
    started = time.monotonic()
    with pytest.raises(AskedToStopError), TritonProcess(start_of("deaf", stop_timeout_s=90.0)) as triton:  # noqa: PT012
        triton.wait_until_ready()
        models = model_processes(triton.process.pid)
        stop_when_waiting.set()
    assert time.monotonic() - started < 60.0
    assert_gone([triton.process.pid, *models])


def test_a_signal_during_a_restart_lets_requests_finish(start_of: StartOf, stop_when_waiting: threading.Event) -> None:
    with TritonProcess(start_of()) as triton:
        triton.wait_until_ready()
        models = model_processes(triton.process.pid)
        stop_when_waiting.set()
        with pytest.raises(AskedToStopError):
            triton.restart()
    assert triton.process.returncode == 0, "it ended in order"
    assert_gone([triton.process.pid, *models])


def test_a_server_ends_with_whoever_started_it_however_that_comes(start_of: StartOf) -> None:
    """Here by a signal that nothing can be done about."""
    program = (
        "import sys, time\n"
        "from ucseg_serving.triton_process import TritonProcess, TritonStart\n"
        "start = TritonStart(sys.argv[3:], {}, *sys.argv[1:3], 'ucseg_test_', 20.0, 3.0)\n"
        "with TritonProcess(start) as triton:\n"
        "    triton.wait_until_ready()\n"
        "    print(triton.process.pid, flush=True)\n"
        "    time.sleep(60)\n"
    )
    start = start_of()
    command = [sys.executable, "-c", program, start.health_url, start.metrics_url, *start.command]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as owner:
        assert owner.stdout is not None
        triton = int(owner.stdout.readline())
        models = model_processes(triton)
        owner.kill()
    assert_gone([triton, *models])


def assert_gone(processes: list[int]) -> None:
    assert len(processes) == 1 + len(fake_triton.MODELS)
    deadline = time.monotonic() + SOON_S
    while left := [process for process in processes if Path(f"/proc/{process}").exists()]:
        assert time.monotonic() < deadline, left
        time.sleep(0.1)
