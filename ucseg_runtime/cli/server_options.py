"""Options of commands that can send their work to a Triton server."""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import typer

from ucseg_runtime.config import EngineChoice
from ucseg_runtime.server_options import ServerOptionNames, TlsFiles, TritonMode, TritonServer, server_address, token_in
from ucseg_runtime.trace_context import new_trace_context, trace_context_from_text

EngineOrServer = Literal[EngineChoice, "triton"]  # typing flattens a Literal inside a Literal

_DEFAULT_TIMEOUT_S: dict[TritonMode, float] = {"tile": 120.0, "merged": 120.0, "volume": 900.0}

EngineOrServerOption = Annotated[
    EngineOrServer,
    typer.Option(
        "--engine",
        help="Engine that runs the network; auto takes the fastest that passed the gate; triton needs --url.",
    ),
]
UrlOption = Annotated[
    list[str] | None,
    typer.Option(
        "--url",
        help="Triton server, such as grpc://127.0.0.1:8001 (or grpcs, http, https); may be given several times: the "
        "next is used when one fails.",
        show_default=False,
    ),
]
TritonModeOption = Annotated[
    TritonMode,
    typer.Option("--triton-mode", help="Tiles through the ensemble (tile) or one graph (merged), or the whole volume."),
]
TimeoutOption = Annotated[
    float,
    typer.Option(
        "--timeout",
        min=0.0,
        help="Seconds within which the server must answer a request, repeats included; 0 means 120, and 900 in volume "
        "mode.",
    ),
]
SharedMemoryOption = Annotated[
    bool, typer.Option("--shared-memory", help="Pass tensors by shared memory to a server on this machine.")
]
TlsAuthoritiesOption = Annotated[
    Path | None, typer.Option("--tls-ca", help="PEM file of who may have signed the server's certificate.")
]
TlsCertificateOption = Annotated[
    Path | None, typer.Option("--tls-cert", help="PEM certificate of this client, for mutual TLS.")
]
TlsKeyOption = Annotated[Path | None, typer.Option("--tls-key", help="PEM key of --tls-cert.")]
TokenFileOption = Annotated[
    Path | None, typer.Option("--token-file", help="File with the bearer token for the server.")
]

SERVER_NAMES = ServerOptionNames("--triton-tls-ca", "--triton-tls-cert", "--triton-tls-key", "--triton-token-file")
"""For commands that have a service, whose options ``--tls-…`` are."""

_PANEL = "Triton server"

ServerAuthoritiesOption = Annotated[
    Path | None,
    typer.Option(
        SERVER_NAMES.authorities,
        help="PEM file of who may have signed the Triton server's certificate.",
        rich_help_panel=_PANEL,
    ),
]
ServerCertificateOption = Annotated[
    Path | None,
    typer.Option(
        SERVER_NAMES.certificate,
        help="PEM certificate of ours for the Triton server, for mutual TLS.",
        rich_help_panel=_PANEL,
    ),
]
ServerKeyOption = Annotated[
    Path | None,
    typer.Option(SERVER_NAMES.key, help=f"PEM key of {SERVER_NAMES.certificate}.", rich_help_panel=_PANEL),
]
ServerTokenOption = Annotated[
    Path | None,
    typer.Option(
        SERVER_NAMES.token_file,
        help="File with the bearer token for the Triton server.",
        rich_help_panel=_PANEL,
    ),
]

TraceOption = Annotated[
    bool,
    typer.Option(
        "--trace",
        help="Let a server that traces record this run under one trace id, which is printed. Where TRACEPARENT is set, "
        "its trace is used, with this option or without.",
    ),
]
TRACE_VARIABLE = "TRACEPARENT"

_LOGGER = logging.getLogger(__name__)


@dataclass(frozen=True)
class ServerArguments:
    """What was said on the command line of a server."""

    urls: list[str] = field(default_factory=list)
    mode: TritonMode = "tile"
    timeout_s: float = 0.0
    shared_memory: bool = False
    tls: TlsFiles = TlsFiles()
    token_file: Path | None = None
    trace: bool = False
    names: ServerOptionNames = ServerOptionNames()

    def for_a_server(self) -> list[str]:
        """Options that were given and mean nothing without a server."""
        given = {
            "--url": self.urls,
            "--shared-memory": self.shared_memory,
            self.names.authorities: self.tls.authorities,
            self.names.certificate: self.tls.certificate,
            self.names.key: self.tls.key,
            self.names.token_file: self.token_file,
        }
        return [name for name, value in given.items() if value]


def split_engine(engine: EngineOrServer, arguments: ServerArguments) -> tuple[EngineChoice, TritonServer | None]:
    """The engine of this machine, and the server that takes its place.

    Raises:
        typer.BadParameter: A URL, credentials or shared memory without ``--engine triton``, or that without a URL; and
            see `server_of`.
        BackendUnavailableError: See `server_of`.
    """
    if engine != "triton":
        if given := arguments.for_a_server():
            raise typer.BadParameter(
                "it is for a Triton server, and needs --engine triton", param_hint=", ".join(given)
            )
        return engine, None
    if not arguments.urls:
        raise typer.BadParameter("--engine triton needs the URL of a server", param_hint="--url")
    return "auto", server_of(arguments)


def server_of(arguments: ServerArguments) -> TritonServer:
    """The server that was named.

    Raises:
        typer.BadParameter: An unreadable token file; half of a certificate and its key.
        BackendUnavailableError: A URL is none, or a token would go unencrypted.
    """
    if (arguments.tls.certificate is None) != (arguments.tls.key is None):
        pair = f"{arguments.names.certificate} and {arguments.names.key}"
        raise typer.BadParameter(f"{pair} belong together", param_hint=arguments.names.certificate)
    return TritonServer(
        addresses=tuple(server_address(url) for url in arguments.urls),
        mode=arguments.mode,
        timeout_s=arguments.timeout_s or _DEFAULT_TIMEOUT_S[arguments.mode],
        shared_memory=arguments.shared_memory,
        tls=arguments.tls,
        token=_token(arguments.token_file, arguments.names.token_file),
        token_file=arguments.token_file,
        traceparent=_traceparent(asked_for=arguments.trace),
        names=arguments.names,
    )


def _traceparent(*, asked_for: bool) -> str:
    """The trace that this run belongs to; its id is told. Empty where there is none."""
    given = os.environ.get(TRACE_VARIABLE, "")
    try:
        context = trace_context_from_text(given) if given else new_trace_context()
    except ValueError:
        # As the standard says: a context that cannot be read is left, and a trace begins anew.
        _LOGGER.warning("%s is not a W3C trace context, and is not used", TRACE_VARIABLE)
        given, context = "", new_trace_context()
    if not (given or asked_for):
        return ""
    typer.echo(f"trace {context.trace_id}", err=True)
    return str(context)


def _token(file: Path | None, name: str) -> str:
    if file is None:
        return ""
    try:
        return token_in(file)
    except (OSError, ValueError) as error:
        raise typer.BadParameter("it must hold a token, one line of ASCII, and be readable", param_hint=name) from error
