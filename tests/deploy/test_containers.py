"""What the chart's containers run is run here: fetch from a real S3 server, verify, start line, canary."""

from __future__ import annotations

import copy
import json
import os
import re
import shutil
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import requests
import trustme
from typer.testing import CliRunner

from tests.deploy.chart import Rendered, rendered, values_of
from tests.deploy.started import START, Started, program, started
from tests.processes import free_port
from tests.proof_phantom import proven
from tests.served_phantom import PHANTOM
from ucseg_runtime.backends import open_backend
from ucseg_runtime.config import InferenceOptions
from ucseg_runtime.errors import BackendError
from ucseg_runtime.server_options import TlsFiles, TritonServer, server_address
from ucseg_serving.cli.app import app
from ucseg_serving.health import served_model
from ucseg_serving.repository_digest import repository_digest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("containers")
    arguments = ["repository", proven(PHANTOM.write(folder / "phantom")), "--out", folder / "models"]
    made = CliRunner().invoke(app, [str(item) for item in (*arguments, "--volume-memory", 1)])
    assert made.exit_code == 0, made.output
    return folder / "models"


def chart(name: str, repository: Path) -> Rendered:
    values = copy.deepcopy(values_of(name))
    values["modelRepository"]["digest"] = repository_digest(repository)
    return rendered(values)


def run(command: Sequence[str], places: Mapping[str, object], **settings: str) -> subprocess.CompletedProcess[str]:
    """Run a container's command here, with what is mounted or listens there at its place here."""
    for there, here in places.items():
        command = [str(here) if word == there else word for word in command]
    return subprocess.run(
        [program(command[0]), *command[1:]],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **settings},
    )


def test_the_image_starts_with_the_start_line_and_has_it() -> None:
    image = (ROOT / "Dockerfile").read_text(encoding="utf-8").partition(" AS triton\n")[2]
    (entrypoint,) = re.findall(r"^ENTRYPOINT (.+)$", image, re.MULTILINE)
    assert json.loads(entrypoint) == ["/bin/sh", f"/opt/ucseg/{START.relative_to(ROOT)}"]
    assert re.search(r"^COPY serving serving$", image, re.MULTILINE)
    assert re.search(r"^WORKDIR /opt/ucseg$", image, re.MULTILINE)


def test_the_repository_is_checked_against_its_digest_before_a_server_starts(repository: Path) -> None:
    command = chart("volume", repository).initial("verify")["command"]
    assert run(command, {"/models": repository}).returncode == 0
    other = rendered(values_of("volume")).initial("verify")["command"]
    refused = run(other, {"/models": repository})
    assert refused.returncode == 4
    assert "UCSEG-E133" in refused.stderr


