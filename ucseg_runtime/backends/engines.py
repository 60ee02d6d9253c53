"""Which engines there are, and which can be used here."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Protocol

from ucseg_runtime.backends.offers import Offer
from ucseg_runtime.backends.onnx_runtime import OnnxRuntimeEngine
from ucseg_runtime.backends.onnx_runtime_gpu import CUDA, TENSORRT, OnnxRuntimeGpuEngine, has_gpu_package
from ucseg_runtime.backends.openvino import OpenVinoEngine
from ucseg_runtime.backends.session import GraphFile, Session, SessionSettings
from ucseg_runtime.backends.tensorrt_engine import TensorRtEngine
from ucseg_runtime.config import EngineName
from ucseg_runtime.errors import BackendUnavailableError, UcsegError
from ucseg_runtime.manifest import Precision
from ucseg_runtime.model_folder import Model


class Engine(Protocol):
    """A package that runs ONNX graphs, loaded."""

    @property
    def version(self) -> str:
        """Version of the package."""
        ...

    @property
    def device(self) -> str:
        """Kind of what it computes on, such as ``CPU`` or ``GPU sm86``; part of the identity of every output."""
        ...

    def precisions(self) -> tuple[Precision, ...]:
        """Arithmetic that this device offers with it."""
        ...

    def offers(self, model: Model) -> Mapping[Precision, Offer]:
        """Those of the precisions in which it can run this model here, and what it then runs."""
        ...

    def unavailable(self, model: Model, precision: Precision) -> UcsegError:
        """Why it cannot run this model in a precision that the device offers, and what to do."""
        ...

    def parallel_tiles(self, threads: int) -> int:
        """Tiles that are best computed at the same time with so many threads in all, at least 1."""
        ...

    def open_session(self, graph: GraphFile, settings: SessionSettings) -> Session:
        """Make a graph ready to run; raises BackendError."""
        ...


@dataclass(frozen=True)
class _Entry:
    """One row of the table of engines.

    Attributes:
        name: Of the engine.
        packages: Modules of which it needs one.
        extra: That installs one of them; empty for the base install.
        load: Makes the engine for the device of that number; engines of the processor have one.
        is_installed: What else than one of the modules has to be there.
        remark: On installing the extra.
    """

    name: EngineName
    packages: tuple[str, ...]
    extra: str
    load: Callable[[int], Engine]
    is_installed: Callable[[], bool] = lambda: True
    remark: str = ""


_EXCLUSIVE = " after pip uninstall onnxruntime: both own the same module"
_ENGINES = (  # the one of the base install first
    _Entry("openvino", ("openvino",), "", lambda _: OpenVinoEngine()),
    _Entry("onnxruntime", ("onnxruntime",), "onnxruntime", lambda _: OnnxRuntimeEngine()),
    _Entry(
        "onnxruntime-cuda", ("onnxruntime",), "cuda", partial(OnnxRuntimeGpuEngine, CUDA), has_gpu_package, _EXCLUSIVE
    ),
    _Entry(
        "onnxruntime-tensorrt",
        ("onnxruntime",),
        "cuda",
        partial(OnnxRuntimeGpuEngine, TENSORRT),
        has_gpu_package,
        _EXCLUSIVE,
    ),
    _Entry("tensorrt", ("tensorrt", "tensorrt_rtx_bindings"), "tensorrt", TensorRtEngine),
)


@dataclass(frozen=True)
class EngineStatus:
    """What one engine is worth on this machine.

    Attributes:
        name: Name of the engine.
        version: Version of its package; empty where it cannot be used.
        precisions: Arithmetic that it offers on this processor.
        reason: Why it cannot be used and what to do; empty where it can.
    """

    name: EngineName
    version: str
    precisions: tuple[Precision, ...]
    reason: str


def installed_engines() -> tuple[EngineName, ...]:
    """Names of the engines whose packages are installed, that of the base install first. Imports none of them."""
    return tuple(entry.name for entry in _ENGINES if _is_installed(entry))


def engine_status(device: int = 0) -> tuple[EngineStatus, ...]:
    """Every engine that ucseg knows, usable or not. Loads the packages, but no model.

    Args:
        device: Number of the GPU, for engines that compute on one.
    """
    return tuple(_status(entry, device) for entry in _ENGINES)


def _is_installed(entry: _Entry) -> bool:
    found = any(importlib.util.find_spec(package) is not None for package in entry.packages)
    return found and entry.is_installed()


def load_engine(name: EngineName, device: int = 0) -> Engine:
    """Import the package of an engine.

    Args:
        name: One of the table's.
        device: Number of the GPU, for engines that compute on one.

    Raises:
        BackendUnavailableError: The package is not installed or cannot be loaded, or there is no such GPU; the message
            says which, and what to do.
    """
    return _loaded(next(entry for entry in _ENGINES if entry.name == name), device)


def _loaded(entry: _Entry, device: int) -> Engine:
    if _is_installed(entry):
        return entry.load(device)
    wanted = f"ucseg[{entry.extra}]" if entry.extra else "ucseg"
    needs = f"needs the '{entry.extra}' extra" if entry.extra else "is part of the base install and missing"
    raise BackendUnavailableError(
        f"The {entry.name} engine {needs}:",
        hint=f"pip install '{wanted}'{entry.remark} (found: {', '.join(installed_engines()) or 'none'}).",
    )


def _status(entry: _Entry, device: int) -> EngineStatus:
    try:
        engine = _loaded(entry, device)
    except BackendUnavailableError as error:
        return EngineStatus(entry.name, "", (), str(error))
    return EngineStatus(entry.name, engine.version, engine.precisions(), "")
