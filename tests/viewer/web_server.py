"""One origin for the browser: the OHIF viewer's files, its settings, and Orthanc's DICOMweb interface behind them."""

from __future__ import annotations

import http.client
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

from tests.orthanc import Pacs
from tests.processes import LOOPBACK

SETTINGS = Path(__file__).with_name("app-config.js")
_OF_ONE_HOP = {"connection", "transfer-encoding", "content-length", "keep-alive"}


@contextmanager
def serving_ohif(ohif: Path, pacs: Pacs) -> Iterator[str]:
    """Serve the viewer on a free port of loopback for the length of the block; yields its address."""
    server = ThreadingHTTPServer((LOOPBACK, 0), partial(_Handler, ohif, pacs.port))
    thread = Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://{LOOPBACK}:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class _Handler(SimpleHTTPRequestHandler):
    """Answers one request."""

    protocol_version = "HTTP/1.1"

    def __init__(self, ohif: Path, pacs_port: int, *arguments: Any) -> None:
        self._ohif, self._pacs_port = ohif, pacs_port
        super().__init__(*arguments, directory=str(ohif))

    def do_GET(self) -> None:  # noqa: N802  (called so by http.server)
        path = self.path.partition("?")[0]
        if path.startswith("/dicom-web"):
            self._forward()
        elif path == "/app-config.js":
            self._answer(200, [("Content-Type", "text/javascript")], SETTINGS.read_bytes())
        else:
            if not (self._ohif / path.lstrip("/")).is_file():
                self.path = "/index.html"  # the viewer's own addresses
            super().do_GET()

    def do_POST(self) -> None:  # noqa: N802  (called so by http.server)
        self._forward(self.rfile.read(int(self.headers.get("Content-Length", 0))))

    def end_headers(self) -> None:
        """Add what browsers want before they let pages share memory between threads."""
        self.send_header("Cross-Origin-Opener-Policy", "same-origin")
        self.send_header("Cross-Origin-Embedder-Policy", "require-corp")
        super().end_headers()

    def log_message(self, format: str, *arguments: object) -> None:
        """Say nothing: a test that fails shows what the browser saw."""

    def _forward(self, body: bytes | None = None) -> None:
        connection = http.client.HTTPConnection(LOOPBACK, self._pacs_port, timeout=60.0)
        try:
            kept = {name: value for name, value in self.headers.items() if name.lower() not in _OF_ONE_HOP}
            connection.request(self.command, self.path, body, kept | {"Accept-Encoding": "identity"})
            response = connection.getresponse()
            self._answer(response.status, response.getheaders(), response.read())
        finally:
            connection.close()

    def _answer(self, status: int, headers: list[tuple[str, str]], body: bytes) -> None:
        self.send_response(status)
        for name, value in headers:
            if name.lower() not in _OF_ONE_HOP:
                self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
