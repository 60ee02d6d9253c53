"""The HTTP transport of a Triton client, with servers that answer as a test says."""

from __future__ import annotations

import json
import socket
import ssl
import struct
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import trustme

from ucseg_runtime.backends.triton_connection import (
    AnyArray,
    Call,
    TransientError,
)
from ucseg_runtime.backends.triton_http import HttpConnection
from ucseg_runtime.backends.triton_tensors import TritonTensor
from ucseg_runtime.errors import (
    BackendError,
    BackendUnavailableError,
)
from ucseg_runtime.server_options import TlsFiles, TritonServer, server_address

OUTPUT = TritonTensor("OUT", "FP32", (2, 3))
CALL = Call("model", {"IN": np.zeros((2, 3), dtype=np.float32)}, (OUTPUT,))
ANSWER = {"OUT": np.ones((2, 3), dtype=np.float32)}
TOKEN = "-".join(["made", "up"])

Answerer = Callable[[socket.socket], None]


@pytest.fixture
def answering() -> Iterator[Callable[..., int]]:
    """Starts one-connection servers that answer with given bytes, and says their ports."""
    with closing(_Listeners()) as listeners:
        yield listeners.start


class _Listeners:
    def __init__(self) -> None:
        self._sockets: list[socket.socket] = []

    def start(self, answer: Answerer, context: ssl.SSLContext | None = None) -> int:
        listener = socket.create_server(("127.0.0.1", 0))
        self._sockets.append(listener)
        threading.Thread(target=self._serve, args=(listener, answer, context), daemon=True).start()
        return int(listener.getsockname()[1])

    def close(self) -> None:
        for listener in self._sockets:
            listener.close()

    @staticmethod
    def _serve(listener: socket.socket, answer: Answerer, context: ssl.SSLContext | None) -> None:
        while True:
            try:
                connection, _ = listener.accept()
                if context is not None:
                    connection = context.wrap_socket(connection, server_side=True)
                with connection:
                    answer(connection)
            except ssl.SSLError:
                continue  # the client did not like the certificate, or has none
            except OSError:
                return


def complete_answer(values: np.ndarray) -> bytes:
    header = json.dumps(
        {
            "model_name": "model",
            "model_version": "1",
            "outputs": [
                {
                    "name": "OUT",
                    "datatype": "FP32",
                    "shape": list(values.shape),
                    "parameters": {"binary_data_size": values.nbytes},
                }
            ],
        }
    ).encode()
    start = (
        f"HTTP/1.1 200 OK\r\nInference-Header-Content-Length: {len(header)}\r\n"
        f"Content-Length: {len(header) + values.nbytes}\r\n\r\n"
    )
    return start.encode() + header + values.tobytes()


