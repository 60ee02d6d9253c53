"""What the Python models of the repository share: their settings, and answers to requests."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from ucseg_runtime.errors import UcsegError
from ucseg_serving.server_arrays import ServerObject

GRAPH_PARAMETER = "ucseg_graph"
VOLUME_OVER_PARAMETER = "ucseg_volume_over"
TILES_PARAMETER = "ucseg_tiles_per_request"
IN_FLIGHT_PARAMETER = "ucseg_requests_in_flight"
MEMORY_PARAMETER = "ucseg_request_memory_bytes"

MODEL_FOLDER = "model"
"""Folder within that of the volume model that holds the ucseg model folder, for all models of a repository."""


@dataclass(frozen=True)
class ModelSettings:
    """What Triton tells a Python model when it starts.

    Attributes:
        parameters: Of its ``config.pbtxt``.
        max_batch: Most tiles of a request.
        instances: Processes that run this model at the same time.
        model_folder: The ucseg model folder.
    """

    parameters: Mapping[str, str]
    max_batch: int
    instances: int
    model_folder: Path


def settings_from_args(args: Mapping[str, str], volume_model: str) -> ModelSettings:
    """Read what Triton passes to ``initialize``.

    Args:
        args: As given; all values are text.
        volume_model: Name of the model beside this one that holds the ucseg model folder.
    """
    config = json.loads(args["model_config"])
    parameters = {name: entry["string_value"] for name, entry in config["parameters"].items()}
    repository = Path(args["model_repository"]).parent
    instances = sum(group["count"] for group in config["instance_group"])
    return ModelSettings(parameters, config["max_batch_size"], instances, repository / volume_model / MODEL_FOLDER)


def backend_utils() -> ServerObject:
    """The module ``triton_python_backend_utils``."""
    return importlib.import_module("triton_python_backend_utils")


def answered(utils: ServerObject, answer: Callable[[], list[ServerObject]]) -> ServerObject:
    """A response with the tensors of `answer`, or with the error that it raised.

    Args:
        utils: See `backend_utils`.
        answer: Makes the output tensors.
    """
    try:
        return utils.InferenceResponse(output_tensors=answer())
    except UcsegError as error:
        # What a command line would say, with Triton's code for it.
        code = getattr(utils.TritonError, error.triton_code)
        return utils.InferenceResponse(error=utils.TritonError(f"{error.code} {error}", code))
