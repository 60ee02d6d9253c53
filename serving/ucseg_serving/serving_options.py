"""What a site chooses about its server; what the model fixes stands in the manifest."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Target = Literal["tensorrt", "onnxruntime", "cpu"]
VolumeOver = Literal["ucseg_merged", "ucseg_tiles", "ucseg_logits"]

_QUEUE_SIZE_SAFE_SINCE = (2, 67)
"""Before, a server died or hung when `max_queue_size` was reached inside an ensemble (triton-inference-server/core,
pull requests 466 and 470 of February 2026)."""


@dataclass(frozen=True)
class ServingOptions:
    """How the models of a repository are run.

    Attributes:
        target: ``cpu``: thin Python models on the embedded engines; ``onnxruntime`` and ``tensorrt``: Triton's own
            backends on a GPU.
        max_batch: Most tiles of a request, and, but for ``cpu``, of what requests are merged into.
        instances: Copies of each model that run at the same time, at least 2: with one, Triton 2.51 leaves requests
            lying for half a second where queues have time limits, since its batcher misses that the instance is free
            (``benchmarks/serve_load.py --instances 1``; with two, none).
        queue_delay_us: How long a request waits for others to be merged with, in µs; not for ``cpu``.
        tile_timeout_s: Time after which a queued tile request is refused.
        volume_timeout_s: The same of a volume request.
        volume_memory_gb: That one volume request may take on the server, in GB.
        triton_version: Of the server, its first two numbers.
        volume_over: Model that the volume model sends its tiles to. With ``ucseg_logits`` it also tells the metrics how
            far the subnets agree.
    """

    target: Target = "cpu"
    max_batch: int = 4
    instances: int = 2
    queue_delay_us: int = 500
    tile_timeout_s: float = 30.0
    volume_timeout_s: float = 600.0
    volume_memory_gb: float = 8.0
    triton_version: tuple[int, int] = (2, 51)
    volume_over: VolumeOver = "ucseg_merged"

    @property
    def queue_may_be_limited(self) -> bool:
        """Whether the server survives a full queue inside an ensemble."""
        return self.triton_version >= _QUEUE_SIZE_SAFE_SINCE


@dataclass(frozen=True)
class Served:
    """What computes; clients read it from the configuration of every model.

    Attributes:
        model_digest: SHA-256 of the manifest.
        engine: ``openvino``, ``onnxruntime`` or ``tensorrt``.
        engine_version: Of the engine's package.
        precision: Arithmetic.
        device: ``CPU`` or ``GPU``.
        proven: Whether it passed the accuracy gate for the model.
    """

    model_digest: str
    engine: str
    engine_version: str
    precision: str
    device: str
    proven: bool