def receive_request(connection: socket.socket) -> bytes:
    """Headers and body of one request."""
    received = b""
    while b"\r\n\r\n" not in received:
        received += connection.recv(65536)
    head, _, body = received.partition(b"\r\n\r\n")
    length = next(
        int(line.split(b":")[1]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length")
    )
    while len(body) < length:
        body += connection.recv(65536)
    return head


def infer_at(port: int, timeout_s: float = 10.0, **changes: Any) -> Mapping[str, AnyArray]:
    """Run the one call at a server of this machine; with TLS where certificates are named."""
    scheme = "https" if changes else "http"
    address = server_address(f"{scheme}://localhost:{port}")
    with closing(HttpConnection(address, TritonServer((address,), **changes))) as connection:
        return connection.infer(CALL, timeout_s)


def test_a_complete_answer_is_read(answering: Callable[..., int]) -> None:
    def answer(connection: socket.socket) -> None:
        receive_request(connection)
        connection.sendall(complete_answer(ANSWER["OUT"]))

    result = infer_at(answering(answer))
    np.testing.assert_array_equal(result["OUT"], ANSWER["OUT"])


def half(connection: socket.socket) -> None:
    receive_request(connection)
    whole = complete_answer(ANSWER["OUT"])
    connection.sendall(whole[: len(whole) - 10])


def reset(connection: socket.socket) -> None:
    receive_request(connection)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def nonsense(connection: socket.socket) -> None:
    receive_request(connection)
    connection.sendall(b"\x00\x01\x02 this is no HTTP\r\n\r\n")


def overloaded(connection: socket.socket) -> None:
    receive_request(connection)
    connection.sendall(b"HTTP/1.1 503 Busy\r\nContent-Length: 0\r\n\r\n")


@pytest.mark.parametrize("answer", [half, reset, nonsense, overloaded])
def test_answers_that_break_off_are_worth_another_attempt(answering: Callable[..., int], answer: Answerer) -> None:
    with pytest.raises(TransientError):
        infer_at(answering(answer))


def test_an_answer_that_trickles_ends_at_the_deadline(answering: Callable[..., int]) -> None:
    def answer(connection: socket.socket) -> None:
        receive_request(connection)
        for byte in complete_answer(ANSWER["OUT"]):
            connection.sendall(bytes([byte]))
            time.sleep(0.05)

    started = time.monotonic()
    with pytest.raises(TransientError) as caught:
        infer_at(answering(answer), 1.0)
    assert caught.value.timed_out
    assert time.monotonic() - started < 2.0


def test_fewer_bytes_than_the_shape_says_are_an_error(answering: Callable[..., int]) -> None:
    def answer(connection: socket.socket) -> None:
        receive_request(connection)
        whole = complete_answer(ANSWER["OUT"])
        connection.sendall(whole.replace(b'"binary_data_size": 24', b'"binary_data_size": 20'))

    with pytest.raises(BackendError, match="incomplete"):
        infer_at(answering(answer))


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


def server_context(authority: trustme.CA, *, mutual: bool) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost").configure_cert(context)
    if mutual:
        authority.configure_trust(context)
        context.verify_mode = ssl.CERT_REQUIRED
    return context


def test_mutual_tls_and_the_bearer_token_reach_the_server(
    answering: Callable[..., int], authority: trustme.CA, tmp_path: Path
) -> None:
    seen: list[bytes] = []

    def answer(connection: socket.socket) -> None:
        seen.append(receive_request(connection))
        connection.sendall(complete_answer(ANSWER["OUT"]))

    port = answering(answer, server_context(authority, mutual=True))
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    client = authority.issue_cert("client.example")
    client.cert_chain_pems[0].write_to_path(tmp_path / "client.pem")
    client.private_key_pem.write_to_path(tmp_path / "client.key")
    tls = TlsFiles(tmp_path / "ca.pem", tmp_path / "client.pem", tmp_path / "client.key")

    result = infer_at(port, tls=tls, token=TOKEN)

    np.testing.assert_array_equal(result["OUT"], ANSWER["OUT"])
    assert f"\r\nauthorization: Bearer {TOKEN}".encode() in seen[0]
    with pytest.raises(TransientError):
        infer_at(port, tls=TlsFiles(tmp_path / "ca.pem"))


def test_a_token_that_is_renewed_is_sent_with_the_next_request(
    answering: Callable[..., int], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    seen: list[bytes] = []

    def answer(connection: socket.socket) -> None:
        for _ in range(4):
            seen.append(receive_request(connection))
            connection.sendall(complete_answer(ANSWER["OUT"]))

    file = tmp_path / "token"
    file.write_text(f"{TOKEN}\n")
    address = server_address(f"http://localhost:{answering(answer)}")
    server = TritonServer((address,), token=TOKEN, token_file=file)
    with closing(HttpConnection(address, server)) as connection:
        connection.infer(CALL, 10.0)
        file.write_text("second\n")
        connection.infer(CALL, 10.0)
        file.write_text("no\r\ntoken: at all\n")
        connection.infer(CALL, 10.0)
        connection.infer(CALL, 10.0)

    sent = [request.partition(b"authorization: ")[2].partition(b"\r\n")[0] for request in seen]
    given = f"Bearer {TOKEN}".encode()
    assert sent == [given, b"Bearer second", given, given], "what is no token is not sent"
    assert sum("--token-file cannot be read" in message for message in caplog.messages) == 1


def test_a_certificate_of_an_unknown_authority_is_refused_at_once(
    answering: Callable[..., int], authority: trustme.CA, tmp_path: Path
) -> None:
    port = answering(lambda connection: None, server_context(authority, mutual=False))
    trustme.CA().cert_pem.write_to_path(tmp_path / "other.pem")
    with pytest.raises(BackendUnavailableError, match=r"certificate of https://localhost:\d+ is not trusted"):
        infer_at(port, tls=TlsFiles(tmp_path / "other.pem"))


def test_tls_files_that_are_none_are_refused(tmp_path: Path) -> None:
    (tmp_path / "ca.pem").write_text("nothing")
    with pytest.raises(BackendUnavailableError, match="--tls-ca"):
        infer_at(1, tls=TlsFiles(tmp_path / "ca.pem"))
