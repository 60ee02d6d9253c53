"""A Triton server of this machine that a benchmark starts, as often as it likes, always at the same ports."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from ucseg_runtime.model_folder import Model
from ucseg_runtime.server_options import TritonMode, TritonServer, server_address
from ucseg_serving.local_server import LocalOptions, LocalServer, running_server
from ucseg_serving.server_package import install_server

_TIMEOUT_S = 300.0


@dataclass(frozen=True)
class Service:
    """A repository that servers are started on, always at the same ports."""

    model: Model
    repository: Path
    ports: LocalOptions

    def start(self) -> AbstractContextManager[LocalServer]:
        """Start a server."""
        return running_server(install_server(), self.repository, self.ports)

    @property
    def url(self) -> str:
        """Where clients reach it by gRPC."""
        return f"grpc://127.0.0.1:{self.ports.grpc_port}"

    def client(self, mode: TritonMode) -> TritonServer:
        """Options of one client."""
        return TritonServer((server_address(self.url),), mode, timeout_s=_TIMEOUT_S)
