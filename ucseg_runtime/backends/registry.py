"""Which engines there are, which can be used here, and opening a model on one of them."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

from ucseg_runtime.backends.base import Backend, BackendInfo
from ucseg_runtime.backends.cores import usable_cores
from ucseg_runtime.backends.graphs import check_signature
from ucseg_runtime.backends.local import LocalBackend, Session
from ucseg_runtime.backends.onnx_runtime import OnnxRuntimeEngine
from ucseg_runtime.backends.openvino import OpenVinoEngine
from ucseg_runtime.config import EngineChoice, InferenceOptions, PrecisionChoice
from ucseg_runtime.errors import BackendUnavailableError
from ucseg_runtime.manifest import MERGED, STAGES, Precision
from ucseg_runtime.model_folder import Model
from ucseg_runtime.segmentation import EngineInfo


class Engine(Protocol):
    """A package that runs ONNX graphs, loaded."""

    @property
    def version(self) -> str:
        """Version of the package."""
        ...

    def precisions(self) -> tuple[Precision, ...]:
        """Arithmetic that this processor offers with it."""
        ...

    def open_session(self, graph: bytes, precision: Precision, threads: int) -> Session:
        """Make a graph ready to run; raises BackendError."""
        ...


@dataclass(frozen=True)
class _Entry:
    """One row of the table of engines: its name, the package it needs, the extra that installs it, how to load it."""

    name: str
    package: str
    extra: str
    load: Callable[[], Engine]


_ENGINES = (  # in order of measured speed
    _Entry("openvino", "openvino", "", OpenVinoEngine),
    _Entry("onnxruntime", "onnxruntime", "onnxruntime", OnnxRuntimeEngine),
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

    name: str
    version: str
    precisions: tuple[Precision, ...]
    reason: str


def installed_engines() -> tuple[str, ...]:
    """Names of the engines whose packages are installed, best first. Imports none of them."""
    return tuple(entry.name for entry in _ENGINES if _is_installed(entry))


def engine_status() -> tuple[EngineStatus, ...]:
    """Every engine that ucseg knows, usable or not. Loads the packages, but no model."""
    return tuple(_status(entry) for entry in _ENGINES)


@contextmanager
def open_backend(model: Model, options: InferenceOptions, *, staged: bool = False) -> Iterator[Backend]:
    """Open a model on an engine of this machine, for the length of a ``with`` block.

    Args:
        model: Verified model folder.
        options: Engine, precision and threads.
        staged: Whether to run the four stages one by one: slower, but the logits can be had.

    Raises:
        BackendUnavailableError: The engine is not installed, or has not the precision that was asked for.
        BackendError: The engine cannot run the model.
        ArtifactMismatchError: A graph has other tensors than the manifest says.
    """
    entry = _entry(options.engine)
    engine = _loaded(entry)
    precision = _precision(entry.name, engine, options.precision, model.manifest.default_precision)
    threads = options.threads or usable_cores()
    sessions = {key: _session(engine, model, key, precision, threads) for key in (STAGES if staged else (MERGED,))}
    info = BackendInfo(EngineInfo(entry.name, engine.version, precision, "CPU"), batch_atol=0.0)
    backend = LocalBackend(model.manifest, info, sessions)
    try:
        yield backend
    finally:
        backend.close()


def _session(engine: Engine, model: Model, key: str, precision: Precision, threads: int) -> Session:
    session = engine.open_session(model.graph(key), precision, threads)
    check_signature(key, session.signature, model.manifest)
    return session


def _entry(choice: EngineChoice) -> _Entry:
    if choice != "auto":
        return next(entry for entry in _ENGINES if entry.name == choice)
    return next((entry for entry in _ENGINES if _is_installed(entry)), _ENGINES[0])


def _is_installed(entry: _Entry) -> bool:
    return importlib.util.find_spec(entry.package) is not None


def _loaded(entry: _Entry) -> Engine:
    if _is_installed(entry):
        return entry.load()
    wanted = f"ucseg[{entry.extra}]" if entry.extra else "ucseg"
    needs = f"needs the '{entry.extra}' extra" if entry.extra else "is part of the base install and missing"
    raise BackendUnavailableError(
        f"The {entry.name} engine {needs}:",
        hint=f"pip install '{wanted}' (found: {', '.join(installed_engines()) or 'none'}).",
    )


def _precision(name: str, engine: Engine, choice: PrecisionChoice, default: Precision) -> Precision:
    available = engine.precisions()
    if choice == "auto":
        return default if default in available else "f32"
    if choice not in available:
        raise BackendUnavailableError(
            f"The {name} engine has no {choice} on this processor; it has {', '.join(available)}.",
            hint="Use --precision auto.",
        )
    return choice


def _status(entry: _Entry) -> EngineStatus:
    try:
        engine = _loaded(entry)
    except BackendUnavailableError as error:
        return EngineStatus(entry.name, "", (), str(error))
    return EngineStatus(entry.name, engine.version, engine.precisions(), "")
