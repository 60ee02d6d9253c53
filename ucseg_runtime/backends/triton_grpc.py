"""Triton over gRPC."""

from __future__ import annotations

import importlib
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from ucseg_runtime.backends.triton_connection import (
    AnyArray,
    Call,
    ModelDescription,
    check_answer,
    description_from_config,
    failure,
)
from ucseg_runtime.backends.triton_tensors import NUMPY_TYPES
from ucseg_runtime.backends.triton_tls import tls_context, untrusted
from ucseg_runtime.errors import BackendError
from ucseg_runtime.server_options import ServerAddress, TritonServer

_REPEATABLE = ("UNAVAILABLE", "DEADLINE_EXCEEDED", "CANCELLED", "ABORTED")
_TOO_LARGE = "larger than max"
_UNLIMITED = -1
_CLOSED_AT_ONCE = re.compile(r"failed to connect.*socket closed", re.IGNORECASE | re.DOTALL)
_DOUBT = re.compile(r"(?<=CERTIFICATE_VERIFY_FAILED: )[\w ]+|hostname verification check failed", re.IGNORECASE)
TYPE_NAMES = {str(dtype): name for name, dtype in NUMPY_TYPES.items()}


class GrpcConnection:
    """One channel; several threads may use it.

    Args:
        address: Of the server.
        server: TLS files, token and trace.
    """

    def __init__(self, address: ServerAddress, server: TritonServer) -> None:
        # Untyped: the package carries no type information for its generated parts.
        self.package: Any = importlib.import_module("tritonclient.grpc")
        self._failure: Any = importlib.import_module("tritonclient.utils").InferenceServerException
        tls = server.tls
        if address.is_encrypted:
            # gRPC would tell with the first request, and to be repeated, that it cannot use a file.
            tls_context(tls, server.names)
        self._address = address
        self._names = server.names
        self._shows_certificate = tls.certificate is not None
        self._client = self.package.InferenceServerClient(
            f"[{address.host}]:{address.port}" if ":" in address.host else f"{address.host}:{address.port}",
            ssl=address.is_encrypted,
            root_certificates=_text(tls.authorities),
            private_key=_text(tls.key),
            certificate_chain=_text(tls.certificate),
            channel_args=_channel_arguments(address),
        )
        self._server = server

    def describe(self, model: str, timeout_s: float) -> ModelDescription:
        """See `Connection.describe`."""
        return description_from_config(self.asked("get_model_config", timeout_s, model).config)

    def infer(self, call: Call, timeout_s: float) -> Mapping[str, AnyArray]:
        """See `Connection.infer`."""
        result = self.request(
            call.model,
            [self._input(name, values) for name, values in call.inputs.items()],
            [self.package.InferRequestedOutput(tensor.name) for tensor in call.outputs],
            timeout_s,
        )
        try:
            return check_answer(call, {tensor.name: result.as_numpy(tensor.name) for tensor in call.outputs})
        except ValueError as error:  # from as_numpy: fewer bytes than the shape says
            raise BackendError(f"the answer of {call.model} is incomplete.") from error

    def request(self, model: str, inputs: list[Any], outputs: list[Any], timeout_s: float) -> Any:  # noqa: ANN401  # untyped package
        """Run one request with tensors as tritonclient describes them.

        Raises:
            TransientError, InputError, BackendError: See `Connection.infer`.
        """
        return self.asked(
            "infer",
            timeout_s,
            model,
            inputs,
            outputs=outputs,
            timeout=round(timeout_s * 1e6),  # in a queue of the server: nobody waits for it afterwards
        )

    def asked(self, method: str, timeout_s: float, *arguments: Any, **options: Any) -> Any:  # noqa: ANN401  # untyped package
        """Call a method of tritonclient's client, with its errors as ours.

        Raises:
            TransientError, InputError, BackendError: See `Connection.infer`.
        """
        try:
            return getattr(self._client, method)(
                *arguments, headers=self._server.headers, client_timeout=timeout_s, **options
            )
        except self._failure as error:
            raise self._translated(error) from error

    def close(self) -> None:
        """See `Connection.close`."""
        self._client.close()

    def _input(self, name: str, values: AnyArray) -> Any:  # noqa: ANN401  # untyped package
        tensor = self.package.InferInput(name, list(values.shape), TYPE_NAMES[str(values.dtype)])
        tensor.set_data_from_numpy(np.ascontiguousarray(values))
        return tensor

    def _translated(self, error: Any) -> Exception:  # noqa: ANN401  # untyped package
        status, message = str(error.status()).removeprefix("StatusCode."), str(error.message())
        doubt = _DOUBT.search(message)
        if doubt is not None and self._address.is_encrypted:
            return untrusted(self._address, doubt.group().lower(), self._names)
        if _CLOSED_AT_ONCE.search(message):
            message += self._what_closing_may_mean()
        exhausted = status == "RESOURCE_EXHAUSTED" and _TOO_LARGE not in message
        timed_out = status == "DEADLINE_EXCEEDED"
        return failure(message, repeatable=status in _REPEATABLE or exhausted, timed_out=timed_out)

    def _what_closing_may_mean(self) -> str:
        """A server that wants another kind of connection says no more than one that dies: it closes a new one."""
        if not self._address.is_encrypted:
            return "; unless it has died, it may want TLS: grpcs://"
        if not self._shows_certificate:
            wanted = f"{self._names.certificate}, {self._names.key}"
            return f"; unless it has died, it may want a certificate of this client: {wanted}"
        return ""


def _channel_arguments(address: ServerAddress) -> list[tuple[str, int]]:
    return [
        ("grpc.max_send_message_length", _UNLIMITED),
        ("grpc.max_receive_message_length", _UNLIMITED),
        # A server that starts again is found at once; gRPC would wait up to two minutes.
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.min_reconnect_backoff_ms", 100),
        ("grpc.max_reconnect_backoff_ms", 2000),
        ("grpc.enable_http_proxy", 0 if address.is_loopback else 1),
        # Connections of this process to one server are not shared: one that is given up must not disturb another.
        ("grpc.use_local_subchannel_pool", 1),
    ]


def _text(path: object) -> str | None:
    return None if path is None else str(path)
