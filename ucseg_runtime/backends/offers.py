"""What an engine of this machine can run of a model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ucseg_runtime.errors import BackendUnavailableError
from ucseg_runtime.manifest import GRAPH_OF_PRECISION, Precision
from ucseg_runtime.model_folder import Model


@dataclass(frozen=True)
class Offer:
    """One way to run a model.

    Attributes:
        graph: Artifact that is run whole.
        build: First digits of the digest of the engine that was built from it on site; empty where the package runs
            the graph itself.
    """

    graph: str
    build: str = ""

    def version(self, package: str) -> str:
        """Version of the package, and behind a ``+`` which engine it was."""
        return f"{package}+{self.build}" if self.build else package


def graphs_of(model: Model, precisions: tuple[Precision, ...]) -> Mapping[Precision, Offer]:
    """For engines that run the files of the model folder: those of their precisions that it has a graph for."""
    graphs = {precision: GRAPH_OF_PRECISION[precision] for precision in precisions}
    return {precision: Offer(graph) for precision, graph in graphs.items() if graph in model.manifest.artifacts}


def no_graph(precision: Precision) -> BackendUnavailableError:
    """For the same engines: why they cannot run a model in a precision that they have."""
    return BackendUnavailableError(
        f"the model has no {precision} graph.", hint="Make one: ucseg-export int8 MODEL_DIR."
    )
