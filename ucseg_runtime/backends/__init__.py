"""Tiles in, probabilities and uncertainty out, on any engine; engines are imported when one is opened, not before."""

from ucseg_runtime.backends.base import Backend, BackendInfo, TileOutput
from ucseg_runtime.backends.engines import EngineStatus, engine_status, installed_engines
from ucseg_runtime.backends.opening import open_backend

__all__ = [
    "Backend",
    "BackendInfo",
    "EngineStatus",
    "TileOutput",
    "engine_status",
    "installed_engines",
    "open_backend",
]
