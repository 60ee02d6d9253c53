"""How far the two subnets agree, counted from their logits tile by tile, without putting either back together.

Every voxel of the model grid that tiles cover counts once, with the tile in which it lies most central: the cores of
the tiles do not overlap. What counts is what the subnets decide there, before averaging, resampling and clean-up.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

from ucseg_runtime.arrays import Float32Array, Slices3, UInt8Array
from ucseg_runtime.backends.base import TileOutput
from ucseg_runtime.errors import BackendError
from ucseg_runtime.manifest import ModelSpec
from ucseg_runtime.segmentation import ClassAgreement
from ucseg_runtime.tiling import Tile, TilePlan


class TileCores:
    """The part of each tile of a plan in which its voxels lie most central; together they cover all voxels once.

    Args:
        plan: Where the tiles lie: a grid of them, as `plan_tiles` makes it.
    """

    def __init__(self, plan: TilePlan) -> None:
        self._ends = [_core_ends(plan, axis) for axis in range(3)]

    def of(self, tile: Tile) -> Slices3:
        """The core of a tile, as slices of the tile."""
        starts, ends = tile.start, (axis[start] for axis, start in zip(self._ends, tile.start, strict=True))
        z, y, x = (slice(low - start, high - start) for start, (low, high) in zip(starts, ends, strict=True))
        return z, y, x


class AgreementCounter:
    """Counts, over the tiles of one plan, the voxels of every pair of labels that subnet A and subnet B give.

    Args:
        plan: Where the tiles lie: a grid of them, as `plan_tiles` makes it.
        spec: Classes and activation.
    """

    def __init__(self, plan: TilePlan, spec: ModelSpec) -> None:
        self._plan = plan
        self._spec = spec
        self._cores = TileCores(plan)
        self._pairs = np.zeros((spec.num_classes, spec.num_classes), dtype=np.int64)  # (label of A, label of B)

    def add(self, tiles: tuple[Tile, ...], output: TileOutput) -> None:
        """Count the cores of some tiles of the plan; the order of the tiles does not matter.

        Args:
            tiles: Each one of the plan once, over all calls.
            output: Their results, with logits.

        Raises:
            BackendError: There are no logits, or they have another shape than the tiles.
        """
        of_a, of_b = (self._checked(logits, len(tiles)) for logits in (output.logits_a, output.logits_b))
        for tile, *logits in zip(tiles, of_a, of_b, strict=True):
            core = (slice(None), *self._cores.of(tile))
            self._count(*(decided_labels(of_subnet[core], self._spec.activation) for of_subnet in logits))

    def classes(self) -> tuple[ClassAgreement, ...]:
        """What was counted, one for every foreground class, in the order of the labels."""
        of_a, of_b = self._pairs.sum(axis=1), self._pairs.sum(axis=0)
        return tuple(
            ClassAgreement(
                label=item.label,
                name=item.name,
                voxels_a=int(of_a[item.label]),
                voxels_b=int(of_b[item.label]),
                voxels_both=int(self._pairs[item.label, item.label]),
            )
            for item in self._spec.classes
        )

    def _checked(self, logits: Float32Array | None, tiles: int) -> Float32Array:
        expected = (tiles, self._spec.num_classes, *self._plan.tiling.tile_shape)
        if logits is None or logits.shape != expected:
            found = "no logits" if logits is None else f"logits of shape {logits.shape}"
            raise BackendError(f"the engine returned {found} of a subnet; expected shape {expected}")
        return logits

    def _count(self, labels_a: UInt8Array, labels_b: UInt8Array) -> None:
        number = len(self._pairs)
        pairs = labels_a.astype(np.intp) * number + labels_b
        self._pairs += np.bincount(pairs.ravel(), minlength=number * number).reshape(number, number)


def decided_labels(logits: Float32Array, activation: Literal["sigmoid", "softmax"]) -> UInt8Array:
    """The label that a subnet gives each voxel; background wins ties.

    Args:
        logits: float32, shape (K, z, y, x).
        activation: ``softmax``: the greatest logit; ``sigmoid``: foreground where its probability exceeds one half.

    Returns:
        uint8, shape (z, y, x).
    """
    labels = np.zeros(logits.shape[1:], dtype=np.uint8)
    if activation == "sigmoid":
        labels[logits[1] > 0.0] = 1
        return labels
    best = logits[0].copy()
    # A running maximum: an argmax over the class axis would read memory with a stride.
    for label, candidate in enumerate(logits[1:], start=1):
        np.copyto(labels, np.uint8(label), where=candidate > best)
        np.maximum(best, candidate, out=best)
    return labels


def _core_ends(plan: TilePlan, axis: int) -> dict[int, tuple[int, int]]:
    """Start of a tile along an axis to the first voxel of its core and the one after the last, inside the volume."""
    side, limit = plan.tiling.tile_shape[axis], plan.spatial_shape[axis]
    starts: Sequence[int] = sorted({tile.start[axis] for tile in plan.tiles})
    # In the middle of what two neighbours share; of an odd number of voxels the later tile has one more.
    borders = [(one + other + side) // 2 for one, other in zip(starts, starts[1:], strict=False)]
    firsts = [max(starts[0], 0), *borders]
    stops = [*borders, min(starts[-1] + side, limit)]
    return {start: (first, stop) for start, first, stop in zip(starts, firsts, stops, strict=True)}
