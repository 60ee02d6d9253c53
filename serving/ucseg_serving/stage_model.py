"""A graph of the model folder as a Triton model on an embedded engine, where Triton has no backend for it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from ucseg_runtime.arrays import Float32Array
from ucseg_runtime.backends.choice import Choice, choose
from ucseg_runtime.backends.cores import usable_cores
from ucseg_runtime.backends.graphs import GRAPHS, IMAGE, check_signature
from ucseg_runtime.backends.session import GraphFile, Session, SessionSettings
from ucseg_runtime.backends.triton_tensors import ENGINE, ENGINE_VERSION, PRECISION, PROVEN, VOLUME_MODEL
from ucseg_runtime.config import InferenceOptions
from ucseg_runtime.errors import EngineMismatchError, InputError, UcsegError
from ucseg_runtime.manifest import MERGED
from ucseg_runtime.model_folder import Model, load_model
from ucseg_serving.config_pbtxt import GRAPH_PARAMETER
from ucseg_serving.server_arrays import ServerObject, array_from_tensor, tensor_from_array
from ucseg_serving.server_models import ModelSettings, backend_utils, refused, settings_from_args

Tensors = Mapping[str, Float32Array]


class StageModel:
    """What Triton calls: ``initialize`` once, ``execute`` with every batch, ``finalize`` at the end."""

    def initialize(self, args: Mapping[str, str]) -> None:
        """Open the graph; whatever this raises keeps the server from becoming ready.

        Raises:
            AccuracyGateError: The engine has not passed the accuracy gate for the model.
            EngineMismatchError: Another version of the engine is installed than the repository was made for.
        """
        self._utils = backend_utils()
        settings = settings_from_args(args, VOLUME_MODEL)
        self._key = settings.parameters[GRAPH_PARAMETER]
        model = load_model(settings.model_folder)
        chosen = chosen_engine(model, settings)
        self._lanes = _open_lanes(model, chosen, self._key)
        self._inputs = tuple(self._lanes[0].signature.inputs)
        self._workers = ThreadPoolExecutor(len(self._lanes), thread_name_prefix="tile")

    def execute(self, requests: Sequence[ServerObject]) -> list[ServerObject]:
        """Answer requests that Triton merged into one batch; a request that cannot be answered fails alone."""
        inputs = [self._read(request) for request in requests]
        tiles = [
            (place, {name: values[index : index + 1] for name, values in tensors.items()})
            for place, tensors in enumerate(inputs)
            if not isinstance(tensors, UcsegError)
            for index in range(len(next(iter(tensors.values()))))
        ]
        lanes = range(min(len(self._lanes), len(tiles)))
        running = [self._workers.submit(self._run_lane, lane, [item for _, item in tiles]) for lane in lanes]
        outputs: list[Tensors] = [{}] * len(tiles)
        try:
            for lane, results in zip(lanes, running, strict=True):
                outputs[lane :: len(self._lanes)] = results.result()
        except UcsegError as error:
            return [refused(self._utils, error) for _ in requests]
        places = [place for place, _ in tiles]
        return [
            refused(self._utils, tensors)
            if isinstance(tensors, UcsegError)
            else self._response([output for where, output in zip(places, outputs, strict=True) if where == place])
            for place, tensors in enumerate(inputs)
        ]

    def finalize(self) -> None:
        """Give the engine's memory back."""
        self._workers.shutdown()
        for session in self._lanes:
            session.close()

    def _read(self, request: ServerObject) -> Tensors | UcsegError:
        tensors = {
            name: array_from_tensor(self._utils.get_input_tensor_by_name(request, name)) for name in self._inputs
        }
        if IMAGE in tensors and not np.isfinite(tensors[IMAGE]).all():
            return InputError(f"{IMAGE} holds values that are not finite.", code="UCSEG-E126")
        return tensors

    def _run_lane(self, lane: int, tiles: Sequence[Tensors]) -> list[Tensors]:
        session = self._lanes[lane]
        results = (session.run(tile) for tile in tiles[lane :: len(self._lanes)])
        # The next call overwrites what a session returned.
        return [{name: values.copy() for name, values in result.items()} for result in results]

    def _response(self, tiles: Sequence[Tensors]) -> ServerObject:
        tensors = [
            tensor_from_array(self._utils, name, np.concatenate([tile[name] for tile in tiles]))
            for name in GRAPHS[self._key].outputs
        ]
        return self._utils.InferenceResponse(output_tensors=tensors)


def chosen_engine(model: Model, settings: ModelSettings) -> Choice:
    """The engine that the repository names, if it is the one that is installed.

    Raises:
        AccuracyGateError: It has not passed the accuracy gate for the model.
        EngineMismatchError: Another version is installed.
    """
    named: dict[str, Any] = {"engine": settings.parameters[ENGINE], "precision": settings.parameters[PRECISION]}
    chosen = choose(model, InferenceOptions(gate=settings.parameters[PROVEN] == "true", **named))
    if chosen.engine.version != settings.parameters[ENGINE_VERSION]:
        raise EngineMismatchError(
            f"the repository was made for {chosen.name} {settings.parameters[ENGINE_VERSION]}; "
            f"{chosen.engine.version} is installed.",
            hint="Make it again: ucseg-serve repository MODEL_DIR.",
        )
    return chosen


def _open_lanes(model: Model, chosen: Choice, key: str) -> list[Session]:
    """Sessions of the graph that run at the same time: for the merged graph as many as the engine likes.

    A stage has one: while it works on a tile, the other stages of the ensemble work on theirs.
    """
    threads = usable_cores()
    parallel = chosen.engine.parallel_tiles(threads) if key == MERGED else 1
    graph = GraphFile(key, model.graph(key), model.digest)
    session = chosen.engine.open_session(graph, SessionSettings(chosen.precision, threads, parallel))
    check_signature(key, session.signature, model.manifest)
    return [session, *(session.another() for _ in range(parallel - 1))]
