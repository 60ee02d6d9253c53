"""A backend inside the server: tiles go to another model of the same server."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass

import numpy as np

from ucseg_runtime.arrays import Float32Array
from ucseg_runtime.backends.base import BackendInfo, TileOutput, check_tiles
from ucseg_runtime.backends.graphs import FUSED_LOGITS, IMAGE, LOGITS_A, LOGITS_B, PROBABILITIES, UNCERTAINTY, turned
from ucseg_runtime.backends.triton_tensors import LOGITS_MODEL
from ucseg_runtime.errors import BackendError
from ucseg_runtime.manifest import ModelSpec
from ucseg_serving.server_arrays import ServerObject, array_from_tensor, tensor_from_array


@dataclass(frozen=True)
class Route:
    """How tiles reach the model that computes them.

    Attributes:
        model: Name of the Triton model.
        tiles_per_request: Most tiles of a request.
        senders: As many threads as requests may be in flight.
    """

    model: str
    tiles_per_request: int
    senders: ThreadPoolExecutor

    @property
    def gives_logits(self) -> bool:
        """Whether the logits of both subnets come back too."""
        return self.model == LOGITS_MODEL

    @property
    def outputs(self) -> tuple[str, ...]:
        """What is asked for: Triton 2.51 stops a request to an ensemble that leaves some of its outputs out."""
        logits = (FUSED_LOGITS, LOGITS_A, LOGITS_B) if self.gives_logits else ()
        return (PROBABILITIES, UNCERTAINTY, *logits)


@dataclass(frozen=True)
class Caller:
    """The request for a volume, as far as its tiles are concerned.

    Attributes:
        check_wanted: Raises when nobody waits for the answer any more; called before every request.
        trace: Of the request, so that those of its tiles belong to it.
    """

    check_wanted: Callable[[], None]
    trace: ServerObject


class BlsBackend:
    """Implements `Backend` by requests to a model of the server that this runs in.

    Args:
        utils: The module ``triton_python_backend_utils``.
        spec: What the model fixes.
        info: What computes.
        route: Which model the tiles go to, and how.
        caller: What asked for the volume.
    """

    def __init__(self, utils: ServerObject, spec: ModelSpec, info: BackendInfo, route: Route, caller: Caller) -> None:
        self._utils = utils
        self._spec = spec
        self._info = info
        self._route = route
        self._caller = caller

    @property
    def info(self) -> BackendInfo:
        """See `Backend.info`."""
        return self._info

    def infer(self, tiles: Float32Array, *, with_logits: bool = False) -> TileOutput:
        """See `Backend.infer`; logits are offered where the tiles go to the model that gives them."""
        check_tiles(tiles, self._spec)
        if with_logits and not self._route.gives_logits:
            raise BackendError(f"{self._route.model} gives no logits.", hint=f"Ask {LOGITS_MODEL} for them.")
        most = self._route.tiles_per_request
        chunks = [tiles[first : first + most] for first in range(0, len(tiles), most)]
        running = [self._route.senders.submit(self._request, chunk) for chunk in chunks]
        wait(running)
        parts = [request.result() for request in running]
        results = {name: np.concatenate([part[name] for part in parts]) for name in self._route.outputs}
        return TileOutput(
            probabilities=results[PROBABILITIES],
            uncertainty=results[UNCERTAINTY],
            logits_a=results.get(LOGITS_A),
            logits_b=results.get(LOGITS_B),
            fused_logits=results.get(FUSED_LOGITS),
        )

    def _request(self, tiles: Float32Array) -> dict[str, Float32Array]:
        self._caller.check_wanted()
        image = tensor_from_array(self._utils, IMAGE, turned(tiles, self._spec.tiling))
        names = self._route.outputs
        response = self._utils.InferenceRequest(
            model_name=self._route.model,
            requested_output_names=list(names),
            inputs=[image],
            trace=self._caller.trace,
        ).exec()
        if response.has_error():
            raise BackendError(f"{self._route.model} failed on a tile: {response.error().message()}")
        tensors = {name: self._utils.get_output_tensor_by_name(response, name) for name in names}
        return {name: turned(array_from_tensor(tensor), self._spec.tiling).copy() for name, tensor in tensors.items()}
