"""ONNX Runtime on an NVIDIA GPU: by CUDA, or by its TensorRT provider. Has never run on a GPU."""

from __future__ import annotations

import contextlib
import importlib.metadata
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ucseg_runtime.backends.cuda import gpu_capability, gpu_kind
from ucseg_runtime.backends.offers import Offer, graphs_of, no_graph
from ucseg_runtime.backends.onnx_runtime import OnnxRuntime, load_onnxruntime
from ucseg_runtime.backends.onnx_runtime_bound import BoundSession, Place
from ucseg_runtime.backends.session import GraphFile, SessionSettings
from ucseg_runtime.cache import engines_folder
from ucseg_runtime.errors import BackendUnavailableError, OutputError, UcsegError
from ucseg_runtime.manifest import Precision
from ucseg_runtime.model_folder import Model

_PACKAGE = "onnxruntime-gpu"
_CUDA = "CUDAExecutionProvider"
_TENSORRT = "TensorrtExecutionProvider"
_BYTES_PER_MB = 2**20


@dataclass(frozen=True)
class Provider:
    """One way of ONNX Runtime to compute on a GPU.

    Attributes:
        order: Its names of what computes; the first has to, the others take what that leaves.
        precisions: That its settings can ask for.
    """

    order: tuple[str, ...]
    precisions: tuple[Precision, ...]


CUDA = Provider((_CUDA,), ("f32", "tf32"))
TENSORRT = Provider((_TENSORRT, _CUDA), ("tf32", "fp16"))
"""Its float32 is TensorRT's default, which rounds products like TF32, and no setting changes that."""


class OnnxRuntimeGpuEngine:
    """Loads ONNX Runtime for one GPU; opening the engine allocates nothing there.

    Args:
        provider: What computes.
        device: Number of the GPU.

    Raises:
        BackendUnavailableError: The package cannot be loaded, was not made for GPUs, or there is no such GPU.
    """

    def __init__(self, provider: Provider, device: int = 0) -> None:
        self._provider, self._device = provider, device
        self._runtime = load_onnxruntime()
        require_provider(self._runtime, provider.order[0])
        self._capability = gpu_capability(device)
        with contextlib.redirect_stdout(sys.stderr):  # it prints what it cannot find; standard output may be JSON
            self._runtime.package.preload_dlls()

    @property
    def version(self) -> str:
        """Version of the installed package."""
        return self._runtime.version

    @property
    def device(self) -> str:
        """The kind of GPU."""
        return gpu_kind(self._capability)

    def precisions(self) -> tuple[Precision, ...]:
        """Those that the provider has settings for."""
        return self._provider.precisions

    def offers(self, model: Model) -> Mapping[Precision, Offer]:
        """Every precision that the model folder has a graph for."""
        return graphs_of(model, self.precisions())

    def unavailable(self, model: Model, precision: Precision) -> UcsegError:
        """The model folder has no graph for it."""
        return no_graph(precision)

    def parallel_tiles(self, threads: int) -> int:
        """One: a tile fills the GPU."""
        return 1

    def open_session(self, graph: GraphFile, settings: SessionSettings) -> BoundSession:
        """Prepare a graph on the GPU; TensorRT's provider builds an engine the first time, which takes minutes.

        Raises:
            BackendUnavailableError: ONNX Runtime would compute it elsewhere.
            BackendError: The graph cannot be read, or the GPU has not the memory.
            OutputError: The folder of engines cannot be made.
        """
        if self._provider is TENSORRT:
            _make_cache(_cache_of(graph))
        wanted = provider_settings(self._provider, self._device, graph, settings)
        session = self._runtime.session(graph, settings.threads, wanted)
        require_first(session.get_providers(), self._provider.order[0])
        return BoundSession(self._runtime, session, Place("cuda", self._device))


def has_gpu_package() -> bool:
    """Whether the onnxruntime of this machine is the one for GPUs. Imports nothing."""
    try:
        importlib.metadata.distribution(_PACKAGE)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def require_provider(runtime: OnnxRuntime, provider: str) -> None:
    """Refuse a package that was made without a provider.

    Raises:
        BackendUnavailableError: The message says what it has and what to install.
    """
    available = runtime.package.get_available_providers()
    if provider not in available:
        raise BackendUnavailableError(
            f"onnxruntime {runtime.version} has no {provider}; it has {', '.join(available)}.",
            hint="onnxruntime and onnxruntime-gpu own the same module: pip uninstall onnxruntime, then "
            "pip install --force-reinstall 'ucseg[cuda]'.",
        )


def require_first(providers: list[str], wanted: str) -> None:
    """Refuse a session that fell back: ONNX Runtime only warns when it cannot use a provider.

    Raises:
        BackendUnavailableError: Something else computes.
    """
    if providers[0] != wanted:
        raise BackendUnavailableError(
            f"onnxruntime cannot use {wanted} here; it took {', '.join(providers)}.",
            hint="See that CUDA, cuDNN and, for its provider, TensorRT of the releases that it needs are installed.",
        )


def provider_settings(
    provider: Provider, device: int, graph: GraphFile, settings: SessionSettings
) -> list[tuple[str, Mapping[str, str]]]:
    """Names of the providers in their order, each with what it is told.

    Args:
        provider: What computes.
        device: Number of the GPU.
        graph: That it will compute.
        settings: Precision and limit of memory.

    Source: ONNX Runtime documentation, CUDA and TensorRT execution providers.
    """
    limit = settings.gpu_memory_mb * _BYTES_PER_MB
    cuda = {"device_id": str(device), "use_tf32": str(int(settings.precision == "tf32"))}
    tensorrt = {
        "device_id": str(device),
        "trt_fp16_enable": str(int(settings.precision == "fp16")),
        "trt_engine_cache_enable": "1",
        "trt_engine_cache_path": str(_cache_of(graph)),
        "trt_timing_cache_enable": "1",
        "trt_timing_cache_path": str(_cache_of(graph)),
    }
    if limit:
        # By default the arena grows by powers of two, which would take the limit for a fraction of its use.
        cuda |= {"gpu_mem_limit": str(limit), "arena_extend_strategy": "kSameAsRequested"}
        tensorrt |= {"trt_max_workspace_size": str(limit)}
    told = {_CUDA: cuda, _TENSORRT: tensorrt}
    return [(name, told[name]) for name in provider.order]


def _cache_of(graph: GraphFile) -> Path:
    """Where TensorRT's provider keeps what it built from a graph; it names the files by graph, release and GPU."""
    return engines_folder() / "onnxruntime" / graph.model_digest / graph.key


def _make_cache(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(
            f"the folder of the engines cannot be made ({type(error).__name__}).",
            hint="Check its space and permissions, or name another one with UCSEG_ENGINES.",
        ) from error
