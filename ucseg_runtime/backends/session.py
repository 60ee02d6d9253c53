"""One graph on one engine: what an engine is given to make it ready, and what it then promises."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy.typing as npt

from ucseg_runtime.arrays import Float32Array
from ucseg_runtime.backends.graphs import Signature
from ucseg_runtime.manifest import Precision


@dataclass(frozen=True, eq=False)
class GraphFile:
    """One verified ONNX file, and which model it belongs to.

    Attributes:
        key: Artifact key, such as ``merged``.
        content: The file.
        model_digest: SHA-256 of the manifest, 64 hexadecimal digits; empty for a graph of no model folder.
        build: Which engine that was built from it on site is meant, as in `Offer`; empty for whichever there is.
    """

    key: str
    content: bytes
    model_digest: str = ""
    build: str = ""


@dataclass(frozen=True)
class SessionSettings:
    """How a graph is to be run.

    Attributes:
        precision: Arithmetic.
        threads: Threads of the processor for everything together, at least 1.
        parallel_tiles: Sessions of the same graph that will run at the same time, at least 1.
        cache_folder: Where compiled graphs may be kept; None means nowhere. Engines may ignore it.
        gpu_memory_mb: Most memory in MB that an engine may take on the GPU, where it has such a limit; 0 for none.
    """

    precision: Precision
    threads: int
    parallel_tiles: int = 1
    cache_folder: Path | None = None
    gpu_memory_mb: int = 0


class DeviceTensor(Protocol):
    """A result that still lies where the engine computed it; `numpy.asarray` copies it to the host."""

    def __array__(self, dtype: npt.DTypeLike | None = None, copy: bool | None = None) -> Float32Array:
        """The same values on the host, float32."""
        ...


Tensor = Float32Array | DeviceTensor
"""What goes into a session and comes out of it: the next stage takes a result from where it lies."""


class Session(Protocol):
    """One graph, ready to run on one engine."""

    @property
    def signature(self) -> Signature:
        """The tensors that the graph takes and gives."""
        ...

    def another(self) -> Session:
        """A session of the same graph that may run at the same time, with buffers of its own."""
        ...

    def run(self, tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Run the graph on one tile.

        Args:
            tensors: float32, C-contiguous, shape (1, channels, *tile); at least the inputs of the graph. Those that
                are no arrays come from another session of this engine.

        Returns:
            Every output, float32, shape (1, channels, *tile); valid until the next call.

        Raises:
            BackendError: The engine failed.
        """
        ...

    def close(self) -> None:
        """Give buffers and device memory back; nothing else may be called afterwards."""
        ...
