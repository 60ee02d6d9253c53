"""Triton over gRPC with tensors in shared memory, for a server on the same machine.

A region is unlinked as soon as the server has mapped it: whichever side dies, nothing stays behind in the file system.
What stays in the server when a client dies are mappings; the next client unregisters those of clients that are gone.
"""

from __future__ import annotations

import itertools
import logging
import math
import mmap
import os
import secrets
import threading
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ucseg_runtime.backends.triton_connection import (
    AnyArray,
    Call,
    ModelDescription,
    TransientError,
    check_answer,
    tensor_bytes,
)
from ucseg_runtime.backends.triton_grpc import TYPE_NAMES, GrpcConnection
from ucseg_runtime.backends.triton_tensors import NUMPY_TYPES, TritonTensor
from ucseg_runtime.errors import BackendError, UcsegError
from ucseg_runtime.server_options import ServerAddress, TritonServer

_FOLDER = Path("/dev/shm")  # noqa: S108  (where Linux keeps shared memory)
_PREFIX = "ucseg"
_ALIGNMENT = 64
_LOST_REGION = "unable to find shared memory region"
_RESTRICTED = "restricted"
_UNREGISTER_TIMEOUT_S = 2.0

_LOGGER = logging.getLogger(__name__)


class Region:
    """A piece of memory that a server has mapped too.

    Args:
        size: In bytes.
    """

    def __init__(self, size: int) -> None:
        self.name = f"{_PREFIX}_{os.getpid()}_{secrets.token_hex(8)}"
        self.size = size
        self._file = _FOLDER / self.name
        try:
            descriptor = os.open(self._file, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
            try:
                os.ftruncate(descriptor, size)
                self._memory = mmap.mmap(descriptor, size)
            finally:
                os.close(descriptor)
        except OSError as error:
            raise BackendError(f"no shared memory of {size / 1e6:.0f} MB: {error.strerror}.") from error

    def unlink(self) -> None:
        """Take its name away; both mappings stay."""
        self._file.unlink(missing_ok=True)

    def array(self, dtype: np.dtype[np.generic], shape: tuple[int, ...], offset: int) -> AnyArray:
        """A view of the memory."""
        return np.frombuffer(self._memory, dtype, math.prod(shape), offset).reshape(shape)


class SharedMemoryConnection:
    """A gRPC connection whose tensors lie in regions, one per request in flight.

    A server that allows none is used without, and a warning says so.

    Args:
        address: Of the server, on this machine.
        server: TLS files and token.
    """

    def __init__(self, address: ServerAddress, server: TritonServer) -> None:
        self._plain = GrpcConnection(address, server)
        self._idle: list[Region] = []
        self._lock = threading.Lock()
        self._state: Literal["untried", "allowed", "refused"] = "untried"

    def describe(self, model: str, timeout_s: float) -> ModelDescription:
        """See `Connection.describe`."""
        return self._plain.describe(model, timeout_s)

    def infer(self, call: Call, timeout_s: float) -> Mapping[str, AnyArray]:
        """See `Connection.infer`."""
        if not self._is_allowed(timeout_s):
            return self._plain.infer(call, timeout_s)
        layout = _layout(call)
        region = self._region(layout.size, timeout_s)
        try:
            answer = self._infer_in(region, layout, call, timeout_s)
        except UcsegError as error:
            self._drop(region)
            if _LOST_REGION in str(error).lower():
                raise TransientError("the server has lost its shared memory") from error
            raise
        except TransientError:
            self._drop(region)  # the server may still write into it
            raise
        with self._lock:
            self._idle.append(region)
        return answer

    def close(self) -> None:
        """See `Connection.close`."""
        for region in self._idle:
            self._drop(region)
        self._idle.clear()
        self._plain.close()

    def _is_allowed(self, timeout_s: float) -> bool:
        """Whether the server takes regions; found out with the first request."""
        with self._lock:
            if self._state == "untried":
                self._state = self._tried(timeout_s)
            return self._state == "allowed"

    def _tried(self, timeout_s: float) -> Literal["allowed", "refused"]:
        try:
            status = self._plain.asked("get_system_shared_memory_status", timeout_s)
        except (BackendError, TransientError) as error:
            if _RESTRICTED not in str(error):
                raise
            _LOGGER.warning("the server allows no shared memory; tensors go by gRPC")
            return "refused"
        for name in filter(_is_stale, status.regions):
            self._plain.asked("unregister_system_shared_memory", timeout_s, name)
        return "allowed"

    def _region(self, size: int, timeout_s: float) -> Region:
        with self._lock:
            fitting = [region for region in self._idle if region.size >= size]
            if fitting:
                self._idle.remove(fitting[0])
                return fitting[0]
        region = Region(size)
        try:
            self._plain.asked("register_system_shared_memory", timeout_s, region.name, f"/{region.name}", size)
        finally:
            region.unlink()
        return region

    def _infer_in(self, region: Region, layout: _Layout, call: Call, timeout_s: float) -> dict[str, AnyArray]:
        package = self._plain.package
        inputs = []
        for name, values in call.inputs.items():
            place = layout.places["in", name]
            region.array(values.dtype, values.shape, place)[...] = values
            inputs.append(package.InferInput(name, list(values.shape), TYPE_NAMES[str(values.dtype)]))
            inputs[-1].set_shared_memory(region.name, values.nbytes, place)
        outputs = [package.InferRequestedOutput(tensor.name) for tensor in call.outputs]
        for output, tensor in zip(outputs, call.outputs, strict=True):
            output.set_shared_memory(region.name, tensor_bytes(tensor), layout.places["out", tensor.name])
        result = self._plain.request(call.model, inputs, outputs, timeout_s)
        return check_answer(call, {tensor.name: _answer(region, layout, tensor, result) for tensor in call.outputs})

    def _drop(self, region: Region) -> None:
        """Let the server forget a region; one that is gone has forgotten it already."""
        with suppress(BackendError, TransientError):
            self._plain.asked("unregister_system_shared_memory", _UNREGISTER_TIMEOUT_S, region.name)


@dataclass(frozen=True)
class _Layout:
    """Where the tensors of a request lie in its region."""

    places: Mapping[tuple[Literal["in", "out"], str], int]
    size: int


def _layout(call: Call) -> _Layout:
    sizes: dict[tuple[Literal["in", "out"], str], int] = {
        ("in", name): values.nbytes for name, values in call.inputs.items()
    }
    sizes |= {("out", tensor.name): tensor_bytes(tensor) for tensor in call.outputs}
    aligned = [-(-size // _ALIGNMENT) * _ALIGNMENT for size in sizes.values()]
    starts = itertools.accumulate(aligned, initial=0)
    return _Layout(dict(zip(sizes, starts, strict=False)), max(sum(aligned), _ALIGNMENT))


def _answer(region: Region, layout: _Layout, tensor: TritonTensor, result: Any) -> AnyArray | None:  # noqa: ANN401  # untyped package
    """What the server wrote, copied, in the shape that it says; None where it names no such tensor."""
    described = result.get_output(tensor.name)
    if described is None:
        return None
    shape = tuple(int(side) for side in described.shape)
    if shape != tensor.shape:
        return np.empty(shape, NUMPY_TYPES[tensor.data_type])
    return region.array(NUMPY_TYPES[tensor.data_type], shape, layout.places["out", tensor.name]).copy()


def _is_stale(name: str) -> bool:
    """Whether a region was registered by a process of ucseg that is gone."""
    parts = name.split("_")
    ours = len(parts) == 3 and parts[0] == _PREFIX and parts[1].isdigit()  # noqa: PLR2004  (prefix, process, token)
    return ours and not Path("/proc", parts[1]).exists()
