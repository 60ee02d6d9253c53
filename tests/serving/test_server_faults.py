"""Servers that die, hang or come back: every volume ends in the right result or in a clear error, in time."""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import requests
from typer.testing import CliRunner

from tests.processes import free_port
from tests.proof_phantom import proven
from tests.served_phantom import PHANTOM
from tests.volume_phantom import STRAIGHT, centred_geometry, volume_of
from ucseg_runtime.backends import open_backend
from ucseg_runtime.backends.triton_volume import segment_on_server
from ucseg_runtime.config import InferenceOptions
from ucseg_runtime.errors import BackendError, ServerTimeoutError
from ucseg_runtime.model_folder import Model, load_model
from ucseg_runtime.pipeline import segment_volume
from ucseg_runtime.segmentation import Segmentation
from ucseg_runtime.server_options import TritonServer, server_address
from ucseg_runtime.volume import Volume
from ucseg_serving.cli.app import app
from ucseg_serving.local_server import LocalOptions, LocalServer, running_server
from ucseg_serving.model_processes import model_processes
from ucseg_serving.repository import write_repository
from ucseg_serving.server_package import ServerPackage, install_server
from ucseg_serving.serving_options import ServingOptions
from ucseg_serving.weights import WeightsRequest, weights_for

Scheme = Literal["grpc", "http"]
VOLUME = volume_of(centred_geometry((20, 60, 70), (2.0, 1.5, 1.2), STRAIGHT))
LONG_VOLUME = volume_of(centred_geometry((40, 120, 140), (2.0, 1.5, 1.2), STRAIGHT))
"""1120 tiles, so that its middle can be met from outside."""
NO_ANSWER_S = 3.0
SLACK_S = 3.0
SOON_S = 20.0


@dataclass(frozen=True)
class Service:
    """A repository that servers are started on, always at the same ports."""

    model: Model
    package: ServerPackage
    repository: Path
    local: LocalOptions

    def start(self) -> AbstractContextManager[LocalServer]:
        return running_server(self.package, self.repository, self.local)

    def client(self, scheme: Scheme, *, timeout_s: float = 120.0) -> TritonServer:
        port = self.local.grpc_port if scheme == "grpc" else self.local.http_port
        return TritonServer((server_address(f"{scheme}://127.0.0.1:{port}"),), timeout_s=timeout_s)

    def segment(self, server: TritonServer, progress: Callable[[int, int], None] | None = None) -> Segmentation:
        options = InferenceOptions(server=server)
        with open_backend(self.model, options) as backend:
            return segment_volume(VOLUME, self.model.manifest, backend, options, progress)


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Service:
    folder = tmp_path_factory.mktemp("service")
    model = load_model(proven(PHANTOM.write(folder / "phantom")))
    options = ServingOptions(volume_memory_gb=1.0)
    weights = weights_for(model, WeightsRequest("openvino", "f32", True, folder), options)
    write_repository(model, weights, options, folder / "repository", overwrite=False)
    ports = LocalOptions(free_port(), free_port(), free_port(), stop_timeout_s=3.0)
    return Service(model, install_server(), folder / "repository", ports)


@pytest.fixture(scope="module")
def expected(service: Service) -> Segmentation:
    return embedded(service, VOLUME)


def embedded(service: Service, volume: Volume) -> Segmentation:
    options = InferenceOptions(engine="openvino", precision="f32")
    with open_backend(service.model, options) as backend:
        return segment_volume(volume, service.model.manifest, backend, options)


@pytest.fixture(scope="module")
def running(service: Service) -> Iterator[LocalServer]:
    with service.start() as server:
        yield server


@pytest.mark.parametrize("scheme", ["grpc", "http"])
def test_a_server_that_hangs_ends_at_the_deadline(service: Service, running: LocalServer, scheme: Scheme) -> None:
    tile = np.zeros((1, 1, *PHANTOM.tile_shape), dtype=np.float32)
    remote = service.client(scheme, timeout_s=NO_ANSWER_S)
    with open_backend(service.model, InferenceOptions(server=remote)) as backend:
        before = backend.infer(tile)
        os.kill(running.process.pid, signal.SIGSTOP)
        try:
            started = time.monotonic()
            with pytest.raises(ServerTimeoutError, match="no answer after"):
                backend.infer(tile)
            assert time.monotonic() - started < NO_ANSWER_S + SLACK_S
        finally:
            os.kill(running.process.pid, signal.SIGCONT)
        np.testing.assert_array_equal(backend.infer(tile).probabilities, before.probabilities)


def test_the_next_server_takes_over_from_one_that_hangs(service: Service, running: LocalServer) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        addresses = (server_address(f"http://127.0.0.1:{silent.getsockname()[1]}"), *service.client("grpc").addresses)
        remote = TritonServer(addresses, timeout_s=10.0)
        tile = np.zeros((1, 1, *PHANTOM.tile_shape), dtype=np.float32)
        with open_backend(service.model, InferenceOptions(server=remote)) as backend:
            assert backend.infer(tile).probabilities.shape == (1, 3, *PHANTOM.tile_shape)


