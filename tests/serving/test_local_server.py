"""When a local server counts as ready."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from ucseg_runtime.errors import ServerTimeoutError
from ucseg_serving.local_server import LocalServer, wait_until_ready

LATER_S = 0.5


class Always(BaseHTTPRequestHandler):
    """Answers with 200."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Nothing is printed."""


def test_a_server_is_ready_once_its_metrics_can_be_read_too(tmp_path: Path) -> None:
    """Triton opens their port last."""
    metrics = ThreadingHTTPServer(("127.0.0.1", 0), Always, bind_and_activate=False)
    metrics.server_bind()  # the port is ours, and refuses connections
    with (
        ThreadingHTTPServer(("127.0.0.1", 0), Always) as health,
        metrics,
        subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]) as process,
    ):
        threading.Thread(target=health.serve_forever, daemon=True).start()
        server = LocalServer(
            process,
            f"http://127.0.0.1:{health.server_port}",
            "grpc://127.0.0.1:1",
            f"http://127.0.0.1:{metrics.server_port}/metrics",
            tmp_path / "log",
        )
        server.log.touch()
        try:
            with pytest.raises(ServerTimeoutError):
                wait_until_ready(server, LATER_S)
            metrics.server_activate()
            threading.Thread(target=metrics.serve_forever, daemon=True).start()
            started = time.monotonic()
            wait_until_ready(server, 30.0)
            assert time.monotonic() - started < 10.0
            metrics.shutdown()
        finally:
            process.kill()
            health.shutdown()
