"""What stands in for Triton: health, metrics, a process for each of some models, and an end in order.

Arguments: ports of health and of metrics, a file that holds how often it was started, and its faults: ``deaf`` (it does
not end by itself), ``once`` (only the first one becomes ready), ``stuck`` (it waits in vain for a model that was lost).
"""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

MODELS = ("ucseg_merged", "ucseg_subnet_a", "ucseg_subnet_b", "ucseg_upg", "ucseg_volume")
LONGEST_LIFE_S = 120.0
ENDED_S = 0.2
"""From the end of a model until it is taken notice of: less than between two looks of who waits for a loss."""


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
    waiting = [sys.executable, "-c", f"import time; time.sleep({LONGEST_LIFE_S})"]
    models = [subprocess.Popen([*waiting, f"/models/{model}/1/model.py"]) for model in MODELS]
    told = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: None if "deaf" in faults else told.set())
    if times == 1 or "once" not in faults:
        for port in (health, metrics):
            server = ThreadingHTTPServer(("127.0.0.1", int(port)), Always)
            threading.Thread(target=server.serve_forever, daemon=True).start()
    told.wait(LONGEST_LIFE_S)
    lost = [model for model in models if model.poll() is not None]
    for model in models:
        model.kill()
        time.sleep(ENDED_S)
        model.wait()
    if lost and "stuck" in faults:
        time.sleep(LONGEST_LIFE_S)


if __name__ == "__main__":
    main()