def test_what_changes_or_reveals_the_server_is_closed_to_clients(running: LocalServer) -> None:
    url = running.http_url
    for path in ("/v2/repository/models/ucseg_tiles/unload", "/v2/systemsharedmemory/region/x/register"):
        assert requests.post(url + path, data=b"{}", timeout=10.0).status_code == 403
    for path in ("/v2/models/ucseg_tiles/stats", "/v2/logging", "/v2/trace/setting", "/v2/systemsharedmemory/status"):
        assert requests.get(url + path, timeout=10.0).status_code == 403


def test_a_client_goes_on_without_shared_memory_where_the_server_allows_none(
    service: Service, running: LocalServer, caplog: pytest.LogCaptureFixture
) -> None:
    tile = np.zeros((1, 1, *PHANTOM.tile_shape), dtype=np.float32)
    outputs = []
    for shared_memory in (False, True):
        remote = replace(service.client("grpc"), shared_memory=shared_memory)
        with open_backend(service.model, InferenceOptions(server=remote)) as backend:
            outputs.append(backend.infer(tile).probabilities)
        assert ("the server allows no shared memory" in caplog.text) == shared_memory
    np.testing.assert_array_equal(*outputs)


def test_a_port_that_is_taken_is_told_before_a_server_starts(service: Service, running: LocalServer) -> None:
    with pytest.raises(BackendError, match=f"port {service.local.http_port} cannot be used"), service.start():
        pytest.fail("two servers at one port")


@pytest.mark.parametrize("scheme", ["grpc", "http"])
def test_a_server_that_is_not_there_is_told_at_once_and_waited_for_until_the_deadline(
    service: Service, scheme: Scheme, caplog: pytest.LogCaptureFixture
) -> None:
    remote = TritonServer((server_address(f"{scheme}://127.0.0.1:{free_port()}"),), timeout_s=NO_ANSWER_S)
    started = time.monotonic()
    with pytest.raises(BackendError, match=f"no answer after .* from {scheme}://127"):
        service.segment(remote)
    assert time.monotonic() - started < NO_ANSWER_S + SLACK_S
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "attempts go on for" in caplog.text


@pytest.mark.parametrize(
    ("dead", "fault", "scheme"),
    [("ucseg_volume", signal.SIGKILL, "grpc"), ("ucseg_merged", signal.SIGSTOP, "http")],
)
def test_a_volume_soon_leaves_a_server_whose_model_died_or_hangs(
    service: Service,
    running: LocalServer,
    mortal: Service,
    expected: Segmentation,
    dead: str,
    fault: signal.Signals,
    scheme: Scheme,
    caplog: pytest.LogCaptureFixture,
) -> None:
    with mortal.start() as server:
        for stub in children_of(server.process.pid, dead):
            os.kill(stub, fault)
        url = server.grpc_url if scheme == "grpc" else server.http_url
        assert requests.get(f"{server.http_url}/v2/health/ready", timeout=5.0).status_code == 200
        addresses = (server_address(url), *service.client("grpc").addresses)
        started = time.monotonic()
        found, _ = segment_on_server(
            VOLUME, service.model, TritonServer(addresses, "volume", timeout_s=120.0), gate=True
        )
        assert time.monotonic() - started < SOON_S
    np.testing.assert_array_equal(found.label_map, expected.label_map)
    assert f"{url}: " in caplog.text, "the change is told"
    assert "is not healthy" in caplog.text


def test_health_finds_a_dead_model_that_the_server_does_not_see(service: Service, running: LocalServer) -> None:
    command = ["health", str(service.model.folder), "--url", running.grpc_url, "--timeout", "3"]
    healthy = CliRunner().invoke(app, command)
    assert healthy.exit_code == 0, healthy.output
    assert "ucseg_volume: ok" in healthy.stdout
    stubs = children_of(running.process.pid, "ucseg_volume")
    assert stubs, "the volume model must have a process of its own"
    for stub in stubs:
        os.kill(stub, signal.SIGKILL)
    assert requests.get(f"{running.http_url}/v2/health/ready", timeout=5.0).status_code == 200
    broken = CliRunner().invoke(app, command)
    assert broken.exit_code == 5
    assert "UCSEG-E14" in broken.stderr


def children_of(parent: int, model: str) -> list[int]:
    return [process for process, name in model_processes(parent).items() if name == model]


@pytest.fixture
def mortal(service: Service) -> Service:
    """Servers at ports of their own, which no other server answers at."""
    ports = LocalOptions(free_port(), free_port(), free_port(), stop_timeout_s=3.0)
    return replace(service, local=ports)


