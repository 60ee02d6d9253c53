"""What an engine will take to run a model, before it is opened."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ucseg_runtime.backends.choice import Choice
from ucseg_runtime.backends.cores import usable_cores
from ucseg_runtime.backends.openvino import OpenVinoEngine
from ucseg_runtime.config import InferenceOptions
from ucseg_runtime.model_folder import Model


@dataclass(frozen=True)
class _Residence:
    """Memory of an engine: its own in MB, and bytes per byte of the graph and of activations in f32."""

    own_mb: float
    per_graph_byte: float
    per_activation_byte: float


# Measured on two models, whose graphs have 16 and 116 MB and tiles of 0.41 and 0.88 megavoxels.
_OPENVINO = _Residence(110.0, 3.0, 0.9)  # 2026.4; runs several operations as one and stores not every result
_OPENVINO_BF16 = _Residence(110.0, 3.0, 0.6)
_ONNXRUNTIME = _Residence(20.0, 3.0, 2.4)  # 1.32; its arena grows with the second tile and never shrinks


@dataclass(frozen=True)
class EngineLoad:
    """Time and memory that an engine takes for one model.

    Attributes:
        parallel_tiles: Tiles that it computes at the same time if nothing else limits them.
        opened_mb: Memory of the engine with its weights.
        tile_mb: Memory of the activations of each tile that is computed at the same time.
        seconds_per_tile: None where the engine was never timed with this model.
    """

    parallel_tiles: int
    opened_mb: float
    tile_mb: float
    seconds_per_tile: float | None


REMOTE_LOAD = EngineLoad(parallel_tiles=1, opened_mb=0.0, tile_mb=0.0, seconds_per_tile=None)
"""What an engine takes of this machine's memory while a server computes."""


def engine_load(model: Model, chosen: Choice, options: InferenceOptions) -> EngineLoad:
    """Estimate what an engine takes; reads the graph, compiles nothing.

    Raises:
        BackendError: The graph cannot be read.
    """
    graph = model.graph(chosen.offer.graph)
    residence = _residence(chosen)
    return EngineLoad(
        parallel_tiles=parallel_tiles(chosen, options, options.threads or usable_cores()),
        opened_mb=residence.own_mb + residence.per_graph_byte * len(graph) / 1e6,
        tile_mb=residence.per_activation_byte * live_activation_bytes(graph) / 1e6,
        seconds_per_tile=chosen.seconds_per_tile,
    )


def _residence(chosen: Choice) -> _Residence:
    if chosen.name == "onnxruntime":
        return _ONNXRUNTIME
    return _OPENVINO_BF16 if chosen.precision == "bf16" else _OPENVINO


def parallel_tiles(chosen: Choice, options: InferenceOptions, threads: int) -> int:
    """Tiles to compute at the same time: what the caller limits them to, or what suits the engine in the mode."""
    suited = chosen.engine.parallel_tiles(threads)
    if suited > 1:  # engines that run one tile at a time do so in every mode
        suited = {"latency": 1, "auto": suited, "throughput": threads}[options.mode]
    return min(suited, options.most_parallel_tiles) if options.most_parallel_tiles else suited


def live_activation_bytes(graph: bytes) -> int:
    """Most bytes of f32 results that have to exist at the same time when one tile runs through a graph.

    Operations run in the graph's order, and a result exists from the operation that makes it to the last that reads it.

    Args:
        graph: An ONNX file.

    Raises:
        BackendError: The graph cannot be read.
    """
    operations = OpenVinoEngine().read_for_one_tile(graph).get_ordered_ops()
    last_reader: dict[tuple[str, int], int] = {}
    for place, operation in enumerate(operations):
        for source in (port.get_source_output() for port in operation.inputs()):
            last_reader[source.get_node().get_name(), source.get_index()] = place
    live: dict[tuple[str, int], int] = {}
    most = 0
    for place, operation in enumerate(operations):
        if operation.get_type_name() != "Constant":
            live |= {
                (operation.get_name(), port.get_index()): 4 * math.prod(port.shape) for port in operation.outputs()
            }
        most = max(most, sum(live.values()))
        live = {key: size for key, size in live.items() if last_reader.get(key, place) > place}
    return most
