"""OpenVINO on the CPU."""

from __future__ import annotations

import hashlib
import importlib
import importlib.metadata
import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ucseg_runtime.arrays import Float32Array
from ucseg_runtime.backends.compiled_cache import CompiledKey, keep, kept
from ucseg_runtime.backends.cores import processor_name, usable_cores
from ucseg_runtime.backends.graphs import AnyShape, Signature
from ucseg_runtime.backends.offers import Offer, graphs_of, no_graph
from ucseg_runtime.backends.session import GraphFile, SessionSettings, Tensor
from ucseg_runtime.backends.telemetry import without_telemetry
from ucseg_runtime.errors import BackendError, BackendUnavailableError, UcsegError
from ucseg_runtime.manifest import Precision
from ucseg_runtime.model_folder import Model

_LOGGER = logging.getLogger(__name__)
_THREADS_PER_TILE = 4
_MOST_PARALLEL_TILES = 8


class OpenVinoEngine:
    """Loads OpenVINO; opening the engine compiles nothing.

    Raises:
        BackendUnavailableError: The package is installed but cannot be loaded.
    """

    def __init__(self) -> None:
        try:
            with without_telemetry():
                openvino = importlib.import_module("openvino")
            # Untyped: the wheel carries no type information.
            self._core: Any = openvino.Core()
            # OpenVINO 2026.4 looks NumPy up at its first conversion of an array; two threads that both come first wait
            # for each other for ever. Remove when a first conversion in two threads at once works.
            openvino.Tensor(np.zeros(1, dtype=np.float32), shared_memory=True)
        except (ImportError, OSError, RuntimeError) as error:
            raise BackendUnavailableError(
                "openvino is installed but cannot be loaded.",
                hint="Install it again: pip install --force-reinstall ucseg",
            ) from error

    @property
    def version(self) -> str:
        """Version of the installed package."""
        return importlib.metadata.version("openvino")

    @property
    def device(self) -> str:
        """The processor."""
        return "CPU"

    def precisions(self) -> tuple[Precision, ...]:
        """f32 and int8, and bf16 where the processor has it."""
        capabilities = self._core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
        return ("f32", "bf16", "int8") if "BF16" in capabilities else ("f32", "int8")

    def offers(self, model: Model) -> Mapping[Precision, Offer]:
        """Every precision that the model folder has a graph for."""
        return graphs_of(model, self.precisions())

    def unavailable(self, model: Model, precision: Precision) -> UcsegError:
        """The model folder has no graph for it."""
        return no_graph(precision)

    def parallel_tiles(self, threads: int) -> int:
        """Two where there are two cores or more, and one for every four cores where there are many.

        Two tiles on a core each beat one on two cores; more than a few cores a tile hardly shares well. Each tile more
        costs the memory of its activations, so there are never more than eight. Measured on two cores only.
        """
        return min(threads, max(2, threads // _THREADS_PER_TILE), _MOST_PARALLEL_TILES)

    def open_session(self, graph: GraphFile, settings: SessionSettings) -> OpenVinoSession:
        """Compile a graph for single tiles, so many of them at the same time as the settings say.

        Raises:
            BackendError: The graph cannot be read or compiled.
        """
        properties = {
            "PERFORMANCE_HINT": "LATENCY" if settings.parallel_tiles == 1 else "THROUGHPUT",
            "NUM_STREAMS": str(settings.parallel_tiles),
            # What an int8 graph has not quantised stays in f32.
            "INFERENCE_PRECISION_HINT": "bf16" if settings.precision == "bf16" else "f32",
            "INFERENCE_NUM_THREADS": str(settings.threads),
            # A process pins its threads to the first cores: several that share the cores would wait for the same ones.
            "ENABLE_CPU_PINNING": "YES" if settings.threads >= usable_cores() else "NO",
        }
        try:
            model = self._core.read_model(graph.content)
            signature = Signature(_shapes(model.inputs), _shapes(model.outputs))
            _fix_one_tile(model)
            return OpenVinoSession(self._compiled(model, graph, properties, settings.cache_folder), signature)
        except (RuntimeError, TypeError, ValueError) as error:
            raise BackendError("openvino cannot compile a graph of the model.") from error

    def read_for_one_tile(self, content: bytes) -> Any:  # noqa: ANN401  # untyped package
        """The graph of an ONNX file with all shapes known, for a single tile; nothing is compiled.

        Raises:
            BackendError: The graph cannot be read.
        """
        try:
            model = self._core.read_model(content)
            _fix_one_tile(model)
        except (RuntimeError, TypeError, ValueError) as error:
            raise BackendError("openvino cannot read a graph of the model.") from error
        return model

    def _compiled(self, model: Any, graph: GraphFile, properties: dict[str, str], cache_folder: Path | None) -> Any:  # noqa: ANN401  # untyped package
        if cache_folder is None:
            return self._core.compile_model(model, "CPU", properties)
        key = CompiledKey(
            graph_sha256=hashlib.sha256(graph.content).hexdigest(),
            model_digest=graph.model_digest,
            engine=f"openvino {self.version}",
            device=processor_name(),
            settings=json.dumps(properties, sort_keys=True),
        )
        compiled = kept(cache_folder, key)
        if compiled is not None:
            try:
                return self._core.import_model(compiled, "CPU", properties)
            except RuntimeError:
                _LOGGER.info("openvino does not take a kept compiled model, which is compiled again")
        fresh = self._core.compile_model(model, "CPU", properties)
        keep(cache_folder, key, fresh.export_model().getvalue())
        return fresh


class OpenVinoSession:
    """One compiled graph with its own buffers."""

    def __init__(self, compiled: Any, signature: Signature) -> None:  # noqa: ANN401  # untyped package
        self._compiled = compiled
        self._request = compiled.create_infer_request()
        self._signature = signature

    @property
    def signature(self) -> Signature:
        """See `Session.signature`."""
        return self._signature

    def another(self) -> OpenVinoSession:
        """See `Session.another`."""
        return OpenVinoSession(self._compiled, self._signature)

    def run(self, tensors: Mapping[str, Tensor]) -> dict[str, Float32Array]:
        """See `Session.run`. The results are views of the engine's buffers, which the next call overwrites."""
        inputs = {name: tensors[name] for name in self._signature.inputs}
        try:
            results = self._request.infer(inputs, share_inputs=True, share_outputs=True)
            return {name: results[name] for name in self._signature.outputs}
        except RuntimeError as error:
            raise BackendError("openvino failed on a tile.") from error

    def close(self) -> None:
        """See `Session.close`; its memory goes with the last session of the graph."""


def _fix_one_tile(model: Any) -> None:  # noqa: ANN401  # untyped package
    model.reshape({name: _one_tile(shape) for name, shape in _shapes(model.inputs).items()})


def _one_tile(shape: AnyShape) -> list[int]:
    return [1, *(-1 if side is None else side for side in shape[1:])]


def _shapes(ports: list[Any]) -> dict[str, AnyShape]:
    return {
        port.get_any_name(): tuple(None if side.is_dynamic else side.get_length() for side in port.partial_shape)
        for port in ports
    }
