"""gRPC over TLS and mutual TLS against a real server: who has no right certificate gets a clear error, and soon."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from tests.encrypted_server import Certificates, encrypted, tls_proxy, write_certificates
from tests.phantoms import CtPhantom, write_ct_series
from tests.served_phantom import PHANTOM, ServedPhantom
from ucseg_runtime.backends import open_backend
from ucseg_runtime.cli.app import app
from ucseg_runtime.config import InferenceOptions
from ucseg_runtime.errors import BackendError, BackendUnavailableError
from ucseg_runtime.evidence import probabilities_from_logits
from ucseg_runtime.server_options import TlsFiles, TritonServer, server_address
from ucseg_serving.cli.app import app as serving_app

TILE = np.zeros((1, 1, *PHANTOM.tile_shape), dtype=np.float32)
NO_ANSWER_S = 3.0
AT_ONCE_S = 10.0
PATIENCE_S = 60.0

pytestmark = pytest.mark.timeout(600)


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return write_certificates(tmp_path_factory.mktemp("certificates"))


@pytest.fixture(scope="module")
def one_sided(certificates: Certificates, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServedPhantom]:
    """A server that any client may use."""
    with encrypted(tmp_path_factory.mktemp("served"), certificates) as served:
        yield served


@pytest.fixture(scope="module")
def mutual(certificates: Certificates, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServedPhantom]:
    """A server that wants a certificate of its clients."""
    with encrypted(tmp_path_factory.mktemp("served"), certificates, mutual=True) as served:
        yield served


def infer(served: ServedPhantom, tls: TlsFiles, url: str = "", timeout_s: float = PATIENCE_S) -> None:
    """One tile, whose answer must be right."""
    address = server_address(url or served.server.grpc_url.replace("grpc://", "grpcs://"))
    options = InferenceOptions(server=TritonServer((address,), timeout_s=timeout_s, tls=tls))
    with open_backend(served.model, options) as backend:
        found = backend.infer(TILE).probabilities
    np.testing.assert_allclose(found, probabilities_from_logits(PHANTOM.fused_logits(TILE), "softmax"), atol=2e-6)


def test_tls_with_an_authority_of_its_own(one_sided: ServedPhantom, certificates: Certificates) -> None:
    infer(one_sided, TlsFiles(certificates["authority"]))


def test_mutual_tls(mutual: ServedPhantom, certificates: Certificates) -> None:
    infer(mutual, certificates.client)


@pytest.mark.parametrize("name", ["segment", "batch"])
def test_command_over_mutual_tls_with_a_token(
    name: str, mutual: ServedPhantom, certificates: Certificates, tmp_path: Path
) -> None:
    token = tmp_path / "token"
    token.write_text("secret-of-the-test\n")
    write_ct_series(tmp_path / "study", CtPhantom())
    url = mutual.server.grpc_url.replace("grpc://", "grpcs://")
    command = [name, tmp_path / "study", "--out", tmp_path / "out", "--model", mutual.model.folder]
    files = ["--tls-ca", certificates["authority"], "--tls-cert", certificates["client"]]
    key = ["--tls-key", certificates["client-key"]]
    arguments = [*command, "--engine", "triton", "--url", url, *files, *key, "--token-file", token]
    finished = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert finished.exit_code == 0, finished.output
    assert len(list((tmp_path / "out").rglob("segmentation.dcm"))) == 1


def test_health_over_mutual_tls(mutual: ServedPhantom, certificates: Certificates) -> None:
    url = mutual.server.grpc_url.replace("grpc://", "grpcs://")
    command = ["health", mutual.model.folder, "--url", url, "--timeout", PATIENCE_S]
    files = {"--tls-ca": "authority", "--tls-cert": "client", "--tls-key": "client-key"}
    arguments = [*command, *(item for option, name in files.items() for item in (option, certificates[name]))]
    finished = CliRunner().invoke(serving_app, [str(argument) for argument in arguments])
    assert finished.exit_code == 0, finished.output
    assert finished.stdout.count(": ok, ") == 2


@pytest.mark.parametrize("mode", ["tile", "volume"])
def test_https_with_a_token_through_a_proxy(
    mode: str, served_phantom: ServedPhantom, certificates: Certificates, tmp_path: Path
) -> None:
    """Triton's HTTP port knows no TLS: a proxy in front of it does, and sees the token."""
    write_ct_series(tmp_path / "study", CtPhantom())
    (tmp_path / "token").write_text("s3cret\n")
    port = int(served_phantom.server.http_url.rpartition(":")[2])
    with tls_proxy(port, certificates) as (url, seen):
        command = ["segment", tmp_path / "study", "--out", tmp_path / "out", "--model", served_phantom.model.folder]
        served = ["--engine", "triton", "--url", url, "--triton-mode", mode, "--timeout", PATIENCE_S]
        files = ["--tls-ca", certificates["authority"], "--token-file", tmp_path / "token"]
        finished = CliRunner().invoke(app, [str(argument) for argument in [*command, *served, *files]])
        assert finished.exit_code == 0, finished.output
        with pytest.raises(BackendUnavailableError, match=r"certificate of https://127.*is not trusted.*--tls-ca"):
            infer(served_phantom, TlsFiles(certificates["other-authority"]), url)
    assert (tmp_path / "out" / "segmentation.dcm").is_file()
    assert b"authorization: bearer s3cret" in bytes(seen).lower()


