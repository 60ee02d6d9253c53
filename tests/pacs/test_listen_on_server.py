"""The listener with a real Triton server that segments for it: results, TLS, and a server that is not there yet."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import requests
from typer.testing import CliRunner, Result

from tests.batch.exports import TINY
from tests.encrypted_server import Certificates, encrypted, write_certificates
from tests.pacs.archive import RESULTS, TestArchive
from tests.pacs.listening import listening
from tests.pacs.programs import PacsPrograms
from tests.phantoms import CtPhantom, write_ct_series
from tests.processes import LOOPBACK, free_port
from tests.served_phantom import PHANTOM, ServedPhantom, serve_phantom
from ucseg_runtime.cli.app import app
from ucseg_serving.local_server import LocalOptions

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]

ENGINE = "triton-openvino"


def study(folder: Path, name: str) -> tuple[CtPhantom, list[Path]]:
    phantom = replace(TINY, study=f"on a server, {name}")
    return phantom, write_ct_series(folder / name, phantom)


def options(archive: str, model: Path, url: str, *more: object) -> list[object]:
    server = ("--engine", "triton", "--url", url)
    return ["--forward", archive, "--model", model, *server, "--quiet-time", 0.5, *more]


def assert_made_on_the_server(archive: TestArchive, study_uid: str) -> None:
    assert archive.modalities(study_uid) == RESULTS
    for name, content in archive.results(study_uid).items():
        assert ENGINE in json.dumps(content), name


@pytest.mark.parametrize("way", ["tiles", "volumes", "shared memory"])
def test_series_is_segmented_on_the_server_and_says_so(
    way: str, served_phantom: ServedPhantom, archive: TestArchive, pacs_programs: PacsPrograms, tmp_path: Path
) -> None:
    more = {"tiles": (), "volumes": ("--triton-mode", "volume"), "shared memory": ("--shared-memory",)}[way]
    phantom, files = study(tmp_path, way)
    of_server = options(archive.dimse, served_phantom.model.folder, served_phantom.server.grpc_url, *more)
    with listening(tmp_path / "listener", *of_server) as listener:
        assert pacs_programs.send(files, "UCSEG", listener.port) == 0
        archive.wait_for(phantom.study_uid, RESULTS)

    assert_made_on_the_server(archive, phantom.study_uid)
    assert "shared memory" not in listener.said, "of which the client says where it cannot be had"


def test_series_waits_for_a_server_that_is_away(
    archive: TestArchive, pacs_programs: PacsPrograms, tmp_path: Path
) -> None:
    model = PHANTOM.write(tmp_path / "model")
    port = free_port()
    phantom, files = study(tmp_path, "away")
    url = f"grpc://{LOOPBACK}:{port}"
    with listening(tmp_path / "listener", *options(archive.dimse, model, url, "--timeout", 10)) as listener:
        assert pacs_programs.send(files, "UCSEG", listener.port) == 0
        listener.wait_until_it_says("Next try in")
        said = listener.said
        ready = requests.get(f"http://{LOOPBACK}:{listener.monitor_port}/readyz", timeout=10.0)
        with serve_phantom(tmp_path / "served", local=LocalOptions(grpc_port=port, stop_timeout_s=5.0)):
            archive.wait_for(phantom.study_uid, RESULTS, 120.0)

        assert "UCSEG-E140 no answer after" in said
        assert f"at last from {url}" in said
        assert ready.status_code == 200, "it takes more in the meantime"
        assert "UCSEG-E140" in str(ready.json()["waits"])
        assert "failed:" not in listener.said
        assert_made_on_the_server(archive, phantom.study_uid)


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return write_certificates(tmp_path_factory.mktemp("certificates"))


@pytest.fixture(scope="module")
def mutual(certificates: Certificates, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServedPhantom]:
    """A server that wants a certificate of its clients."""
    with encrypted(tmp_path_factory.mktemp("served"), certificates, mutual=True) as served:
        yield served


def test_series_goes_to_a_server_by_mutual_tls_with_a_token_once_it_is_trusted(
    mutual: ServedPhantom,
    certificates: Certificates,
    archive: TestArchive,
    pacs_programs: PacsPrograms,
    tmp_path: Path,
) -> None:
    token = tmp_path / "token"
    token.write_text("secret-of-the-test\n")
    phantom, files = study(tmp_path, "TLS")
    ours = ("--triton-tls-cert", certificates["client"], "--triton-tls-key", certificates["client-key"])
    url = mutual.server.grpc_url.replace("grpc://", "grpcs://")
    known = options(archive.dimse, mutual.model.folder, url, *ours, "--triton-token-file", token, "--triton-tls-ca")
    with listening(tmp_path / "listener", *known, certificates["other-authority"]) as listener:
        assert pacs_programs.send(files, "UCSEG", listener.port) == 0
        listener.wait_until_it_says("is not trusted")
        listener.wait_until_it_says("Name its authority with --triton-tls-ca. Next try in")
        listener.kill()
        listener.options = [str(option) for option in (*known, certificates["authority"])]
        listener.start()
        archive.wait_for(phantom.study_uid, RESULTS)

    assert_made_on_the_server(archive, phantom.study_uid)
    assert "secret-of-the-test" not in listener.said


def refused(*options: object) -> Result:
    """A listener that must not start."""
    arguments = ("pacs", "listen", "--port", 0, "--host", LOOPBACK, "--monitor", "off", *options)
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_options_of_the_server_that_are_wrong_are_told_by_their_names_at_the_start(
    certificates: Certificates, tiny_model: Path, tmp_path: Path
) -> None:
    spool = tmp_path / "spool"
    own = ("--forward", f"ORTHANC@{LOOPBACK}:4242", "--model", tiny_model, "--spool", spool)
    nothing, absent = certificates["nothing"], certificates["absent"]
    on_server = ("--engine", "triton", "--url", f"grpcs://{LOOPBACK}:8001")
    http = ("--engine", "triton", "--url", f"http://{LOOPBACK}:8000")
    elsewhere = ("--engine", "triton", "--url", "grpc://192.0.2.1:8001")
    for arguments, exit_code, said in (
        ((*on_server, "--triton-tls-ca", nothing), 5, "--triton-tls-ca, --triton-tls-cert, --triton-tls-key"),
        ((*on_server, "--triton-tls-cert", nothing), 2, "--triton-tls-cert and --triton-tls-key belong together"),
        ((*on_server, "--triton-token-file", absent), 2, "--triton-token-file"),
        ((*elsewhere, "--triton-token-file", nothing), 5, "a token would be sent to grpc://192.0.2.1:8001 unencrypted"),
        ((*http, "--shared-memory"), 5, "shared memory is offered with gRPC alone"),
        (("--triton-tls-ca", nothing), 2, "needs --engine triton"),
    ):
        finished = refused(*own, *arguments)

        assert finished.exit_code == exit_code, finished.output
        assert said in " ".join(finished.stderr.replace("│", " ").split())
        assert not spool.exists()
