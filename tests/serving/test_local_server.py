"""When a local server counts as ready."""

from __future__ import annotations

import os
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from ucseg_runtime.errors import ServerTimeoutError
from ucseg_serving.triton_process import TritonProcess, TritonStart

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
    with ThreadingHTTPServer(("127.0.0.1", 0), Always) as health, metrics:
        threading.Thread(target=health.serve_forever, daemon=True).start()
        start = TritonStart(
            [sys.executable, "-c", "import time; time.sleep(60)"],
            dict(os.environ),
            tmp_path / "log",
            f"http://127.0.0.1:{health.server_port}",
            f"http://127.0.0.1:{metrics.server_port}/metrics",
            regions="ucseg_test_",
            ready_timeout_s=LATER_S,
            stop_timeout_s=1.0,
        )
        server = TritonProcess(start)
        try:
            with pytest.raises(ServerTimeoutError):
                server.wait_until_ready()
            metrics.server_activate()
            threading.Thread(target=metrics.serve_forever, daemon=True).start()
            server.wait_until_ready()
            metrics.shutdown()
        finally:
            server.stop()
            health.shutdown()
