"""``ucseg-serve local`` starts Triton again when a Python model has lost its process."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import requests
from tritonclient import grpc
from tritonclient.utils import InferenceServerException

from tests.processes import LOOPBACK, free_port
from tests.proof_phantom import proven
from tests.served_phantom import PHANTOM
from tests.volume_phantom import STRAIGHT, centred_geometry, volume_of
from ucseg_runtime.backends import open_backend
from ucseg_runtime.backends.triton_volume import segment_on_server
from ucseg_runtime.config import InferenceOptions
from ucseg_runtime.model_folder import Model, load_model
from ucseg_runtime.pipeline import segment_volume
from ucseg_runtime.segmentation import Segmentation
from ucseg_runtime.server_options import Scheme, TritonServer, server_address
from ucseg_serving.model_processes import model_processes

pytestmark = pytest.mark.timeout(240)

VOLUME = volume_of(centred_geometry((20, 60, 70), (2.0, 1.5, 1.2), STRAIGHT))
VOLUME_STEP = 2.0**-11
"""Volumes come back with their uncertainty in 16 bits."""


@dataclass(frozen=True)
class Kept:
    """A running ``ucseg-serve local``."""

    model: Model
    program: subprocess.Popen[bytes]
    http: int
    grpc: int
    errors: Path

    @property
    def triton(self) -> int:
        children = Path(f"/proc/{self.program.pid}/task/{self.program.pid}/children").read_text(encoding="ascii")
        (triton,) = children.split()
        return int(triton)

    def server(self, scheme: Scheme) -> TritonServer:
        port = self.grpc if scheme == "grpc" else self.http
        return TritonServer((server_address(f"{scheme}://{LOOPBACK}:{port}"),), timeout_s=60.0)

    @property
    def said(self) -> str:
        return self.errors.read_text(encoding="utf-8")

    def times_ready_again(self, at_least: int = 0) -> int:
        """How often it has been; waits until it has been so often."""
        deadline = time.monotonic() + 60.0
        while (times := self.said.count("Triton is ready again")) < at_least and time.monotonic() < deadline:
            time.sleep(0.1)
        return times

    @contextmanager
    def answers_to_others(self) -> Iterator[set[str]]:
        """What somebody is answered who asks all the time whether the server is ready."""
        answers: set[str] = set()
        stop = threading.Event()

        def ask() -> None:
            while not stop.wait(0.1):
                answers.add(requests.get(f"http://{LOOPBACK}:{self.http}/v2/health/ready", timeout=30.0).text)

        with ThreadPoolExecutor(1) as thread:
            asking = thread.submit(ask)
            try:
                yield answers
            finally:
                stop.set()
                asking.result()


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kept]:
    folder = tmp_path_factory.mktemp("kept")
    model = load_model(proven(PHANTOM.write(folder / "phantom")))
    ports = {name: free_port() for name in ("http", "grpc", "metrics")}
    command = [Path(sys.executable).with_name("ucseg-serve"), "local", model.folder, "--engine", "openvino"]
    flags = [f"--{name}-port={port}" for name, port in ports.items()]
    errors = folder / "errors"
    with (
        errors.open("wb") as stream,
        subprocess.Popen([*command, *flags, "--volume-memory", "1"], stdout=subprocess.PIPE, stderr=stream) as program,
    ):
        try:
            assert program.stdout is not None
            assert program.stdout.readline().startswith(b"ready: "), errors.read_text(encoding="utf-8")
            yield Kept(model, program, ports["http"], ports["grpc"], errors)
        finally:
            program.terminate()
            try:
                program.wait(90.0)
            except subprocess.TimeoutExpired:
                program.kill()
                raise


@pytest.fixture(scope="module")
def expected(kept: Kept) -> Segmentation:
    options = InferenceOptions(engine="openvino", precision="f32")
    with open_backend(kept.model, options) as backend:
        return segment_volume(VOLUME, kept.model.manifest, backend, options)


def assert_same(found: Segmentation, expected: Segmentation, *, tolerance: float = 0.0) -> None:
    np.testing.assert_array_equal(found.label_map, expected.label_map)
    np.testing.assert_allclose(found.uncertainty, expected.uncertainty, rtol=0.0, atol=tolerance)


@pytest.mark.parametrize(
    "shape",
    [
        (0, 2**40, 2**40),
        pytest.param((2**62, 99999, 0), marks=pytest.mark.long),
        pytest.param((2**32, 2**32, 1), marks=pytest.mark.long),
        pytest.param((2**61, 4, 1), marks=pytest.mark.long),
    ],
)
def test_volumes_go_on_after_a_shape_over_grpc_that_ended_the_volume_model(
    kept: Kept, expected: Segmentation, shape: tuple[int, ...]
) -> None:
    before, times = kept.triton, kept.times_ready_again()
    voxels = grpc.InferInput("VOLUME", shape, "INT16")
    voxels._raw_content = b""  # the client itself has no such array
    affine = grpc.InferInput("AFFINE", [4, 4], "FP64").set_data_from_numpy(np.eye(4))
    with grpc.InferenceServerClient(f"{LOOPBACK}:{kept.grpc}") as client, pytest.raises(InferenceServerException):
        client.infer("ucseg_volume", [voxels, affine], client_timeout=30.0)
    found, _ = segment_on_server(VOLUME, kept.model, kept.server("grpc"), gate=True)
    assert_same(found, expected, tolerance=VOLUME_STEP)
    assert kept.times_ready_again(times + 1) == times + 1
    assert "a process of ucseg_volume ended; Triton is started again" in kept.said
    assert kept.triton != before


def test_a_volume_in_tiles_over_http_outlives_the_end_of_a_model_that_it_needs(
    kept: Kept, expected: Segmentation
) -> None:
    times = kept.times_ready_again()
    killed = threading.Event()

    def kill_in_the_middle(done: int, total: int) -> None:
        if 2 * done >= total and not killed.is_set():
            killed.set()
            of_model = [process for process, name in model_processes(kept.triton).items() if name == "ucseg_subnet_a"]
            os.kill(of_model[0], signal.SIGKILL)

    options = InferenceOptions(server=kept.server("http"))
    with open_backend(kept.model, options) as backend, kept.answers_to_others() as answers:
        found = segment_volume(VOLUME, kept.model.manifest, backend, options, kill_in_the_middle)
    assert killed.is_set()
    assert_same(found, expected)
    assert kept.times_ready_again(times + 1) == times + 1
    assert '{"error": "the server behind this port starts, or stops"}' in answers


def test_the_repository_is_left_alone_by_cleaners_of_old_files(kept: Kept) -> None:
    """They pass by what is locked (systemd-tmpfiles)."""
    arguments = Path(f"/proc/{kept.triton}/cmdline").read_bytes().decode().split("\0")
    (repository,) = (each.partition("=")[2] for each in arguments if each.startswith("--model-repository="))
    folder = os.open(Path(repository).parent, os.O_RDONLY)
    try:
        with pytest.raises(BlockingIOError):
            fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
    finally:
        os.close(folder)


def test_a_server_that_ends_itself_ends_the_command(kept: Kept) -> None:
    """The last test: whoever started the command sees that it ended."""
    os.kill(kept.triton, signal.SIGKILL)
    assert kept.program.wait(60.0) == 5
    assert "UCSEG-E140 BackendError: Triton ended with -9" in kept.said
    assert "Traceback" not in kept.said
