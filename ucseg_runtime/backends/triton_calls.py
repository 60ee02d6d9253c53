"""Requests to a group of servers: each is repeated, elsewhere if need be, until it is answered or its time is over."""

from __future__ import annotations

import importlib.util
import itertools
import logging
import random
import threading
import time
from collections.abc import Callable, Mapping
from typing import Self, TypeVar

from ucseg_runtime.backends.triton_connection import (
    AnyArray,
    Call,
    Connection,
    ModelDescription,
    TransientError,
    check_size,
)
from ucseg_runtime.backends.triton_grpc import GrpcConnection
from ucseg_runtime.backends.triton_http import HttpConnection
from ucseg_runtime.backends.triton_shared_memory import SharedMemoryConnection
from ucseg_runtime.errors import BackendError, BackendUnavailableError, ServerTimeoutError
from ucseg_runtime.server_options import ServerAddress, TritonServer

_FIRST_WAIT_S = 0.2
_LONGEST_WAIT_S = 10.0
_LEAST_TIMEOUT_S = 0.01

_Answer = TypeVar("_Answer")

_LOGGER = logging.getLogger(__name__)


class ServerGroup:
    """Servers that hold the same repository, used one at a time.

    A server is asked what it serves before its first request, and again after every failure: it may have been started
    anew on another repository.

    Args:
        server: Addresses, times, certificates.
        model: Name of the model that requests go to.
        check: Raises when a description is not that of the right model.
    """

    def __init__(self, server: TritonServer, model: str, check: Callable[[ModelDescription], None]) -> None:
        self._server = server
        self._model = model
        self._check = check
        self._lock = threading.Lock()
        self._endpoints = [_Endpoint(address, _connect(address, server)) for address in server.addresses]
        self._current = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        for endpoint in self._endpoints:
            endpoint.connection.close()

    def describe(self) -> tuple[ServerAddress, ModelDescription]:
        """The first server that answers, and what it says of the model.

        Raises:
            BackendError: None answers.
        """
        return self._repeated(
            self._server.timeout_s,
            lambda endpoint, timeout_s: (endpoint.address, endpoint.connection.describe(self._model, timeout_s)),
        )

    def infer(self, call: Call, limit_s: float = 0.0) -> Mapping[str, AnyArray]:
        """Run one request.

        Args:
            call: The request.
            limit_s: Within which it must be answered, repeats included; 0 means the time that the caller allows.

        Raises:
            InputError: The request is too large, or the server refuses what was sent.
            BackendError: No server answered it.
            ServerTimeoutError: The time was over.
            EngineMismatchError: A server that came back serves another model.
        """
        check_size(call)
        return self._repeated(
            limit_s or self._server.timeout_s, lambda endpoint, timeout_s: endpoint.connection.infer(call, timeout_s)
        )

    def _repeated(self, limit_s: float, attempt: Callable[[_Endpoint, float], _Answer]) -> _Answer:
        """Attempts one after the other; the last failure is the cause of the error when the time is over."""
        started = time.monotonic()
        for count in itertools.count(1):
            endpoint = self._endpoints[self._current]
            remaining = limit_s - (time.monotonic() - started)
            try:
                # Each server gets its share of the time, so that one that hangs leaves some to the next.
                return self._attempted(endpoint, remaining / (len(self._endpoints) - self._current), attempt)
            except TransientError as error:
                self._leave(endpoint)
                waited = time.monotonic() - started
                pause = self._pause(count)
                if waited + pause >= limit_s:
                    raise _gave_up(endpoint.address, error, count, waited) from error
                # The first is told to everybody: a wrong URL would otherwise look like a slow start.
                level = logging.WARNING if count == 1 else logging.INFO
                _LOGGER.log(level, "%s: %s; attempts go on for %.0f s", endpoint.address, error, limit_s - waited)
                time.sleep(pause)
        raise AssertionError

    def _attempted(
        self, endpoint: _Endpoint, timeout_s: float, attempt: Callable[[_Endpoint, float], _Answer]
    ) -> _Answer:
        deadline = time.monotonic() + timeout_s
        with endpoint.lock:
            if not endpoint.checked:
                self._check(endpoint.connection.describe(self._model, timeout_s))
                endpoint.checked = True
        return attempt(endpoint, max(deadline - time.monotonic(), _LEAST_TIMEOUT_S))

    def _leave(self, endpoint: _Endpoint) -> None:
        """Go on with the next server, if another request has not gone there already."""
        endpoint.checked = False
        with self._lock:
            if self._endpoints[self._current] is endpoint:
                self._current = (self._current + 1) % len(self._endpoints)

    def _pause(self, count: int) -> float:
        """Seconds until the next attempt: none while there is a server that was not asked, then longer and longer."""
        rounds = count // len(self._endpoints)
        if count % len(self._endpoints) or not rounds:
            return 0.0
        longest = min(_LONGEST_WAIT_S, _FIRST_WAIT_S * 2.0**rounds)
        return random.uniform(0.5 * _FIRST_WAIT_S, longest)  # noqa: S311  (spreads clients, guards nothing)


class _Endpoint:
    """One server, and whether it was found to hold the right model since it last failed."""

    def __init__(self, address: ServerAddress, connection: Connection) -> None:
        self.address = address
        self.connection = connection
        self.checked = False
        self.lock = threading.Lock()


def check_usable(server: TritonServer) -> None:
    """Find out before anything is sent whether the servers could be spoken to; whether they are there is not asked.

    Raises:
        BackendUnavailableError: The extra is not installed, the TLS files cannot be used, or the protocol has no shared
            memory.
    """
    for address in server.addresses:
        _connect(address, server).close()


def _connect(address: ServerAddress, server: TritonServer) -> Connection:
    """Open a connection; nothing is sent.

    Raises:
        BackendUnavailableError: The extra is not installed, or the TLS files cannot be used.
    """
    if importlib.util.find_spec("tritonclient") is None:
        raise BackendUnavailableError("The triton engine needs the 'triton' extra:", hint="pip install 'ucseg[triton]'")
    if address.scheme in ("grpc", "grpcs"):
        return SharedMemoryConnection(address, server) if server.shared_memory else GrpcConnection(address, server)
    if server.shared_memory:
        raise BackendUnavailableError("shared memory is offered with gRPC alone.", hint="Use a grpc:// URL.")
    return HttpConnection(address, server)


def _gave_up(address: ServerAddress, error: TransientError, attempts: int, seconds: float) -> BackendError:
    kind = ServerTimeoutError if error.timed_out else BackendError
    return kind(
        f"no answer after {attempts} attempts in {seconds:.1f} s; at last from {address}: {error}.",
        hint="Check that the server runs, name another one with --url, or allow more time with --timeout.",
    )
