"""ONNX Runtime on the CPU."""

from __future__ import annotations

import importlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ucseg_runtime.arrays import Float32Array
from ucseg_runtime.backends.graphs import AnyShape, Signature
from ucseg_runtime.backends.offers import Offer, graphs_of, no_graph
from ucseg_runtime.backends.session import GraphFile, SessionSettings, Tensor
from ucseg_runtime.errors import BackendError, BackendUnavailableError, UcsegError
from ucseg_runtime.manifest import Precision
from ucseg_runtime.model_folder import Model

CPU_PROVIDER = "CPUExecutionProvider"

_ERRORS_ONLY = 3

_TELEMETRY_OPT_OUTS = ("ORT_DISABLE_TELEMETRY", "ORT_TELEMETRY_DISABLED")
"""The first is that of release 1.32; the second is what the same switch was called while it was being developed."""


@dataclass(frozen=True)
class OnnxRuntime:
    """The loaded package.

    Attributes:
        package: Its module, untyped: the wheel carries no type information.
        failures: Exceptions that it raises.
    """

    package: Any
    failures: tuple[type[Exception], ...]

    @property
    def version(self) -> str:
        """Version of the installed package."""
        return str(self.package.__version__)

    def session(self, graph: GraphFile, threads: int, providers: Sequence[tuple[str, Mapping[str, str]]]) -> Any:  # noqa: ANN401  # untyped package
        """One of its own sessions.

        Args:
            graph: To prepare.
            threads: Of the processor.
            providers: What may compute it with which settings, the first that can takes a node.

        Raises:
            BackendError: The graph cannot be read.
        """
        options = self.package.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = _ERRORS_ONLY
        try:
            # By itself it falls back to the processor, and prints so, when a provider fails: at the start or on a tile.
            return self.package.InferenceSession(
                graph.content, options, providers=list(providers), enable_fallback=False
            )
        except self.failures as error:
            raise BackendError("onnxruntime cannot prepare a graph of the model.") from error


def load_onnxruntime() -> OnnxRuntime:
    """Import the package, for whatever processors it was made.

    Raises:
        BackendUnavailableError: It is installed but cannot be loaded.
    """
    _decline_telemetry()
    try:
        package = importlib.import_module("onnxruntime")
        state = importlib.import_module("onnxruntime.capi.onnxruntime_pybind11_state")
    except (ImportError, OSError) as error:
        raise BackendUnavailableError(
            "onnxruntime is installed but cannot be loaded.",
            hint="Install it again: pip install --force-reinstall 'ucseg[onnxruntime]'",
        ) from error
    # Its exceptions have no common base but Exception.
    own = (item for item in vars(state).values() if isinstance(item, type) and issubclass(item, Exception))
    return OnnxRuntime(package, (*own, RuntimeError, ValueError))


class OnnxRuntimeEngine:
    """Loads ONNX Runtime; opening the engine allocates nothing.

    Raises:
        BackendUnavailableError: The package is installed but cannot be loaded.
    """

    def __init__(self) -> None:
        self._runtime = load_onnxruntime()

    @property
    def version(self) -> str:
        """Version of the installed package."""
        return self._runtime.version

    @property
    def device(self) -> str:
        """The processor."""
        return "CPU"

    def precisions(self) -> tuple[Precision, ...]:
        """F32 alone: its CPU kernels have no other floating-point arithmetic for these graphs."""
        return ("f32",)

    def offers(self, model: Model) -> Mapping[Precision, Offer]:
        """Every precision that the model folder has a graph for."""
        return graphs_of(model, self.precisions())

    def unavailable(self, model: Model, precision: Precision) -> UcsegError:
        """The model folder has no graph for it."""
        return no_graph(precision)

    def parallel_tiles(self, threads: int) -> int:
        """One: its threads belong to the session, and tiles at the same time would fight for them."""
        return 1

    def open_session(self, graph: GraphFile, settings: SessionSettings) -> OnnxRuntimeSession:
        """Prepare a graph.

        Raises:
            BackendError: The graph cannot be read.
        """
        session = self._runtime.session(graph, settings.threads, [(CPU_PROVIDER, {})])
        return OnnxRuntimeSession(session, self._runtime.failures)


class OnnxRuntimeSession:
    """One prepared graph."""

    def __init__(self, session: Any, failures: tuple[type[Exception], ...]) -> None:  # noqa: ANN401  # untyped package
        self._session = session
        self._failures = failures
        self._signature = signature_of(session)

    @property
    def signature(self) -> Signature:
        """See `Session.signature`."""
        return self._signature

    def another(self) -> OnnxRuntimeSession:
        """See `Session.another`: results are new arrays with every call, and calls may overlap."""
        return OnnxRuntimeSession(self._session, self._failures)

    def run(self, tensors: Mapping[str, Tensor]) -> dict[str, Float32Array]:
        """See `Session.run`."""
        inputs = {name: tensors[name] for name in self._signature.inputs}
        names = list(self._signature.outputs)
        try:
            return dict(zip(names, self._session.run(names, inputs), strict=True))
        except self._failures as error:
            raise BackendError("onnxruntime failed on a tile.") from error

    def close(self) -> None:
        """See `Session.close`; its memory goes with the last session of the graph."""


def signature_of(session: Any) -> Signature:  # noqa: ANN401  # untyped package
    """The tensors of one of the package's own sessions."""
    return Signature(_shapes(session.get_inputs()), _shapes(session.get_outputs()))


def _decline_telemetry() -> None:
    """Keep onnxruntime 1.32 from sending reports and from writing a device identifier into the home folder.

    It does both while it is imported, before its own switch can be called; only the environment is read early enough.
    Who has set the variable has chosen, and keeps the choice. Remove when onnxruntime asks before it reports.
    """
    for variable in _TELEMETRY_OPT_OUTS:
        os.environ.setdefault(variable, "1")


def _shapes(nodes: list[Any]) -> dict[str, AnyShape]:
    return {node.name: tuple(side if isinstance(side, int) else None for side in node.shape) for node in nodes}
