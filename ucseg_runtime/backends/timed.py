"""A backend that notes how long the engine takes."""

from __future__ import annotations

import time

from ucseg_runtime.arrays import Float32Array
from ucseg_runtime.backends.base import Backend, BackendInfo, TileOutput


class TimedBackend:
    """Passes everything on to another backend.

    Attributes:
        seconds_per_call: Wall time of every call so far.
        seconds_per_tile: The same, shared among the tiles of the call.
        tiles: Tiles so far.
    """

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self.seconds_per_call: list[float] = []
        self.seconds_per_tile: list[float] = []
        self.tiles = 0

    @property
    def info(self) -> BackendInfo:
        """See `Backend.info`."""
        return self._backend.info

    @property
    def seconds(self) -> float:
        """Wall time of all calls."""
        return sum(self.seconds_per_call)

    def infer(self, tiles: Float32Array, *, with_logits: bool = False) -> TileOutput:
        """See `Backend.infer`."""
        started = time.perf_counter()
        output = self._backend.infer(tiles, with_logits=with_logits)
        self.seconds_per_call.append(time.perf_counter() - started)
        self.seconds_per_tile.append(self.seconds_per_call[-1] / len(tiles))
        self.tiles += len(tiles)
        return output
