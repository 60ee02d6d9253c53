"""Triton over HTTP: KServe v2 with binary tensors."""

from __future__ import annotations

import http.client
import importlib
import json
import queue
import socket
import ssl
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

import numpy as np

from ucseg_runtime.backends.triton_connection import (
    AnyArray,
    Call,
    ModelDescription,
    TransientError,
    check_answer,
    description_from_config,
    failure,
)
from ucseg_runtime.backends.triton_grpc import TYPE_NAMES
from ucseg_runtime.backends.triton_tls import tls_context, untrusted
from ucseg_runtime.errors import BackendError
from ucseg_runtime.server_options import ServerAddress, TritonServer

_REPEATABLE = frozenset({429, 499, 502, 503, 504})
_HEADER_LENGTH = "Inference-Header-Content-Length"


class HttpConnection:
    """Connections that are kept open between requests, one per request in flight.

    tritonclient packs and unpacks the tensors. The transport is Python's own: it can be used by several threads, and
    its time limit holds for a whole answer, however slowly that trickles in.

    Args:
        address: Of the server.
        server: TLS files, token and trace.
    """

    def __init__(self, address: ServerAddress, server: TritonServer) -> None:
        # Untyped: the package carries no type information.
        self._package: Any = importlib.import_module("tritonclient.http")
        self._address = address
        self._tls = tls_context(server.tls, server.names) if address.is_encrypted else None
        self._server = server
        self._names = server.names
        self._idle: queue.SimpleQueue[http.client.HTTPConnection] = queue.SimpleQueue()

    def describe(self, model: str, timeout_s: float) -> ModelDescription:
        """See `Connection.describe`."""
        json_format = importlib.import_module("google.protobuf.json_format")
        messages = importlib.import_module("tritonclient.grpc.model_config_pb2")
        _, body = self._exchange("GET", f"/v2/models/{model}/config", b"", {}, timeout_s)
        try:
            config = json_format.ParseDict(json.loads(body), messages.ModelConfig(), ignore_unknown_fields=True)
        except (ValueError, json_format.ParseError) as error:
            raise BackendError(f"the configuration of {model} cannot be read.") from error
        return description_from_config(config)

    def infer(self, call: Call, timeout_s: float) -> Mapping[str, AnyArray]:
        """See `Connection.infer`."""
        client = self._package.InferenceServerClient
        body, header_length = client.generate_request_body(
            [self._input(name, values) for name, values in call.inputs.items()],
            outputs=[self._package.InferRequestedOutput(tensor.name, binary_data=True) for tensor in call.outputs],
            timeout=round(timeout_s * 1e6),
        )
        headers = {_HEADER_LENGTH: str(header_length), "Content-Type": "application/octet-stream"}
        answer, content = self._exchange("POST", f"/v2/models/{call.model}/infer", body, headers, timeout_s)
        length = answer.get(_HEADER_LENGTH)
        try:
            result = client.parse_response_body(content, header_length=None if length is None else int(length))
            return check_answer(call, {tensor.name: result.as_numpy(tensor.name) for tensor in call.outputs})
        except (ValueError, KeyError) as error:
            raise BackendError(f"the answer of {call.model} is incomplete.") from error

    def close(self) -> None:
        """See `Connection.close`."""
        while True:
            try:
                self._idle.get_nowait().close()
            except queue.Empty:
                return

    def _exchange(
        self, method: str, path: str, body: bytes, headers: Mapping[str, str], timeout_s: float
    ) -> tuple[http.client.HTTPMessage, bytes]:
        connection = self._connection(timeout_s)
        with _time_limit(connection, timeout_s) as over:
            try:
                connection.request(method, path, body=body or None, headers={**self._server.headers, **headers})
                with connection.getresponse() as answer:  # of its own file, which an answer that breaks off leaves open
                    content = answer.read()
            except ssl.SSLCertVerificationError as error:
                connection.close()
                raise untrusted(self._address, error.verify_message, self._names) from error
            except (OSError, http.client.HTTPException) as error:
                connection.close()
                if over.is_set() or isinstance(error, TimeoutError):
                    raise TransientError(f"no answer within {timeout_s:.1f} s", timed_out=True) from error
                raise TransientError(f"{type(error).__name__}: {error}") from error
        if over.is_set():  # a connection that is broken in the headers looks like an empty answer
            connection.close()
            raise TransientError(f"no answer within {timeout_s:.1f} s", timed_out=True)
        self._idle.put(connection)
        if answer.status != http.client.OK:
            raise failure(_message(answer.status, content), repeatable=answer.status in _REPEATABLE)
        return answer.headers, content

    def _connection(self, timeout_s: float) -> http.client.HTTPConnection:
        try:
            connection = self._idle.get_nowait()
        except queue.Empty:
            host, port = self._address.host, self._address.port
            if self._tls is None:
                return http.client.HTTPConnection(host, port, timeout=timeout_s)
            return http.client.HTTPSConnection(host, port, timeout=timeout_s, context=self._tls)
        connection.timeout = timeout_s
        if connection.sock is not None:
            connection.sock.settimeout(timeout_s)
        return connection

    def _input(self, name: str, values: AnyArray) -> Any:  # noqa: ANN401  # untyped package
        tensor = self._package.InferInput(name, list(values.shape), TYPE_NAMES[str(values.dtype)])
        tensor.set_data_from_numpy(np.ascontiguousarray(values), binary_data=True)
        return tensor


@contextmanager
def _time_limit(connection: http.client.HTTPConnection, seconds: float) -> Iterator[threading.Event]:
    """Break a connection when the time is over; the event is set then.

    The time limit of a socket is one for each read alone: a server that sends a byte a second would take for ever.
    """
    over = threading.Event()

    def end() -> None:
        over.set()
        if connection.sock is not None:
            with suppress(OSError):  # it is closed already
                # Not the method of an encrypted socket, which would tear down what another thread reads from.
                socket.socket.shutdown(connection.sock, socket.SHUT_RDWR)

    timer = threading.Timer(seconds, end)
    timer.daemon = True
    timer.start()
    try:
        yield over
    finally:
        timer.cancel()


def _message(status: int, content: bytes) -> str:
    """What the server said; Triton answers errors with JSON."""
    text = content.decode("utf-8", errors="replace")
    try:
        return str(json.loads(text)["error"])
    except (ValueError, KeyError, TypeError):
        return f"HTTP {status}"
