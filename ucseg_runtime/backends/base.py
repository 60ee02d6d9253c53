"""What every backend promises, whatever runs the network."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from ucseg_runtime.arrays import Float32Array
from ucseg_runtime.errors import TileShapeError
from ucseg_runtime.manifest import ModelSpec
from ucseg_runtime.segmentation import EngineInfo


@dataclass(frozen=True)
class BackendInfo:
    """What a backend is.

    Attributes:
        engine: What computes; part of the identity of every output.
        batch_atol: Largest difference that splitting a batch can make to any value; 0 where tiles never meet.
        reason: Why this engine and precision were chosen; empty where nothing was.
        parallel_tiles: Tiles that are computed at the same time; a batch should have as many.
        elsewhere: Whether other processes compute, so that this one can work meanwhile.
    """

    engine: EngineInfo
    batch_atol: float
    reason: str = ""
    parallel_tiles: int = 1
    elsewhere: bool = False


@dataclass(frozen=True, eq=False)
class TileOutput:
    """Results of a batch of tiles, in the order of the batch.

    Attributes:
        probabilities: float32, shape (tiles, channels, z, y, x), in [0, 1]: every class for a softmax model, the
            foreground alone for a sigmoid model.
        uncertainty: float32, shape (tiles, 1, z, y, x), in [0, 1]; 1 = no evidence.
        logits_a: float32, shape (tiles, K, z, y, x), of subnet A; None unless asked for.
        logits_b: The same of subnet B.
        fused_logits: The same of the UPG.
    """

    probabilities: Float32Array
    uncertainty: Float32Array
    logits_a: Float32Array | None = None
    logits_b: Float32Array | None = None
    fused_logits: Float32Array | None = None


class Backend(Protocol):
    """A trained trio on some engine.

    Contract:
        - Tiles are float32, C-contiguous, shape (tiles, channels, z, y, x) with the model's tile shape, at least one;
          anything else raises TileShapeError and leaves the backend usable.
        - Results keep the order of the tiles and belong to the caller: a later call never changes them.
        - Splitting a batch changes no value by more than ``info.batch_atol``.
        - A failure of the engine raises BackendError with the engine's own exception as its cause.
        - One caller at a time.
    """

    @property
    def info(self) -> BackendInfo:
        """What computes, and how exactly."""
        ...

    def infer(self, tiles: Float32Array, *, with_logits: bool = False) -> TileOutput:
        """Run both subnets, the UPG and the read-out.

        Args:
            tiles: float32, C-contiguous, shape (tiles, channels, z, y, x), network input units.
            with_logits: Whether the logits of both subnets and the fused ones are returned too.

        Raises:
            TileShapeError: The tiles have another shape, type or layout.
            BackendError: The engine failed, or gives no logits.
        """
        ...


def check_tiles(tiles: Float32Array, spec: ModelSpec) -> None:
    """Refuse what is not a batch of the model's tiles.

    Raises:
        TileShapeError: The message says what was expected and what was found.
    """
    expected = (spec.channels, *spec.tiling.tile_shape)
    if tiles.dtype == np.float32 and tiles.flags.c_contiguous and len(tiles) and tiles.shape[1:] == expected:
        return
    layout = "C-contiguous" if tiles.flags.c_contiguous else "not C-contiguous"
    raise TileShapeError(
        f"the tiles are {tiles.dtype}, {layout}, of shape {tiles.shape}; expected float32, C-contiguous, of shape "
        f"(tiles, {', '.join(map(str, expected))}) with at least one tile"
    )
