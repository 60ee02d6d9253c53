"""The graphs of a model folder: which tensors each one takes and gives, and of what shape.

The export writes graphs that follow this table, and every engine checks them against it before the first tile.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from ucseg_runtime.arrays import Float32Array
from ucseg_runtime.errors import ArtifactMismatchError
from ucseg_runtime.manifest import MERGED, ModelSpec, Tiling

IMAGE = "IMAGE"
LOGITS_A = "LOGITS_A"
LOGITS_B = "LOGITS_B"
FUSED_LOGITS = "FUSED_LOGITS"
PROBABILITIES = "PROBABILITIES"
UNCERTAINTY = "UNCERTAINTY"

AnyShape = tuple[int | None, ...]


@dataclass(frozen=True)
class Graph:
    """Names of the tensors that one graph takes and gives, in order."""

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


GRAPHS: Mapping[str, Graph] = MappingProxyType(
    {
        "subnet_a": Graph((IMAGE,), (LOGITS_A,)),
        "subnet_b": Graph((IMAGE,), (LOGITS_B,)),
        "upg": Graph((LOGITS_A, LOGITS_B), (FUSED_LOGITS,)),
        "decode": Graph((FUSED_LOGITS, LOGITS_A, LOGITS_B), (PROBABILITIES, UNCERTAINTY)),
        MERGED: Graph((IMAGE,), (PROBABILITIES, UNCERTAINTY)),
    }
)
"""Artifact key of the manifest to graph. A graph may leave an input out that it does not use."""


@dataclass(frozen=True)
class Signature:
    """The tensors of a graph as an engine reports them.

    Attributes:
        inputs: Name to shape; None for a side that may vary.
        outputs: The same of the outputs.
    """

    inputs: Mapping[str, AnyShape]
    outputs: Mapping[str, AnyShape]


def engine_tile_shape(tiling: Tiling) -> tuple[int, int, int]:
    """Sides of a tile in the order in which the network has its axes."""
    z, y, x = tiling.tile_shape
    return (z, y, x) if tiling.axis_order == "zyx" else (x, y, z)


def turned(tiles: Float32Array, tiling: Tiling) -> Float32Array:
    """Tiles between (z, y, x) and the axis order of the network: the same turn both ways; a view.

    Args:
        tiles: Shape (tiles, channels, three sides).
        tiling: Says the order.
    """
    return tiles if tiling.axis_order == "zyx" else tiles.transpose(0, 1, 4, 3, 2)


def channels_of(tensor: str, spec: ModelSpec) -> int:
    """Channels of one of the named tensors."""
    special = {IMAGE: spec.channels, PROBABILITIES: spec.probability_channels, UNCERTAINTY: 1}
    return special.get(tensor, spec.num_classes)


def check_signature(key: str, found: Signature, spec: ModelSpec) -> None:
    """Refuse a graph whose tensors are not those of the table.

    Args:
        key: Artifact key of the graph.
        found: What the engine reports.
        spec: Classes, channels and tile shape that the graph must have.

    Raises:
        ArtifactMismatchError: A name or shape differs; the message says which, expected and found.
    """
    graph = GRAPHS[key]
    if not set(found.inputs) <= set(graph.inputs) or set(found.outputs) != set(graph.outputs):
        raise _mismatch(key, f"tensors {_names(found)}", f"tensors {_names(graph)}")
    for name, shape in {**found.inputs, **found.outputs}.items():
        expected = (None, channels_of(name, spec), *engine_tile_shape(spec.tiling))
        if shape != expected:
            raise _mismatch(key, f"{name} of shape {_sides(shape)}", _sides(expected))


def _mismatch(key: str, found: str, expected: str) -> ArtifactMismatchError:
    return ArtifactMismatchError(
        f"artifact {key} has {found}; the manifest needs {expected}.", hint="Export the model again."
    )


def _names(graph: Graph | Signature) -> str:
    return f"{', '.join(graph.inputs)} → {', '.join(graph.outputs)}"


def _sides(shape: AnyShape) -> str:
    return f"({', '.join('tiles' if side is None else str(side) for side in shape)})"
