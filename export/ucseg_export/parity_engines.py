"""One graph on one of the engines that every export is proved on, and how far it is from a reference."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from ucseg_runtime.arrays import Float32Array
from ucseg_runtime.backends.cores import usable_cores
from ucseg_runtime.backends.engines import Engine
from ucseg_runtime.backends.graphs import GRAPHS, IMAGE, check_signature
from ucseg_runtime.backends.onnx_runtime import OnnxRuntimeEngine
from ucseg_runtime.backends.openvino import OpenVinoEngine
from ucseg_runtime.backends.session import GraphFile, Session, SessionSettings
from ucseg_runtime.manifest import Manifest

TOLERANCE = 1e-4
"""Largest difference of a logit, a probability or an uncertainty that float32 sums in another order may make."""

AsCompared = Callable[[str, Float32Array], Float32Array]
"""What of a tensor, by its name, is compared."""


@dataclass(frozen=True)
class NamedEngine:
    """An engine of the runtime with its name and version."""

    name: str
    engine: Engine

    def open_checked(self, key: str, graph: bytes, manifest: Manifest) -> Session:
        """The graph in float32, ready to run.

        Args:
            key: Artifact key of the graph.
            graph: ONNX file.
            manifest: Tensors that the graph must have.

        Raises:
            ArtifactMismatchError: The graph has other tensors than the manifest says.
            BackendError: The engine cannot run the graph.
        """
        session = self.engine.open_session(GraphFile(key, graph), SessionSettings("f32", usable_cores()))
        check_signature(key, session.signature, manifest)
        return session


def installed_parity_engines() -> tuple[NamedEngine, ...]:
    """The engines that every export is proved on.

    Raises:
        BackendUnavailableError: One of them cannot be loaded.
    """
    engines: dict[str, Engine] = {"onnxruntime": OnnxRuntimeEngine(), "openvino": OpenVinoEngine()}
    return tuple(NamedEngine(f"{name} {engine.version} f32", engine) for name, engine in engines.items())


def largest_difference(
    session: Session,
    key: str,
    tensors: Mapping[str, Float32Array],
    as_compared: AsCompared = lambda name, array: array,
) -> float:
    """Largest absolute difference over all tiles and outputs; NaN as soon as one value is NaN.

    Args:
        session: Runs the graph.
        key: Artifact key of the graph.
        tensors: Inputs and expected outputs by name, each float32, shape (tiles, channels, *tile).
        as_compared: Applied to what was found and to what was expected.
    """
    differences = []
    for index in range(len(tensors[IMAGE])):
        tile = {name: np.ascontiguousarray(array[index : index + 1]) for name, array in tensors.items()}
        results = session.run(tile)
        for name in GRAPHS[key].outputs:
            found = as_compared(name, np.asarray(results[name]))
            differences.append(np.abs(found - as_compared(name, tile[name])).max())
    return float(np.max(differences))
