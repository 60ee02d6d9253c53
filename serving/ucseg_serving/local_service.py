"""From a model folder to a running server on this machine: repository, server package, server."""

from __future__ import annotations

import fcntl
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ucseg_runtime.backends.triton_tensors import VOLUME_MODEL
from ucseg_runtime.model_folder import Model, load_model
from ucseg_serving.local_server import LocalOptions, LocalServer, running_server
from ucseg_serving.repository import CONFIG_NAME, write_repository
from ucseg_serving.server_package import install_server
from ucseg_serving.serving_options import ServingOptions
from ucseg_serving.weights import WeightsRequest, weights_for


@contextmanager
def serve(folder: Path, request: WeightsRequest, options: ServingOptions, local: LocalOptions) -> Iterator[LocalServer]:
    """Serve a model folder, or a repository as it is; see `serving`."""
    if (folder / VOLUME_MODEL / CONFIG_NAME).is_file():
        with running_server(install_server(), folder, local) as server:
            yield server
    else:
        with serving(load_model(folder), request, options, local) as server:
            yield server


@contextmanager
def serving(
    model: Model, request: WeightsRequest, options: ServingOptions, local: LocalOptions
) -> Iterator[LocalServer]:
    """Serve a model folder on loopback for the length of a ``with`` block; the repository goes with it.

    Raises:
        AccuracyGateError: The engine has not passed the accuracy gate for the model.
        BackendError: The server ended before it was ready.
        ServerTimeoutError: It was not ready in time.
        InputError: The server package cannot be fetched.
    """
    weights = weights_for(model, request, options)
    package = install_server()
    with _temporary_folder() as folder:
        repository = folder / "models"
        write_repository(model, weights, options, repository, overwrite=False)
        with running_server(package, repository, local) as server:
            yield server


@contextmanager
def _temporary_folder() -> Iterator[Path]:
    """One that stays, however long the server runs: what is locked is left alone by systemd-tmpfiles.

    Source: https://systemd.io/TEMPORARY_DIRECTORIES, "Automatic Clean-Up".
    """
    with tempfile.TemporaryDirectory(prefix="ucseg-repository-") as folder:
        lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.flock(lock, fcntl.LOCK_SH)
            yield Path(folder)
        finally:
            os.close(lock)
