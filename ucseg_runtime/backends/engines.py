"""Which engines there are, and which can be used here."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from ucseg_runtime.backends.onnx_runtime import OnnxRuntimeEngine
from ucseg_runtime.backends.openvino import OpenVinoEngine
from ucseg_runtime.backends.session import GraphFile, Session, SessionSettings
from ucseg_runtime.config import EngineName
from ucseg_runtime.errors import BackendUnavailableError
from ucseg_runtime.manifest import Precision


class Engine(Protocol):
    """A package that runs ONNX graphs, loaded."""

    @property
    def version(self) -> str:
        """Version of the package."""
        ...

    @property
    def device(self) -> str:
        """What it computes on, such as ``CPU``; part of the identity of every output."""
        ...

    def precisions(self) -> tuple[Precision, ...]:
        """Arithmetic that this device offers with it."""
        ...

    def parallel_tiles(self, threads: int) -> int:
        """Tiles that are best computed at the same time with so many threads in all, at least 1."""
        ...

    def open_session(self, graph: GraphFile, settings: SessionSettings) -> Session:
        """Make a graph ready to run; raises BackendError."""
        ...


@dataclass(frozen=True)
class _Entry:
    """One row of the table of engines: its name, the package it needs, the extra that installs it, how to load it."""

    name: EngineName
    package: str
    extra: str
    load: Callable[[], Engine]


_ENGINES = (  # the one of the base install first
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

    name: EngineName
    version: str
    precisions: tuple[Precision, ...]
    reason: str


def installed_engines() -> tuple[EngineName, ...]:
    """Names of the engines whose packages are installed, that of the base install first. Imports none of them."""
    return tuple(entry.name for entry in _ENGINES if _is_installed(entry))


def engine_status() -> tuple[EngineStatus, ...]:
    """Every engine that ucseg knows, usable or not. Loads the packages, but no model."""
    return tuple(_status(entry) for entry in _ENGINES)


def _is_installed(entry: _Entry) -> bool:
    return importlib.util.find_spec(entry.package) is not None


def load_engine(name: EngineName) -> Engine:
    """Import the package of an engine.

    Args:
        name: One of the table's.

    Raises:
        BackendUnavailableError: The package is not installed or cannot be loaded; the message names what to install.
    """
    return _loaded(next(entry for entry in _ENGINES if entry.name == name))


def _loaded(entry: _Entry) -> Engine:
    if _is_installed(entry):
        return entry.load()
    wanted = f"ucseg[{entry.extra}]" if entry.extra else "ucseg"
    needs = f"needs the '{entry.extra}' extra" if entry.extra else "is part of the base install and missing"
    raise BackendUnavailableError(
        f"The {entry.name} engine {needs}:",
        hint=f"pip install '{wanted}' (found: {', '.join(installed_engines()) or 'none'}).",
    )


def _status(entry: _Entry) -> EngineStatus:
    try:
        engine = _loaded(entry)
    except BackendUnavailableError as error:
        return EngineStatus(entry.name, "", (), str(error))
    return EngineStatus(entry.name, engine.version, engine.precisions(), "")
