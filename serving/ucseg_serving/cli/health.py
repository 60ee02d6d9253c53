"""``ucseg-serve health``."""

from __future__ import annotations

from typing import Annotated

import typer

from ucseg_runtime.cli.options import GateOption
from ucseg_runtime.cli.reporting import reported
from ucseg_runtime.cli.server_options import (
    ServerArguments,
    TlsAuthoritiesOption,
    TlsCertificateOption,
    TlsKeyOption,
    TokenFileOption,
    server_of,
)
from ucseg_serving.cli.options import ServableArgument

_URL = typer.Option("--url", help="Server, such as grpc://127.0.0.1:8001.")
_TIMEOUT = typer.Option("--timeout", min=0.1, help="Seconds within which each answer must come.")


def health(
    model: ServableArgument = None,
    url: Annotated[str, _URL] = "grpc://127.0.0.1:8001",
    timeout: Annotated[float, _TIMEOUT] = 30.0,
    gate: GateOption = True,
    tls_ca: TlsAuthoritiesOption = None,
    tls_cert: TlsCertificateOption = None,
    tls_key: TlsKeyOption = None,
    token_file: TokenFileOption = None,
) -> None:
    """Let a server segment a few voxels, tile by tile and as a volume: Triton's own health does not see dead models."""
    with reported(as_json=False):
        from ucseg_runtime.model_folder import default_model_folder
        from ucseg_runtime.server_options import TlsFiles
        from ucseg_serving.health import check_server, served_model

        tls = TlsFiles(tls_ca, tls_cert, tls_key)
        server = server_of(ServerArguments([url], timeout_s=timeout, tls=tls, token_file=token_file))
        checked = served_model(model or default_model_folder())
        for name, seconds in check_server(checked, server, gate=gate).items():
            typer.echo(f"{name}: ok, {seconds:.2f} s")
