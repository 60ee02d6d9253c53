"""The proof that graphs compute what the networks compute: every graph, on every engine, against torch."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence

import numpy as np
import torch

from ucseg_export.parity_engines import TOLERANCE, NamedEngine, largest_difference
from ucseg_export.parity_tiles import TileSet
from ucseg_runtime.arrays import Float32Array
from ucseg_runtime.backends.graphs import FUSED_LOGITS, GRAPHS, IMAGE, LOGITS_A, LOGITS_B, PROBABILITIES, UNCERTAINTY
from ucseg_runtime.errors import AccuracyGateError
from ucseg_runtime.fusion_names import FusionRule
from ucseg_runtime.manifest import Manifest, ParityRow
from ucseg_training.nets import DualNet, uncertainty

_OF_UPG = (
    "Largest absolute difference between each graph and the trained networks in torch: of logits for the subnets",
    "and the UPG, of probabilities and uncertainty for the read-out and the merged graph.",
)
_OF_WEIGHT_FREE_RULE = (
    "Largest absolute difference between each graph and its reference: for the subnets of logits, against the trained",
    "networks in torch; for all others of probabilities and uncertainty, against the fusion rule in NumPy, which is",
    "fed with the engine's own logits of the subnets.",
)


def parity_rows(
    net: DualNet,
    manifest: Manifest,
    graphs: Mapping[str, bytes],
    tile_sets: Sequence[TileSet],
    engines: Sequence[NamedEngine],
) -> tuple[ParityRow, ...]:
    """Largest differences between graphs and networks.

    Each stage is fed with what torch gave the stage before it, so that a difference shows where it arises.

    Args:
        net: The trained trio as it is, without rewrites.
        manifest: Tensors that the graphs must have; its own parity rows are not read.
        graphs: ONNX files by artifact key.
        tile_sets: Inputs.
        engines: What runs the graphs, in float32.

    Returns:
        One row per graph, engine and set of tiles; the sets vary fastest.

    Raises:
        ArtifactMismatchError: A graph has other tensors than the manifest says.
        BackendError: An engine cannot run a graph.
    """
    exact = copy.deepcopy(net).double()
    references = {tile_set.name: reference_tensors(exact, tile_set.tiles) for tile_set in tile_sets}
    own = {name: _own_tensors(net, tensors) for name, tensors in references.items()}
    rows = []
    for key, graph in graphs.items():
        for named in engines:
            session = named.open_checked(key, graph, manifest)
            rows += [
                ParityRow(
                    graph=key,
                    inputs=f"{inputs} on {named.name}",
                    reference=f"torch {torch.__version__} f64",
                    max_abs_difference=largest_difference(session, key, tensors),
                    tolerance=_tolerance(key, tensors, own[inputs]),
                )
                for inputs, tensors in references.items()
            ]
    return tuple(rows)


def require_parity(rows: Sequence[ParityRow]) -> None:
    """Let nothing pass that is not proved.

    Raises:
        AccuracyGateError: There are no rows, or a difference is above its tolerance or not a number; the message names
            the worst one.
    """
    failed = [row for row in rows if not row.max_abs_difference <= row.tolerance]
    if rows and not failed:
        return
    if not rows:
        raise AccuracyGateError("no graph was compared with torch.")
    worst = max(failed, key=lambda row: np.nan_to_num(row.max_abs_difference, nan=np.inf))
    raise AccuracyGateError(
        f"{len(failed)} of {len(rows)} comparisons failed; worst: graph {worst.graph}, {worst.inputs}: "
        f"difference {worst.max_abs_difference:.2e}, allowed {worst.tolerance:.0e}.",
        hint="Nothing was written. Export with another version of torch or of the engine.",
    )


def reference_tensors(net: DualNet, tiles: Float32Array) -> dict[str, Float32Array]:
    """What torch computes for every tensor of the graphs, one tile at a time, in the precision of its weights.

    Args:
        net: Trained trio in eval mode.
        tiles: float32, shape (tiles, channels, *tile), as the graphs take it.
    """
    per_tile = [_reference_of_tile(net, tiles[index : index + 1]) for index in range(len(tiles))]
    return {name: np.concatenate([tensors[name] for tensors in per_tile]) for name in per_tile[0]}


def parity_table(rows: Sequence[ParityRow], fusion: FusionRule = "upg") -> str:
    """The rows as a Markdown page."""
    lines = [
        "# Parity",
        "",
        *(_OF_UPG if fusion == "upg" else _OF_WEIGHT_FREE_RULE),
        "",
        "| graph | tiles and engine | reference | largest difference | tolerance |",
        "|---|---|---|---|---|",
    ]
    lines += [
        f"| {row.graph} | {row.inputs} | {row.reference} | {row.max_abs_difference:.1e} | {row.tolerance:.0e} |"
        for row in rows
    ]
    return "\n".join(lines) + "\n"


def _reference_of_tile(net: DualNet, image: Float32Array) -> dict[str, Float32Array]:
    planar = net.config.dim == 2
    with torch.inference_mode():
        output = net(torch.tensor(image[:, :, 0] if planar else image, dtype=next(net.parameters()).dtype))
        fused = output.fused_logits
        binary = net.config.activation == "sigmoid"
        tensors = {
            LOGITS_A: output.logits_a,
            LOGITS_B: output.logits_b,
            FUSED_LOGITS: fused,
            PROBABILITIES: torch.sigmoid(fused[:, 1:2]) if binary else torch.softmax(fused, dim=1),
            UNCERTAINTY: uncertainty(fused),
        }
    found = {name: tensor.float().numpy() for name, tensor in tensors.items()}
    return {IMAGE: image, **{name: array[:, :, None] if planar else array for name, array in found.items()}}


def _own_tensors(net: DualNet, exact: Mapping[str, Float32Array]) -> dict[str, Float32Array]:
    """What torch computes in float32; the UPG from exact logits, as the engines are fed."""
    planar = net.config.dim == 2
    logits_a, logits_b = (
        torch.tensor(exact[name][:, :, 0] if planar else exact[name]) for name in (LOGITS_A, LOGITS_B)
    )
    with torch.inference_mode():
        per_tile = [net.upg(logits_a[tile, None], logits_b[tile, None]) for tile in range(len(logits_a))]
    fused = torch.cat(per_tile).numpy()
    return reference_tensors(net, exact[IMAGE]) | {FUSED_LOGITS: fused[:, :, None] if planar else fused}


def _tolerance(key: str, exact: Mapping[str, Float32Array], own: Mapping[str, Float32Array]) -> float:
    """`TOLERANCE`, or twice what torch's own float32 is off from the same inputs, where that is more.

    It is more where a tile is nearly all air, since an instance norm then divides by almost nothing, and for logits
    above 100, whose neighbours in float32 are 8e-6 and more apart. The read-out is fed with exact logits.
    """
    if FUSED_LOGITS in GRAPHS[key].inputs:
        return TOLERANCE
    off = max(float(np.abs(exact[name] - own[name]).max()) for name in GRAPHS[key].outputs)
    return max(TOLERANCE, 2.0 * off)