def test_a_volume_survives_the_kill_and_restart_of_the_server_in_tile_mode(
    mortal: Service, expected: Segmentation
) -> None:
    halfway = threading.Event()

    def at_the_middle(done: int, total: int) -> None:
        if 2 * done >= total:
            halfway.set()

    result = segment_over_a_kill(
        mortal, lambda: mortal.segment(mortal.client("grpc"), at_the_middle), lambda server: halfway.wait(60.0)
    )
    np.testing.assert_array_equal(result.label_map, expected.label_map)
    np.testing.assert_array_equal(result.uncertainty, expected.uncertainty)


def test_a_volume_survives_the_kill_and_restart_of_the_server_in_volume_mode(mortal: Service) -> None:
    def segment() -> Segmentation:
        remote = mortal.client("grpc")
        return segment_on_server(LONG_VOLUME, mortal.model, remote, gate=True)[0]

    def stop_in_the_middle(server: LocalServer) -> None:
        while tiles_done(server, "ucseg_merged") < 5:
            time.sleep(0.005)
        for stub in children_of(server.process.pid, "ucseg_merged"):
            os.kill(stub, signal.SIGSTOP)

    result = segment_over_a_kill(mortal, segment, stop_in_the_middle)
    np.testing.assert_array_equal(result.label_map, embedded(mortal, LONG_VOLUME).label_map)


def test_another_server_takes_over_in_the_middle_of_a_volume(
    service: Service, running: LocalServer, mortal: Service, expected: Segmentation, caplog: pytest.LogCaptureFixture
) -> None:
    left: list[int] = []
    before = tiles_done(running, "ucseg_subnet_a")
    with mortal.start() as server:

        def kill_in_the_middle(done: int, total: int) -> None:
            if 2 * done >= total and not left:
                server.process.kill()
                server.process.wait()
                left.append(total - done)

        addresses = (*mortal.client("grpc").addresses, *service.client("grpc").addresses)
        result = service.segment(TritonServer(addresses, timeout_s=60.0), kill_in_the_middle)
    np.testing.assert_array_equal(result.label_map, expected.label_map)
    np.testing.assert_array_equal(result.uncertainty, expected.uncertainty)
    assert left
    assert left[0] > 0, "the first server must die in the middle"
    by_the_second = tiles_done(running, "ucseg_subnet_a") - before
    under_way = TritonServer(addresses).in_flight  # these the first one may have answered before it died
    assert left[0] - under_way <= by_the_second <= left[0], "the second one computes the rest, and no more"
    assert f"grpc://127.0.0.1:{mortal.local.grpc_port}" in caplog.text, "the change is told"


def tiles_done(server: LocalServer, model: str) -> int:
    """Tiles that a model of the server has computed."""
    text = requests.get(server.metrics_url, timeout=5.0).text
    lines = [line for line in text.splitlines() if line.startswith(f'nv_inference_count{{model="{model}"')]
    return int(lines[0].split()[-1]) if lines else 0


def segment_over_a_kill(
    mortal: Service, segment: Callable[[], Segmentation], until_the_middle: Callable[[LocalServer], object]
) -> Segmentation:
    """Kill the server in the middle of a volume, start another one at the same ports, and wait for the result."""
    with ThreadPoolExecutor(1) as pool:
        with mortal.start() as server:
            running = pool.submit(segment)
            until_the_middle(server)
            assert not running.done(), "the server must die in the middle"
            server.process.kill()
            server.process.wait()
        with mortal.start():
            return running.result(timeout=120.0)


def test_a_volume_on_a_server_that_stays_dead_ends_in_an_error_in_time_and_nothing_is_left(mortal: Service) -> None:
    killed: list[float] = []
    with mortal.start() as server:
        group = os.getpgid(server.process.pid)
        arguments = [str(argument) for argument in server.process.args]
        regions = next(item.rpartition("=")[2] for item in arguments if "shm-region-prefix-name" in item)
        assert list(Path("/dev/shm").glob(f"{regions}*")), "the Python models have shared memory while they run"  # noqa: S108

        def kill(done: int, total: int) -> None:
            if not killed:
                server.process.kill()
                killed.append(time.monotonic())

        with pytest.raises(BackendError, match="no answer after"):
            mortal.segment(mortal.client("grpc", timeout_s=NO_ANSWER_S), kill)
        # Two requests are in flight, and the one that fails first ends the volume.
        assert time.monotonic() - killed[0] < NO_ANSWER_S + SLACK_S
    deadline = time.monotonic() + 10.0
    while any(group_of(path) == group for path in Path("/proc").glob("[0-9]*/stat")):
        assert time.monotonic() < deadline, "processes of the server are left"
        time.sleep(0.1)
    assert regions
    assert list(Path("/dev/shm").glob(f"{regions}*")) == []  # noqa: S108  (where Linux shows shared memory)


def group_of(stat: Path) -> int:
    try:
        fields = stat.read_text(encoding="utf-8").rpartition(")")[2].split()
    except OSError:  # it ended meanwhile
        return -1
    return -1 if fields[0] == "Z" else int(fields[2])
