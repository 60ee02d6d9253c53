"""Backends on a Triton server: tiles go there, results come back; and the check that the right model answers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import replace

import numpy as np

from ucseg_runtime.arrays import Float32Array
from ucseg_runtime.backends.base import BackendInfo, TileOutput, check_tiles
from ucseg_runtime.backends.graphs import FUSED_LOGITS, IMAGE, LOGITS_A, LOGITS_B, PROBABILITIES, UNCERTAINTY, turned
from ucseg_runtime.backends.triton_calls import ServerGroup
from ucseg_runtime.backends.triton_connection import Call, ModelDescription
from ucseg_runtime.backends.triton_tensors import (
    DEVICE,
    ENGINE,
    ENGINE_VERSION,
    IDENTITY,
    MODEL_DIGEST,
    PRECISION,
    PROVEN,
    TritonModel,
    TritonTensor,
    graph_model,
    logits_model,
    tiles_model,
)
from ucseg_runtime.errors import AccuracyGateError, BackendError, EngineMismatchError
from ucseg_runtime.manifest import MERGED, ModelSpec
from ucseg_runtime.model_folder import Model
from ucseg_runtime.segmentation import EngineInfo
from ucseg_runtime.server_options import TritonServer

_LOGITS = (LOGITS_A, LOGITS_B, FUSED_LOGITS)
_DIGEST_PREFIX = 12


class TritonBackend:
    """Sends tiles to a server, some requests at the same time, each of as many tiles as the server takes.

    Args:
        spec: What the model fixes.
        info: What computes.
        models: By whether logits are wanted, which come from a model of their own.
        servers: The same.
        max_batch: Most tiles of a request.
        in_flight: Requests at the same time.
    """

    def __init__(
        self,
        spec: ModelSpec,
        info: BackendInfo,
        models: dict[bool, TritonModel],
        servers: dict[bool, ServerGroup],
        max_batch: int,
        in_flight: int,
    ) -> None:
        self._spec = spec
        self._info = info
        self._servers = servers
        self._models = models
        self._max_batch = max_batch
        self._senders = ThreadPoolExecutor(in_flight, thread_name_prefix="triton")
        self._closed = False

    @property
    def info(self) -> BackendInfo:
        """What computes on the server; stages run tile by tile, so `batch_atol` is 0 on the processor."""
        return self._info

    def close(self) -> None:
        """Wait for requests in flight; `infer` then raises BackendError."""
        self._closed = True
        self._senders.shutdown()

    def infer(self, tiles: Float32Array, *, with_logits: bool = False) -> TileOutput:
        """See `Backend.infer`; InputError where the server refuses the tiles."""
        check_tiles(tiles, self._spec)
        if self._closed:
            raise BackendError("the backend is closed.", hint="Use it inside the with block of open_backend.")
        starts = range(0, len(tiles), self._max_batch)
        parts = [turned(tiles[first : first + self._max_batch], self._spec.tiling) for first in starts]
        running = [self._senders.submit(self._request, part, with_logits) for part in parts]
        wait(running)
        answers = [request.result() for request in running]
        results = {name: np.concatenate([answer[name] for answer in answers]) for name in answers[0]}
        return TileOutput(
            probabilities=results[PROBABILITIES],
            uncertainty=results[UNCERTAINTY],
            logits_a=results.get(LOGITS_A),
            logits_b=results.get(LOGITS_B),
            fused_logits=results.get(FUSED_LOGITS),
        )

    def _request(self, tiles: Float32Array, with_logits: bool) -> dict[str, Float32Array]:
        model = self._models[with_logits]
        outputs = tuple(
            replace(tensor, shape=(len(tiles), *tensor.shape))
            for tensor in model.outputs
            if with_logits or tensor.name not in _LOGITS
        )
        answer = self._servers[with_logits].infer(Call(model.name, {IMAGE: np.ascontiguousarray(tiles)}, outputs))
        return {
            name: np.ascontiguousarray(turned(np.asarray(values, dtype=np.float32), self._spec.tiling))
            for name, values in answer.items()
        }


@contextmanager
def open_triton_backend(model: Model, server: TritonServer, *, gate: bool) -> Iterator[TritonBackend]:
    """Connect to a server that holds the model, for the length of a ``with`` block.

    Args:
        model: Model folder here; the server must hold the same.
        server: Addresses and limits.
        gate: Whether the server's engine must have passed the accuracy gate.

    Raises:
        BackendUnavailableError: The client package is not installed.
        BackendError: No server answers.
        EngineMismatchError: The server holds another model.
        AccuracyGateError: Its engine has not passed the accuracy gate.
    """
    spec = model.manifest
    of_tiles = graph_model(MERGED, spec) if server.mode == "merged" else tiles_model(spec)
    models = {False: of_tiles, True: logits_model(spec)}
    with (
        ServerGroup(server, models[False].name, checker(model, models[False], gate=gate)) as tiles,
        ServerGroup(server, models[True].name, checker(model, models[True], gate=gate)) as logits,
    ):
        address, description = tiles.describe()
        # A processor computes the tiles of one request one after the other, those of several at the same time.
        batch = 1 if description.parameters[DEVICE] == "CPU" else description.max_batch
        info = BackendInfo(
            engine=engine_of(description),
            batch_atol=0.0,
            reason=f"served by Triton at {address}",
            parallel_tiles=server.in_flight * batch,
            elsewhere=True,
        )
        backend = TritonBackend(spec, info, models, {False: tiles, True: logits}, batch, server.in_flight)
        try:
            yield backend
        finally:
            backend.close()


def engine_of(description: ModelDescription) -> EngineInfo:
    """What computes on the server, as outputs name it."""
    values = description.parameters
    return EngineInfo(
        name=f"triton-{values[ENGINE]}",
        version=values[ENGINE_VERSION],
        precision=values[PRECISION],
        device=values[DEVICE],
        proven=values[PROVEN] == "true",
    )


def checker(model: Model, table: TritonModel, *, gate: bool) -> Callable[[ModelDescription], None]:
    """A function that refuses a server which does not serve this very model in this very way.

    It raises EngineMismatchError where the digest of the model, an engine of before, or a tensor differs, and
    AccuracyGateError where the server's engine has not passed the gate.
    """
    seen: list[EngineInfo] = []

    def check(description: ModelDescription) -> None:
        _check_model(model, description)
        _check_tensors(table, description)
        engine = engine_of(description)
        if gate and not engine.proven:
            raise AccuracyGateError(
                f"the server's {engine.name} {engine.version} {engine.precision} has not passed the accuracy gate.",
                hint="Prove it there and write its repository again, or give --no-gate, which is recorded.",
            )
        if seen and seen[0] != engine:
            raise EngineMismatchError(
                f"the server came back with {engine.name} {engine.version} {engine.precision}; it began with "
                f"{seen[0].name} {seen[0].version} {seen[0].precision}.",
                hint="Segment the series again.",
            )
        seen[:] = [engine]

    return check


def _check_model(model: Model, description: ModelDescription) -> None:
    missing = [name for name in IDENTITY if name not in description.parameters]
    if missing:
        raise EngineMismatchError(
            f"the server does not say what it serves: no {', '.join(missing)}.",
            hint="Write its repository with ucseg-serve repository.",
        )
    digest = description.parameters[MODEL_DIGEST]
    if digest != model.digest:
        raise EngineMismatchError(
            f"the server holds a model of digest {digest[:_DIGEST_PREFIX]}…; {model.manifest.name} "
            f"{model.manifest.version} has {model.digest[:_DIGEST_PREFIX]}….",
            hint="Name the server's own model folder with --model, or another server with --url.",
        )


def _check_tensors(table: TritonModel, description: ModelDescription) -> None:
    for expected, found in ((table.inputs, description.inputs), (table.outputs, description.outputs)):
        if set(expected) != set(found):
            raise EngineMismatchError(
                f"{table.name} of the server has the tensors {_words(found)}; expected {_words(expected)}.",
                hint="Write its repository again with this version of ucseg.",
            )


def _words(tensors: tuple[TritonTensor, ...]) -> str:
    return ", ".join(f"{item.name} {item.data_type} {list(item.shape)}" for item in tensors)