def test_a_server_of_an_unknown_authority_is_refused_at_once(
    one_sided: ServedPhantom, certificates: Certificates
) -> None:
    started = time.monotonic()
    with pytest.raises(
        BackendUnavailableError, match=r"certificate of grpcs://127.*is not trusted.*--tls-ca"
    ) as caught:
        infer(one_sided, TlsFiles(certificates["other-authority"]))
    assert time.monotonic() - started < AT_ONCE_S
    assert caught.value.exit_code == 5


def test_a_server_of_another_name_is_refused_at_once(one_sided: ServedPhantom, certificates: Certificates) -> None:
    url = one_sided.server.grpc_url.replace("grpc://127.0.0.1", "grpcs://localhost")
    started = time.monotonic()
    with pytest.raises(BackendUnavailableError, match="certificate of grpcs://localhost.*is not trusted"):
        infer(one_sided, TlsFiles(certificates["authority"]), url)
    assert time.monotonic() - started < AT_ONCE_S


def test_a_missing_client_certificate_is_told_at_once_and_ends_in_time(
    mutual: ServedPhantom, certificates: Certificates, caplog: pytest.LogCaptureFixture
) -> None:
    started = time.monotonic()
    with pytest.raises(BackendError, match="may want a certificate of this client: --tls-cert, --tls-key") as caught:
        infer(mutual, TlsFiles(certificates["authority"]), timeout_s=NO_ANSWER_S)
    assert time.monotonic() - started < NO_ANSWER_S + AT_ONCE_S
    assert caught.value.code == "UCSEG-E140"
    assert "may want a certificate of this client" in caplog.records[0].getMessage()


def test_a_client_without_tls_is_told_that_the_server_may_want_it(mutual: ServedPhantom) -> None:
    with pytest.raises(BackendError, match="may want TLS: grpcs://") as caught:
        infer(mutual, TlsFiles(), mutual.server.grpc_url, timeout_s=NO_ANSWER_S)
    assert caught.value.code == "UCSEG-E140"


@pytest.mark.parametrize(
    ("authority", "key"), [("absent", "client-key"), ("nothing", "client-key"), ("authority", "server-key")]
)
def test_files_that_cannot_be_used_are_refused_at_once(
    mutual: ServedPhantom, certificates: Certificates, authority: str, key: str
) -> None:
    started = time.monotonic()
    with pytest.raises(BackendUnavailableError, match="TLS files cannot be used.*--tls-ca, --tls-cert, --tls-key"):
        infer(mutual, TlsFiles(certificates[authority], certificates["client"], certificates[key]))
    assert time.monotonic() - started < AT_ONCE_S
