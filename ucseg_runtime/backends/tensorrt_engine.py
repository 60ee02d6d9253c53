"""TensorRT on an NVIDIA GPU. Has never run on a GPU."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any

import numpy as np

from ucseg_runtime.arrays import Float32Array
from ucseg_runtime.backends.cuda import Stream, TileBuffer
from ucseg_runtime.backends.graphs import AnyShape, Signature
from ucseg_runtime.errors import BackendError, BackendUnavailableError

_MODULES = {"tensorrt": "tensorrt", "tensorrt_rtx": "tensorrt_rtx_bindings"}


class TensorRtSession:
    """One built engine, run on one tile at a time.

    Copies to the device, the network and the copies back are recorded once as a CUDA graph and replayed for every tile;
    host memory is pinned.

    Args:
        plan: Serialised engine, verified by `engine_cache.load_engine_plan`.
        builder: What built it: ``tensorrt`` or ``tensorrt_rtx``.
        device: Number of the GPU.

    Raises:
        BackendUnavailableError: TensorRT or the CUDA bindings are not installed.
        BackendError: There is no such GPU, or the engine was not built for it.
    """

    def __init__(self, plan: bytes, builder: str, device: int = 0) -> None:
        package = _load(builder)
        self._plan, self._builder, self._device = plan, builder, device
        with ExitStack() as undo:
            self._stream = undo.enter_context(Stream(device))
            self._prepare(package, plan)
            undo.pop_all()  # what is ready stays open until `close`

    @property
    def signature(self) -> Signature:
        """See `Session.signature`."""
        return self._signature

    def another(self) -> TensorRtSession:
        """See `Session.another`."""
        return TensorRtSession(self._plan, self._builder, self._device)

    def close(self) -> None:
        """Give the memory of host and device back."""
        self._stream.close()

    def run(self, tensors: Mapping[str, Float32Array]) -> dict[str, Float32Array]:
        """See `Session.run`. The results are views of pinned memory, which the next call overwrites."""
        for name in self._signature.inputs:
            np.copyto(self._buffers[name].host, tensors[name])
        self._stream.replay()
        return {name: self._buffers[name].host for name in self._signature.outputs}

    def _prepare(self, package: Any, plan: bytes) -> None:  # noqa: ANN401  # untyped package
        # The runtime must outlive its engine, and the engine its context.
        self._runtime: Any = package.Runtime(package.Logger(package.Logger.ERROR))
        self._engine: Any = self._runtime.deserialize_cuda_engine(plan)
        if self._engine is None:
            raise BackendError(
                "the TensorRT engine cannot be loaded on this GPU.", hint="Build it here: ucseg-export tensorrt."
            )
        self._context: Any = self._engine.create_execution_context()
        self._signature = _signature(package, self._engine)
        self._buffers = {name: self._bound(name) for name in (*self._signature.inputs, *self._signature.outputs)}
        self._queue()
        self._stream.wait()
        self._stream.record(self._queue)

    def _bound(self, name: str) -> TileBuffer:
        """Memory for one tile of a tensor, told to the engine."""
        sides = {**self._signature.inputs, **self._signature.outputs}[name][1:]
        shape = (1, *(side for side in sides if side is not None))
        if name in self._signature.inputs:
            self._context.set_input_shape(name, shape)
        buffer = self._stream.buffer(shape)
        self._context.set_tensor_address(name, buffer.device)
        return buffer

    def _queue(self) -> None:
        for name in self._signature.inputs:
            self._stream.upload(self._buffers[name])
        if not self._context.execute_async_v3(self._stream.handle):
            raise BackendError("TensorRT failed on a tile.")
        for name in self._signature.outputs:
            self._stream.download(self._buffers[name])


def _load(builder: str) -> Any:  # noqa: ANN401  # untyped package
    try:
        return importlib.import_module(_MODULES[builder])
    except ImportError as error:
        extra = builder.replace("_", "-")
        raise BackendUnavailableError(
            f"The {builder} engine needs the '{extra}' extra:", hint=f"pip install 'ucseg[{extra}]'"
        ) from error


def _signature(package: Any, engine: Any) -> Signature:  # noqa: ANN401  # untyped package
    shapes: dict[bool, dict[str, AnyShape]] = {True: {}, False: {}}
    for index in range(engine.num_io_tensors):
        name = engine.get_tensor_name(index)
        is_input = engine.get_tensor_mode(name) == package.TensorIOMode.INPUT
        shapes[is_input][name] = tuple(None if side < 0 else int(side) for side in engine.get_tensor_shape(name))
    return Signature(shapes[True], shapes[False])