@contextmanager
def s3_server(folder: Path, key: str, secret: str) -> Iterator[str]:
    port = free_port()
    command = [program("rclone"), "serve", "s3", "--config=", f"--addr=127.0.0.1:{port}", f"--auth-key={key},{secret}"]
    with subprocess.Popen([*command, folder], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as server:
        try:
            deadline = time.monotonic() + 60.0
            while time.monotonic() < deadline:
                try:
                    requests.get(f"http://127.0.0.1:{port}", timeout=2.0)
                    break
                except requests.ConnectionError:
                    time.sleep(0.1)
            yield f"http://127.0.0.1:{port}"
        finally:
            server.terminate()


def test_a_repository_comes_whole_out_of_an_object_store(repository: Path, tmp_path: Path) -> None:
    shutil.copytree(repository, tmp_path / "store" / "models" / "torso-ct-demo")
    pod = chart("object-store", repository)
    fetch = pod.initial("fetch")
    command, places = [*fetch["command"], *fetch["args"]], {"/models": tmp_path / "pod"}
    with s3_server(tmp_path / "store", "site", "words-of-the-site") as endpoint:
        settings = {
            "RCLONE_CONFIG_STORE_TYPE": "s3",
            "RCLONE_CONFIG_STORE_PROVIDER": "Other",
            "RCLONE_CONFIG_STORE_ENDPOINT": endpoint,
            "RCLONE_CONFIG_STORE_ACCESS_KEY_ID": "site",
            "RCLONE_CONFIG_STORE_SECRET_ACCESS_KEY": "words-of-the-site",
        }
        fetched = run(command, places, **settings)
        assert fetched.returncode == 0, fetched.stderr
        stranger = run(
            command, {"/models": tmp_path / "stranger"}, **settings | {"RCLONE_CONFIG_STORE_SECRET_ACCESS_KEY": "x"}
        )
        assert stranger.returncode != 0, "the store must ask for its key, or nothing is shown here"
    assert run(pod.initial("verify")["command"], places).returncode == 0
    assert repository_digest(tmp_path / "pod") == repository_digest(repository)


def test_the_image_that_fetches_is_of_the_release_that_is_tested_here() -> None:
    version = subprocess.run([program("rclone"), "version"], capture_output=True, text=True, check=True).stdout
    image = rendered(values_of("object-store")).initial("fetch")["image"]
    assert f"rclone v{image.partition(':')[2]}\n" in version


@pytest.fixture(scope="module")
def plain(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Started]:
    arguments = chart("cpu", repository).server["args"]
    with started(arguments, repository, tmp_path_factory.mktemp("plain") / "log") as server:
        yield server


def test_the_startup_probe_finds_a_server_that_segments(plain: Started, repository: Path) -> None:
    probe = chart("cpu", repository).server["startupProbe"]["exec"]["command"]
    places = {"/models": repository, "http://127.0.0.1:8000": plain.url}
    healthy = run(probe, places)
    assert healthy.returncode == 0, healthy.stderr
    assert "ucseg_volume: ok" in healthy.stdout


def test_paths_of_the_probes_are_those_of_the_server(plain: Started, repository: Path) -> None:
    server = chart("cpu", repository).server
    for probe in ("livenessProbe", "readinessProbe"):
        assert requests.get(plain.url + server[probe]["httpGet"]["path"], timeout=10.0).status_code == 200


def test_what_changes_or_reveals_the_server_is_closed(plain: Started) -> None:
    for path in ("/v2/repository/models/ucseg_tiles/unload", "/v2/systemsharedmemory/region/x/register"):
        assert requests.post(plain.url + path, data=b"{}", timeout=10.0).status_code == 403
    for path in ("/v2/models/ucseg_tiles/stats", "/v2/logging", "/v2/trace/setting", "/v2/systemsharedmemory/status"):
        assert requests.get(plain.url + path, timeout=10.0).status_code == 403


def test_the_server_writes_no_core_files(plain: Started) -> None:
    limits = Path(f"/proc/{plain.process}/limits").read_text(encoding="ascii")
    assert re.search(r"^Max core file size +0 +0 ", limits, re.MULTILINE)
    assert Path(f"/proc/{plain.process}/comm").read_text(encoding="ascii").strip() == "tritonserver"


def test_grpc_wants_a_certificate_where_the_chart_has_tls(repository: Path, tmp_path: Path) -> None:
    authority = trustme.CA()
    mounted, site = tmp_path / "tls", tmp_path / "site"
    for folder, identity in ((mounted, "127.0.0.1"), (site, "segmenter.example")):
        folder.mkdir()
        certificate = authority.issue_cert(identity)
        certificate.private_key_pem.write_to_path(folder / "tls.key")
        for blob in certificate.cert_chain_pems:
            blob.write_to_path(folder / "tls.crt", append=True)
        authority.cert_pem.write_to_path(folder / "ca.crt")
    server: dict[str, Any] = chart("tls", repository).server
    arguments = [argument.replace("=/tls/", f"={mounted}/") for argument in server["args"]]
    model = served_model(repository)
    tile = np.zeros((1, 1, *PHANTOM.tile_shape), dtype=np.float32)
    with started(arguments, repository, tmp_path / "log") as running:
        address = (server_address(f"grpcs://127.0.0.1:{running.grpc}"),)
        known = TritonServer(address, timeout_s=30.0, tls=TlsFiles(site / "ca.crt", site / "tls.crt", site / "tls.key"))
        with open_backend(model, InferenceOptions(server=known)) as backend:
            assert backend.infer(tile).probabilities.shape == (1, 3, *PHANTOM.tile_shape)
        unknown = TritonServer(address, timeout_s=3.0, tls=TlsFiles(site / "ca.crt"))
        with pytest.raises(BackendError), open_backend(model, InferenceOptions(server=unknown)) as backend:
            backend.infer(tile)
        probe = server["startupProbe"]["exec"]["command"]
        healthy = run(probe, {"/models": repository, "http://127.0.0.1:8000": running.url})
        assert healthy.returncode == 0, healthy.stderr
