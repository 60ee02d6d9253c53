"""A real Triton server that speaks TLS, with certificates of an authority of its own."""

from __future__ import annotations

import contextlib
import socket
import socketserver
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import trustme

from tests.served_phantom import ServedPhantom, serve_phantom
from ucseg_runtime.server_options import TlsFiles
from ucseg_serving import local_server


@dataclass(frozen=True)
class Certificates:
    """PEM files of two authorities, a server and a client of the first one."""

    folder: Path

    def __getitem__(self, name: str) -> Path:
        return self.folder / f"{name}.pem"

    @property
    def client(self) -> TlsFiles:
        return TlsFiles(self["authority"], self["client"], self["client-key"])


def write_certificates(folder: Path) -> Certificates:
    """Of 127.0.0.1, and one file that holds none."""
    found = Certificates(folder)
    authority = trustme.CA()
    authority.cert_pem.write_to_path(found["authority"])
    trustme.CA().cert_pem.write_to_path(found["other-authority"])
    found["nothing"].write_text("no certificate")
    for name in ("server", "client"):
        issued = authority.issue_cert("127.0.0.1")
        issued.private_key_pem.write_to_path(found[f"{name}-key"])
        issued.cert_chain_pems[0].write_to_path(found[name])
    return found


@contextmanager
def encrypted(folder: Path, certificates: Certificates, *, mutual: bool = False) -> Iterator[ServedPhantom]:
    """A server whose gRPC is encrypted; with `mutual` it wants a certificate of its clients."""
    flags = [f"--grpc-server-cert={certificates['server']}", f"--grpc-server-key={certificates['server-key']}"]
    if mutual:
        flags += ["--grpc-use-ssl-mutual=true", f"--grpc-root-cert={certificates['authority']}"]
    else:
        flags += ["--grpc-use-ssl=true"]
    plain = local_server.server_command
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(local_server, "server_command", lambda *arguments: [*plain(*arguments), *flags])
        with serve_phantom(folder) as served:
            yield served


@contextmanager
def tls_proxy(port: int, certificates: Certificates) -> Iterator[tuple[str, bytearray]]:
    """TLS in front of a port of this machine: the URL, and what the clients have sent."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificates["server"], certificates["server-key"])
    seen = bytearray()

    class Forward(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            try:
                client = context.wrap_socket(self.request, server_side=True)
            except OSError:
                return  # a client that does not trust us
            with client, socket.create_connection(("127.0.0.1", port)) as inside:
                back = threading.Thread(target=forwarded, args=(inside, client, bytearray()), daemon=True)
                back.start()
                forwarded(client, inside, seen)
                back.join()

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Forward) as proxy:
        proxy.daemon_threads = True
        threading.Thread(target=proxy.serve_forever, daemon=True).start()
        try:
            yield f"https://127.0.0.1:{proxy.server_address[1]}", seen
        finally:
            proxy.shutdown()


def forwarded(source: socket.socket, sink: socket.socket, seen: bytearray) -> None:
    """Pass on what comes until one side ends."""
    with contextlib.suppress(OSError):
        while chunk := source.recv(1 << 16):
            seen.extend(chunk)
            sink.sendall(chunk)
        sink.shutdown(socket.SHUT_WR)
