"""What stands in for Triton: health, metrics, a process for each of two models, and an end in order.

Arguments: ports of health and of metrics, a file that holds how often it was started, and then, of its faults,
``deaf`` (it does not end by itself) and ``once`` (only the first one becomes ready).
"""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

MODELS = ("ucseg_merged", "ucseg_volume")


class Always(BaseHTTPRequestHandler):
    """Answers with 200."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Nothing is printed."""


def main() -> None:
    health, metrics, starts, *faults = sys.argv[1:]
    times = int(Path(starts).read_text(encoding="ascii")) + 1
    Path(starts).write_text(str(times), encoding="ascii")
    print(f"Error of run {times}", flush=True)  # noqa: T201  (it is a log)
    waiting = [sys.executable, "-c", "import time; time.sleep(600)"]
    models = [subprocess.Popen([*waiting, f"/models/{model}/1/model.py"]) for model in MODELS]
    told = threading.Event()
    for signum in (signal.SIGTERM, signal.SIGUSR1):
        signal.signal(signum, lambda *_: told.set() if "deaf" not in faults else None)
    if times == 1 or "once" not in faults:
        for port in (health, metrics):
            server = ThreadingHTTPServer(("127.0.0.1", int(port)), Always)
            threading.Thread(target=server.serve_forever, daemon=True).start()
    while not told.wait(0.1):
        pass
    for model in models:
        model.kill()
        model.wait()
        told.clear()
        told.wait(1.0)


if __name__ == "__main__":
    main()
