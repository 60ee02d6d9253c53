"""Where a Triton server is, and how it may be used."""

from __future__ import annotations

import ipaddress
import logging
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from ucseg_runtime.errors import BackendUnavailableError

_LOGGER = logging.getLogger(__name__)

TritonMode = Literal["tile", "merged", "volume"]
Scheme = Literal["grpc", "grpcs", "http", "https"]

_SCHEMES: dict[str, Scheme] = {"grpc": "grpc", "grpcs": "grpcs", "http": "http", "https": "https"}
_PORTS: dict[Scheme, int] = {"grpc": 8001, "grpcs": 8001, "http": 8000, "https": 443}


def is_loopback(host: str) -> bool:
    """Whether a name or address is that of this machine alone."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


@dataclass(frozen=True)
class ServerAddress:
    """One server.

    Attributes:
        scheme: Protocol; the last letter s means TLS.
        host: Name or address.
        port: Of the service.
    """

    scheme: Scheme
    host: str
    port: int

    @property
    def is_encrypted(self) -> bool:
        """Whether the connection uses TLS."""
        return self.scheme in ("grpcs", "https")

    @property
    def is_loopback(self) -> bool:
        """Whether nothing leaves this machine."""
        return is_loopback(self.host)

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.scheme}://{host}:{self.port}"


@dataclass(frozen=True)
class TlsFiles:
    """PEM files.

    Attributes:
        authorities: Who may have signed the server's certificate; None: those of the system.
        certificate: Of this client, for mutual TLS; with `key` or not at all.
        key: Of the certificate.
    """

    authorities: Path | None = None
    certificate: Path | None = None
    key: Path | None = None


@dataclass(frozen=True)
class ServerOptionNames:
    """What a command calls its options of a server, for messages to who gave them.

    Attributes:
        authorities: For `TlsFiles.authorities`.
        certificate: For `TlsFiles.certificate`.
        key: For `TlsFiles.key`.
        token_file: For the file with the token.
    """

    authorities: str = "--tls-ca"
    certificate: str = "--tls-cert"
    key: str = "--tls-key"
    token_file: str = "--token-file"  # noqa: S105  (the name of an option)


@dataclass(frozen=True)
class TritonServer:
    """A Triton service that runs the network.

    Attributes:
        addresses: At least one; the next is used when one fails.
        mode: ``tile``: tiles go to the ensemble of the stages, the volume stays here; ``merged``: the same with one
            graph instead of the four stages; ``volume``: the whole volume goes there.
        timeout_s: Within which a request must be answered, repeats included.
        in_flight: Requests that wait for an answer at the same time, at most.
        shared_memory: Whether tensors go by system shared memory; the server must be on this machine and allow it.
        tls: Certificates of encrypted connections.
        token: Sent as bearer token; empty for none.
        token_file: Where the token is read anew for every request, since whoever gives tokens renews them; `token` is
            sent while it cannot be read, as on another node of a cluster.
        traceparent: Sent as W3C trace context, so that a server that traces adds its spans to that trace; empty for
            none.
        names: Of the options that all this came from.
    """

    addresses: tuple[ServerAddress, ...]
    mode: TritonMode = "tile"
    timeout_s: float = 120.0
    in_flight: int = 2
    shared_memory: bool = False
    tls: TlsFiles = TlsFiles()
    token: str = field(default="", repr=False)
    token_file: Path | None = field(default=None, repr=False)
    traceparent: str = ""
    names: ServerOptionNames = ServerOptionNames()

    @property
    def headers(self) -> dict[str, str]:
        """Sent with every request; names in lower case, as gRPC wants them."""
        token = self._current_token()
        authorization = {"authorization": f"Bearer {token}"} if token else {}
        return authorization | ({"traceparent": self.traceparent} if self.traceparent else {})

    def beginning_with(self, number: int) -> TritonServer:
        """The same servers in the same circle, begun elsewhere: runners side by side share them so.

        Args:
            number: Of the runner, from 0; the server of this number comes first, counted round and round.
        """
        first = number % len(self.addresses)
        return replace(self, addresses=self.addresses[first:] + self.addresses[:first])

    def _current_token(self) -> str:
        if self.token_file is None:
            return self.token
        try:
            return token_in(self.token_file)
        except (OSError, ValueError):
            _tell_of(self.token_file, self.names.token_file)
            return self.token

    def __post_init__(self) -> None:
        exposed = [address for address in self.addresses if not (address.is_encrypted or address.is_loopback)]
        if (self.token or self.token_file) and exposed:
            raise BackendUnavailableError(
                f"a token would be sent to {exposed[0]} unencrypted.", hint="Use grpcs:// or https://."
            )
        remote = [address for address in self.addresses if not address.is_loopback]
        if self.shared_memory and remote:
            raise BackendUnavailableError(
                f"{remote[0]} is another machine, with which no memory is shared.", hint="Leave --shared-memory out."
            )


def server_address(url: str) -> ServerAddress:
    """Parse a URL such as ``grpc://127.0.0.1:8001``.

    Raises:
        BackendUnavailableError: The scheme is unknown, there is no host, or there is more than host and port.
    """
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        parts, port = urlsplit(""), None
    scheme = _SCHEMES.get(parts.scheme)
    if scheme is None or not parts.hostname or parts.path.strip("/") or parts.query or parts.username:
        raise BackendUnavailableError(
            f"{url!r} is not the URL of a Triton server.",
            hint="Expected SCHEME://HOST:PORT with the scheme grpc, grpcs, http or https.",
        )
    return ServerAddress(scheme, parts.hostname, port or _PORTS[scheme])


@cache
def _tell_of(_file: Path, name: str) -> None:
    """Once for each file: it would be told with every request."""
    _LOGGER.warning("the file of %s cannot be read, or holds no token: the one that was read before is sent", name)


def token_in(file: Path) -> str:
    """The bearer token in a file.

    Raises:
        OSError: The file cannot be read.
        ValueError: It does not hold one line of ASCII characters.
    """
    token = file.read_text(encoding="ascii").strip()
    if not token or not token.isprintable():
        raise ValueError("one line is expected")
    return token
