"""A graph of the model folder as a Triton model on an embedded engine, where Triton has no backend for it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from ucseg_runtime.arrays import Float32Array
from ucseg_runtime.backends.choice import Choice, choose
from ucseg_runtime.backends.cores import usable_cores
from ucseg_runtime.backends.graphs import GRAPHS, IMAGE, check_signature
from ucseg_runtime.backends.session import GraphFile, Session, SessionSettings
from ucseg_runtime.backends.triton_tensors import ENGINE, ENGINE_VERSION, PRECISION, PROVEN, VOLUME_MODEL
from ucseg_runtime.config import InferenceOptions
from ucseg_runtime.errors import EngineMismatchError
from ucseg_runtime.model_folder import Model, load_model
from ucseg_serving.check_model import refuse_not_finite
from ucseg_serving.server_arrays import ServerObject, array_from_tensor, tensor_from_array
from ucseg_serving.server_models import GRAPH_PARAMETER, ModelSettings, answered, backend_utils, settings_from_args

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
        self._session = _open_session(model, chosen, self._key, settings.instances)
        self._inputs = tuple(self._session.signature.inputs)

    def execute(self, requests: Sequence[ServerObject]) -> list[ServerObject]:
        """Answer requests that Triton merged into one batch, tile by tile; what cannot be answered fails alone."""
        return [answered(self._utils, partial(self._answer, request)) for request in requests]

    def finalize(self) -> None:
        """Give the engine's memory back."""
        self._session.close()

    def _answer(self, request: ServerObject) -> list[ServerObject]:
        inputs = self._read(request)
        tiles = range(len(next(iter(inputs.values()))))
        # The next call overwrites what a session returned.
        results = [
            {
                name: np.array(values, dtype=np.float32)
                for name, values in self._session.run(_tile(inputs, index)).items()
            }
            for index in tiles
        ]
        return [
            tensor_from_array(self._utils, name, np.concatenate([result[name] for result in results]))
            for name in GRAPHS[self._key].outputs
        ]

    def _read(self, request: ServerObject) -> Tensors:
        tensors = {
            name: array_from_tensor(self._utils.get_input_tensor_by_name(request, name)) for name in self._inputs
        }
        if IMAGE in tensors:
            refuse_not_finite(tensors[IMAGE])
        return tensors


def _tile(inputs: Tensors, index: int) -> Tensors:
    return {name: values[index : index + 1] for name, values in inputs.items()}


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


def _open_session(model: Model, chosen: Choice, key: str, instances: int) -> Session:
    """The graph on this instance's share of the cores: threads of several would wait for each other."""
    settings = SessionSettings(chosen.precision, threads=max(1, usable_cores() // instances))
    session = chosen.engine.open_session(GraphFile(key, model.graph(key), model.digest), settings)
    check_signature(key, session.signature, model.manifest)
    return session
