"""The proof that the graphs of a weight-free fusion rule compute the rule: on every engine, against NumPy in float64.

The rule is fed with the logits that the very engine gives for the subnets, whose own proof against torch is another
one: so the merged graph has to be the composition of its stages, and every difference is one of the rule.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from ucseg_export.parity_engines import TOLERANCE, NamedEngine, largest_difference
from ucseg_export.parity_tiles import TileSet
from ucseg_runtime.arrays import Float32Array
from ucseg_runtime.backends.graphs import FUSED_LOGITS, GRAPHS, IMAGE, LOGITS_A, LOGITS_B, PROBABILITIES, UNCERTAINTY
from ucseg_runtime.backends.session import Session
from ucseg_runtime.fusion_names import WeightFreeRule
from ucseg_runtime.fusion_rules import fuse
from ucseg_runtime.manifest import MERGED, Manifest, ParityRow

_SUBNETS = ("subnet_a", "subnet_b")
_OF_THE_RULE = ("upg", "decode", MERGED)


def fusion_parity_rows(
    rule: WeightFreeRule,
    manifest: Manifest,
    graphs: Mapping[str, bytes],
    tile_sets: Sequence[TileSet],
    engines: Sequence[NamedEngine],
) -> tuple[ParityRow, ...]:
    """Largest differences between the graphs of a rule and its NumPy reference.

    Args:
        rule: The one that `upg`, `decode` and `merged` compute.
        manifest: Tensors that the graphs must have, and the parameters of the rule.
        graphs: ONNX files by artifact key.
        tile_sets: Inputs.
        engines: What runs the graphs, in float32.

    Returns:
        One row per graph of the rule, engine and set of tiles; the sets vary fastest.

    Raises:
        ArtifactMismatchError: A graph has other tensors than the manifest says.
        BackendError: An engine cannot run a graph.
    """
    rows = []
    for named in engines:
        sessions = {key: named.open_checked(key, graphs[key], manifest) for key in (*_SUBNETS, *_OF_THE_RULE)}
        references = {tiles.name: _reference(rule, sessions, tiles.tiles, manifest) for tiles in tile_sets}
        rows += [
            ParityRow(
                graph=key,
                inputs=f"{inputs} on {named.name}",
                reference=f"NumPy {np.__version__} f64, rule {rule}",
                max_abs_difference=largest_difference(sessions[key], key, tensors, _as_compared),
                tolerance=TOLERANCE,
            )
            for key in _OF_THE_RULE
            for inputs, tensors in references.items()
        ]
        for session in sessions.values():
            session.close()
    return tuple(sorted(rows, key=lambda row: _OF_THE_RULE.index(row.graph)))


def _reference(
    rule: WeightFreeRule, sessions: Mapping[str, Session], tiles: Float32Array, manifest: Manifest
) -> dict[str, Float32Array]:
    """All tensors of the graphs; logits of the subnets by the engine, everything after them by NumPy."""
    logits_a, logits_b = (_run(sessions[key], tiles, GRAPHS[key].outputs[0]) for key in _SUBNETS)
    fused = fuse(rule, logits_a, logits_b, manifest.activation, manifest.fusion_parameters)
    return {
        IMAGE: tiles,
        LOGITS_A: logits_a,
        LOGITS_B: logits_b,
        FUSED_LOGITS: fused.log_probabilities.astype(np.float32),
        PROBABILITIES: fused.probabilities.astype(np.float32),
        UNCERTAINTY: fused.uncertainty.astype(np.float32),
    }


def _run(session: Session, tiles: Float32Array, output: str) -> Float32Array:
    """One tile at a time, as sessions take them; results are valid until the next call, so they are copied."""
    found = [
        np.array(session.run({IMAGE: np.ascontiguousarray(tiles[index : index + 1])})[output], dtype=np.float32)
        for index in range(len(tiles))
    ]
    return np.concatenate(found)


def _as_compared(name: str, array: Float32Array) -> Float32Array:
    """Logarithms by the probabilities that they stand for, which `decode` makes of them.

    Those of small probabilities lose digits in float32 that no result shows.
    """
    return np.exp(array) if name == FUSED_LOGITS else array
