"""``ucseg-serve install-local`` and ``ucseg-serve local``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ucseg_runtime.cli.options import GateOption
from ucseg_runtime.cli.reporting import reported
from ucseg_serving.cli.options import (
    InstancesOption,
    MaxBatchOption,
    ServableArgument,
    ServedEngineOption,
    ServedPrecisionOption,
    VolumeMemoryOption,
    VolumeOverOption,
)

_HTTP = typer.Option("--http-port", min=0, max=65535, help="0 takes a free one.")
_GRPC = typer.Option("--grpc-port", min=0, max=65535, help="0 takes a free one.")
_METRICS = typer.Option("--metrics-port", min=0, max=65535, help="0 takes a free one.")
_SHARED = typer.Option("--allow-shared-memory", help="Let clients on this machine pass tensors by shared memory.")
_TRACE = typer.Option(
    "--trace-url", help="Send spans of every request to this collector, such as http://127.0.0.1:4318/v1/traces."
)
_TIMEOUT = typer.Option("--ready-timeout", min=1.0, help="Seconds until every model must be ready.")


def install_local() -> None:
    """Fetch the Triton server of the nvidia-pytriton wheel into the cache folder; nothing else is changed."""
    with reported(as_json=False):
        from ucseg_serving.server_package import install_server

        install_server()
        typer.echo("Triton 2.51 is ready to be started: ucseg-serve local MODEL_DIR")


def local(
    model: ServableArgument = None,
    engine: ServedEngineOption = "auto",
    precision: ServedPrecisionOption = "f32",
    gate: GateOption = True,
    max_batch: MaxBatchOption = 4,
    instances: InstancesOption = 2,
    volume_memory: VolumeMemoryOption = 8.0,
    volume_over: VolumeOverOption = "ucseg_merged",
    http_port: Annotated[int, _HTTP] = 8000,
    grpc_port: Annotated[int, _GRPC] = 8001,
    metrics_port: Annotated[int, _METRICS] = 8002,
    shared_memory: Annotated[bool, _SHARED] = False,
    trace_url: Annotated[str, _TRACE] = "",
    ready_timeout: Annotated[float, _TIMEOUT] = 120.0,
) -> None:
    """Serve a model folder, or a repository as it is, with Triton on this machine's loopback, until Ctrl-C."""
    with reported(as_json=False):
        from ucseg_runtime.model_folder import default_model_folder
        from ucseg_serving.local_server import LocalOptions, keep_running
        from ucseg_serving.local_service import serve
        from ucseg_serving.serving_options import ServingOptions
        from ucseg_serving.weights import WeightsRequest

        options = ServingOptions(
            max_batch=max_batch, instances=instances, volume_memory_gb=volume_memory, volume_over=volume_over
        )
        ports = LocalOptions(http_port, grpc_port, metrics_port, shared_memory, ready_timeout, trace_url=trace_url)
        request = WeightsRequest(engine, precision, gate, Path())
        with serve(model or default_model_folder(), request, options, ports) as server:
            typer.echo(f"ready: {server.grpc_url} {server.http_url} metrics {server.metrics_url}")
            try:
                keep_running(server)
            except KeyboardInterrupt:
                typer.echo("stopping", err=True)
