"""TensorRT on an NVIDIA GPU. Has never run on a GPU."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any

import numpy as np

from ucseg_runtime.arrays import Float32Array
from ucseg_runtime.backends.cuda import Stream, TileBuffer, gpu_capability, gpu_kind
from ucseg_runtime.backends.engine_cache import BuiltEngines, EngineKey, find_engines, load_engine_plan
from ucseg_runtime.backends.graphs import AnyShape, Signature
from ucseg_runtime.backends.offers import Offer
from ucseg_runtime.backends.session import GraphFile, SessionSettings, Tensor
from ucseg_runtime.cache import engines_folder
from ucseg_runtime.errors import BackendError, BackendUnavailableError, EngineMismatchError
from ucseg_runtime.manifest import MERGED, Precision
from ucseg_runtime.model_folder import Model

_MODULES = {"tensorrt": "tensorrt", "tensorrt_rtx": "tensorrt_rtx_bindings"}

_BUILT_AS: Mapping[Precision, str] = {"f32": "fp32", "tf32": "tf32", "fp16": "fp16", "int8": "int8", "fp8": "fp8"}
"""Precision to what its engines are called where they are built; f32 is without the rounding of tf32."""

_LEAST_CAPABILITY: Mapping[Precision, tuple[int, int]] = {
    "f32": (7, 5),
    "tf32": (8, 0),
    "fp16": (7, 5),
    "int8": (7, 5),
    "fp8": (8, 9),
}
"""Source: NVIDIA, TensorRT support matrix, section Hardware and Precision."""


def precision_built(name: str) -> Precision:
    """What ucseg calls the precision that engines were built in."""
    return next(precision for precision, built in _BUILT_AS.items() if built == name)


class TensorRtEngine:
    """Loads TensorRT, else TensorRT-RTX, for one GPU; opening the engine allocates nothing there.

    It runs engines that `ucseg-export tensorrt` built for this very model, release and kind of GPU, and builds none.

    Args:
        device: Number of the GPU.

    Raises:
        BackendUnavailableError: The package cannot be loaded, or there is no such GPU; the message says which.
    """

    def __init__(self, device: int = 0) -> None:
        self._builder, package = installed_tensorrt()
        self._version = str(package.__version__)
        self._device = device
        self._capability = gpu_capability(device)

    @property
    def version(self) -> str:
        """Version of the installed package."""
        return self._version

    @property
    def device(self) -> str:
        """The kind of GPU."""
        return gpu_kind(self._capability)

    def precisions(self) -> tuple[Precision, ...]:
        """Those that the GPU has arithmetic for and that engines are built in."""
        major, minor = map(int, self._capability.split("."))
        return tuple(precision for precision, least in _LEAST_CAPABILITY.items() if (major, minor) >= least)

    def offers(self, model: Model) -> Mapping[Precision, Offer]:
        """Precisions in which the merged graph was built for this model, release and GPU."""
        found = {precision: self._built(model.digest, precision) for precision in self.precisions()}
        return {precision: Offer(MERGED, built.build) for precision, built in found.items() if built is not None}

    def unavailable(self, model: Model, precision: Precision) -> EngineMismatchError:
        """No engine was built; the message has the command that builds it."""
        calibrated = " --cases DIR" if precision in ("int8", "fp8") else ""
        return EngineMismatchError(
            f"there is no {self._builder} {self._version} engine of {model.manifest.name} {model.manifest.version} in "
            f"{precision} for compute capability {self._capability}.",
            hint=f"Build it here: ucseg-export tensorrt MODEL_DIR --precision {_BUILT_AS[precision]}{calibrated}; "
            "UCSEG_ENGINES names the folder where it is looked for, if not the cache folder.",
        )

    def parallel_tiles(self, threads: int) -> int:
        """One: a tile fills the GPU."""
        return 1

    def open_session(self, graph: GraphFile, settings: SessionSettings) -> TensorRtSession:
        """Load the engine that was built from a graph.

        Raises:
            EngineMismatchError: There is none, it is not the one that its record names, or another build than the graph
                asks for.
            BackendError: The engine cannot be loaded on this GPU.
        """
        built = self._built(graph.model_digest, settings.precision)
        if built is None:
            raise EngineMismatchError(
                f"there is no {self._builder} {self._version} engine of {graph.key} in {settings.precision}.",
                hint="Build it: ucseg-export tensorrt MODEL_DIR.",
            )
        if graph.build and graph.build != built.build:
            raise EngineMismatchError(
                f"the engine of {graph.key} was built anew while it was opened; build {graph.build} was chosen, "
                f"{built.build} is there.",
                hint="Prove the new one: ucseg-export prove MODEL_DIR.",
            )
        plan = load_engine_plan(engines_folder(), built.key, graph.key)
        return TensorRtSession(plan, self._builder, self._device)

    def _built(self, model_digest: str, precision: Precision) -> BuiltEngines | None:
        """The engines of a model in one precision; those for the fewest tiles a call, which is one here."""
        wanted = EngineKey(
            model_digest, self._builder, self._version, self._capability, _BUILT_AS[precision], max_batch=0
        )
        return next(iter(find_engines(engines_folder(), wanted)), None)


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

    def run(self, tensors: Mapping[str, Tensor]) -> dict[str, Float32Array]:
        """See `Session.run`. The results are views of pinned memory, which the next call overwrites."""
        for name in self._signature.inputs:
            np.copyto(self._buffers[name].host, tensors[name])
        self._stream.replay()
        return {name: self._buffers[name].host for name in self._signature.outputs}

    def _prepare(self, package: Any, plan: bytes) -> None:  # noqa: ANN401  # untyped package
        # The runtime must outlive its engine, and the engine its context.
        self._runtime: Any = package.Runtime(package.Logger(package.Logger.ERROR))
        # Version-compatible engines bring code for the processor, which TensorRT refuses by default; the digest of the
        # file is that of its record.
        self._runtime.engine_host_code_allowed = True
        self._engine: Any = self._runtime.deserialize_cuda_engine(plan)
        if self._engine is None:
            raise BackendError(
                "the TensorRT engine cannot be loaded on this GPU.", hint="Build it here: ucseg-export tensorrt."
            )
        self._context: Any = _context(package, self._engine)
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


def installed_tensorrt() -> tuple[str, Any]:
    """Name and untyped module of the TensorRT of this machine: ``tensorrt``, for data centres, before ``tensorrt_rtx``.

    Raises:
        BackendUnavailableError: None can be imported.
    """
    for builder, module in _MODULES.items():
        try:
            return builder, importlib.import_module(module)
        except (ImportError, OSError):
            continue
    raise BackendUnavailableError(
        "The tensorrt engine needs the 'tensorrt' extra, or 'tensorrt-rtx':", hint="pip install 'ucseg[tensorrt]'"
    )


def _load(builder: str) -> Any:  # noqa: ANN401  # untyped package
    try:
        return importlib.import_module(_MODULES[builder])
    except ImportError as error:
        extra = builder.replace("_", "-")
        raise BackendUnavailableError(
            f"The {builder} engine needs the '{extra}' extra:", hint=f"pip install 'ucseg[{extra}]'"
        ) from error


def _context(package: Any, engine: Any) -> Any:  # noqa: ANN401  # untyped package
    """What runs the engine. TensorRT-RTX compiles kernels for the shape before the first run, and not meanwhile.

    By default it starts with kernels for any shape and exchanges them later, and the recorded graph would keep those.
    """
    strategies = getattr(package, "DynamicShapesKernelSpecializationStrategy", None)
    if strategies is None:  # TensorRT has chosen its kernels when it built
        return engine.create_execution_context()
    configuration = engine.create_runtime_config()
    configuration.dynamic_shapes_kernel_specialization_strategy = strategies.EAGER
    return engine.create_execution_context(configuration)


def _signature(package: Any, engine: Any) -> Signature:  # noqa: ANN401  # untyped package
    shapes: dict[bool, dict[str, AnyShape]] = {True: {}, False: {}}
    for index in range(engine.num_io_tensors):
        name = engine.get_tensor_name(index)
        is_input = engine.get_tensor_mode(name) == package.TensorIOMode.INPUT
        shapes[is_input][name] = tuple(None if side < 0 else int(side) for side in engine.get_tensor_shape(name))
    return Signature(shapes[True], shapes[False])
