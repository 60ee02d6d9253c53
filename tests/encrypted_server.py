"""A real Triton server that speaks TLS, with certificates of an authority of its own."""

from __future__ import annotations

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
