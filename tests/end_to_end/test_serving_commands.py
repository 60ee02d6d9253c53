"""The commands of the serving guide with the shipped model: repository, server, study, in processes of their own."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import requests
from pydicom import dcmread

from tests.phantoms import CtPhantom, write_ct_series
from tests.processes import heeding_interrupts

BIN = Path(sys.executable).parent

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


def command(name: str, *arguments: object) -> list[str]:
    return [str(BIN / name), *(str(argument) for argument in arguments)]


@pytest.fixture(scope="module")
def urls(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[str]]:
    """URLs of a running ``ucseg-serve local``; it must end without an error when it is interrupted."""
    repository = tmp_path_factory.mktemp("serving") / "models"
    made = subprocess.run(
        command("ucseg-serve", "repository", "--out", repository),
        capture_output=True,
        text=True,
        check=False,
    )
    assert made.returncode == 0, made.stderr
    ports = ("--http-port", 0, "--grpc-port", 0, "--metrics-port", 0, "--ready-timeout", 300)
    with subprocess.Popen(
        command("ucseg-serve", "local", repository, *ports),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=heeding_interrupts,
    ) as server:
        try:
            assert server.stdout is not None
            line = server.stdout.readline()
            assert line.startswith("ready: grpc://127.0.0.1:"), line
            yield line.split()[1:3]
            server.send_signal(signal.SIGINT)
            output, errors = server.communicate(timeout=120)
        finally:
            server.kill()  # does nothing to one that has ended
    assert (server.returncode, output) == (0, ""), errors
    assert errors == "stopping\n"


def segment(study: Path, out: Path, *arguments: object) -> dict[str, Any]:
    finished = subprocess.run(
        command("ucseg", "segment", study, "--out", out, "--json", *arguments),
        capture_output=True,
        text=True,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr + finished.stdout
    report: dict[str, Any] = json.loads(finished.stdout)
    return report


def test_the_demo_model_gives_the_same_voxels_through_a_server(urls: list[str], tmp_path: Path) -> None:
    grpc, http = urls
    write_ct_series(tmp_path / "study", CtPhantom())
    here = segment(tmp_path / "study", tmp_path / "here", "--engine", "openvino", "--precision", "f32")
    ways = {
        "tile": ("--url", grpc),
        "tile-http": ("--url", http),
        "volume": ("--url", grpc, "--triton-mode", "volume"),
    }
    for way, arguments in ways.items():
        there = segment(tmp_path / "study", tmp_path / way, "--engine", "triton", *arguments)
        assert there["engine"]["name"] == "triton-openvino"
        assert [item["voxels"] for item in there["measurements"]] == [item["voxels"] for item in here["measurements"]]
        for name, steps in (("segmentation.dcm", 0), ("uncertainty.dcm", 1)):
            found, expected = (dcmread(tmp_path / place / name).pixel_array.astype(int) for place in (way, "here"))
            assert np.abs(found - expected).max() <= steps, (way, name)


def ignoring_interrupts() -> None:
    """As a shell starts what goes into the background."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def test_a_server_in_the_background_is_stopped_by_sigterm_alone() -> None:
    folder = Path(str(resources.files("ucseg_runtime"))) / "selftest_model"
    ports = ("--http-port", 0, "--grpc-port", 0, "--metrics-port", 0, "--ready-timeout", 300)
    with subprocess.Popen(
        command("ucseg-serve", "local", folder, "--no-gate", *ports),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=ignoring_interrupts,
    ) as server:
        try:
            assert server.stdout is not None
            url = server.stdout.readline().split()[2]
            server.send_signal(signal.SIGINT)
            time.sleep(1.0)
            assert requests.get(f"{url}/v2/health/ready", timeout=10.0).status_code == 200
            server.terminate()
            _, errors = server.communicate(timeout=120)
        finally:
            server.kill()  # does nothing to one that has ended
    assert (server.returncode, "UCSEG-E198" in errors) == (143, True)
    with pytest.raises(requests.ConnectionError):
        requests.get(f"{url}/v2/health/ready", timeout=10.0)
