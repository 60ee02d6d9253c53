"""The few calls of the CUDA runtime that an engine needs, with errors as exceptions. Has never run on a GPU."""

from __future__ import annotations

import ctypes
import importlib
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any, Self

import numpy as np

from ucseg_runtime.arrays import Float32Array
from ucseg_runtime.errors import BackendError, BackendUnavailableError


def cuda_devices() -> int:
    """Number of GPUs that this process can use; 0 where the package or the driver is missing."""
    try:
        runtime: Any = importlib.import_module("cuda.bindings.runtime")
    except ImportError:
        return 0
    status, count = runtime.cudaGetDeviceCount()
    return int(count) if status == runtime.cudaError_t.cudaSuccess else 0


def gpu_kind(capability: str) -> str:
    """What outputs and proofs call GPUs of a compute capability: ``GPU sm86`` for 8.6."""
    return f"GPU sm{capability.replace('.', '')}"


def gpu_capability(device: int) -> str:
    """Compute capability of a GPU, such as ``8.6``.

    Args:
        device: Number of the GPU.

    Raises:
        BackendUnavailableError: The CUDA bindings, the driver or this GPU are missing; the message says which.
    """
    try:
        runtime: Any = importlib.import_module("cuda.bindings.runtime")
    except ImportError as error:
        raise BackendUnavailableError(
            "The CUDA bindings are missing:", hint="pip install 'ucseg[tensorrt]' or pip install cuda-bindings"
        ) from error
    found = cuda_devices()
    if not 0 <= device < found:
        has = f"it has {found}, counted from 0" if found else "it has none, or no NVIDIA driver"
        raise BackendUnavailableError(f"There is no NVIDIA GPU number {device} on this machine; {has}.")
    attributes = runtime.cudaDeviceAttr
    parts = []
    for which in (attributes.cudaDevAttrComputeCapabilityMajor, attributes.cudaDevAttrComputeCapabilityMinor):
        status, value = runtime.cudaDeviceGetAttribute(which, device)
        if status != runtime.cudaError_t.cudaSuccess:
            raise BackendUnavailableError(f"GPU number {device} does not answer: {status.name}.")
        parts.append(str(int(value)))
    return ".".join(parts)


def gpu_name(device: int) -> str:
    """What the driver calls a GPU; ``unknown`` where it does not say."""
    runtime: Any = importlib.import_module("cuda.bindings.runtime")
    status, properties = runtime.cudaGetDeviceProperties(device)
    return bytes(properties.name).decode("ascii") if status == runtime.cudaError_t.cudaSuccess else "unknown"


class TileBuffer:
    """One tensor in pinned host memory and on the device.

    Attributes:
        host: float32 array in pinned memory.
        device: Address on the device.
    """

    def __init__(self, host: Float32Array, host_address: int, device: int) -> None:
        self.host = host
        self.host_address = host_address
        self.device = device


class Stream:
    """A stream on one device with the memory that was allocated through it, freed together by `close`.

    Args:
        device: Number of the GPU.

    Raises:
        BackendUnavailableError: The CUDA bindings are not installed.
        BackendError: There is no such device.
    """

    def __init__(self, device: int = 0) -> None:
        try:
            self._runtime: Any = importlib.import_module("cuda.bindings.runtime")
        except ImportError as error:
            raise BackendUnavailableError(
                "The tensorrt engine needs the 'tensorrt' extra:", hint="pip install 'ucseg[tensorrt]'"
            ) from error
        self._device = device
        self._cleanup = ExitStack()
        self._call("cudaSetDevice", device)
        self.handle = int(self._call("cudaStreamCreate"))
        self._cleanup.callback(self._call, "cudaStreamDestroy", self.handle)
        self._graph: Any = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Free everything; the stream cannot be used any more."""
        self._cleanup.close()

    def buffer(self, shape: tuple[int, ...]) -> TileBuffer:
        """Memory for a float32 tensor on both sides.

        Raises:
            BackendError: There is not enough of it.
        """
        size = int(np.prod(shape)) * np.dtype(np.float32).itemsize
        host_address = int(self._call("cudaMallocHost", size))
        self._cleanup.callback(self._call, "cudaFreeHost", host_address)
        device = int(self._call("cudaMalloc", size))
        self._cleanup.callback(self._call, "cudaFree", device)
        memory = (ctypes.c_float * (size // ctypes.sizeof(ctypes.c_float))).from_address(host_address)
        return TileBuffer(np.ctypeslib.as_array(memory).reshape(shape), host_address, device)

    def upload(self, buffer: TileBuffer) -> None:
        """Queue a copy from host to device."""
        kind = self._runtime.cudaMemcpyKind.cudaMemcpyHostToDevice
        self._call("cudaMemcpyAsync", buffer.device, buffer.host_address, buffer.host.nbytes, kind, self.handle)

    def download(self, buffer: TileBuffer) -> None:
        """Queue a copy from device to host."""
        kind = self._runtime.cudaMemcpyKind.cudaMemcpyDeviceToHost
        self._call("cudaMemcpyAsync", buffer.host_address, buffer.device, buffer.host.nbytes, kind, self.handle)

    def record(self, work: Callable[[], None]) -> None:
        """Record what `work` queues, for `replay`. It must have run once before, so that nothing is set up lazily."""
        mode = self._runtime.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        self._call("cudaStreamBeginCapture", self.handle, mode)
        work()
        graph = self._call("cudaStreamEndCapture", self.handle)
        self._cleanup.callback(self._call, "cudaGraphDestroy", graph)
        self._graph = self._call("cudaGraphInstantiate", graph, 0)
        self._cleanup.callback(self._call, "cudaGraphExecDestroy", self._graph)

    def replay(self) -> None:
        """Queue the recorded work and wait for it; from any thread.

        Raises:
            BackendError: The device failed.
        """
        # Each thread has a current device of its own, which is the first one until it says otherwise.
        self._call("cudaSetDevice", self._device)
        self._call("cudaGraphLaunch", self._graph, self.handle)
        self.wait()

    def wait(self) -> None:
        """Wait for everything that was queued."""
        self._call("cudaStreamSynchronize", self.handle)

    def _call(self, name: str, *arguments: object) -> Any:  # noqa: ANN401  # untyped package
        status, *results = getattr(self._runtime, name)(*arguments)
        if status != self._runtime.cudaError_t.cudaSuccess:
            raise BackendError(f"{name} failed on the GPU: {status.name}.")
        return results[0] if results else None
