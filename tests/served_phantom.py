"""A real Triton server with a model whose answers are known."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tests.model_phantom import ModelPhantom
from tests.proof_phantom import proven
from ucseg_runtime.model_folder import Model, load_model
from ucseg_serving.local_server import LocalOptions, LocalServer
from ucseg_serving.local_service import serving
from ucseg_serving.serving_options import ServingOptions
from ucseg_serving.weights import WeightsRequest

PHANTOM = ModelPhantom(sharpness=8.0, tile_shape=(8, 12, 16))


@dataclass(frozen=True)
class ServedPhantom:
    """The server, and the model folder that it serves."""

    model: Model
    server: LocalServer

    def url(self, scheme: Literal["grpc", "http"]) -> str:
        return self.server.grpc_url if scheme == "grpc" else self.server.http_url


@contextmanager
def serve_phantom(
    folder: Path,
    options: ServingOptions | None = None,
    local: LocalOptions | None = None,
    phantom: ModelPhantom = PHANTOM,
) -> Iterator[ServedPhantom]:
    """Write a phantom below `folder` and serve it on OpenVINO in float32, with shared memory for clients."""
    with serve_model(phantom.write(folder / "phantom"), folder, options, local) as served:
        yield served


@contextmanager
def serve_model(
    model_folder: Path, folder: Path, options: ServingOptions | None = None, local: LocalOptions | None = None
) -> Iterator[ServedPhantom]:
    """Serve a model folder as if it had been proved; see `serve_phantom`."""
    model = load_model(proven(model_folder))
    request = WeightsRequest("openvino", "f32", True, folder)
    options = options or ServingOptions(volume_memory_gb=1.0)
    with serving(model, request, options, local or LocalOptions(shared_memory=True, stop_timeout_s=5.0)) as server:
        yield ServedPhantom(model, server)
