"""What the gate in front of a local Triton's HTTP port takes of a request: with and without it in turns, as JSON.

    python benchmarks/http_gate.py [--n 5]

One client on one connection asks for a model that the server does not have, with a short body and with a volume of
52 MB: the server reads the whole body and computes nothing. Each figure is the median of a hundred or ten requests;
times in ms.
"""

from __future__ import annotations

import argparse
import http.client
import json
import re
import statistics
import time
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np

from measuring import Json, environment, spread
from ucseg_runtime.model_folder import default_model_folder
from ucseg_serving.local_server import LocalOptions, LocalServer
from ucseg_serving.local_service import serve
from ucseg_serving.serving_options import ServingOptions
from ucseg_serving.weights import WeightsRequest

_VOLUME = np.zeros((100, 512, 512), dtype=np.int16)


def _bodies() -> dict[str, tuple[bytes, dict[str, str], int]]:
    """Body, headers, and how many requests make a figure."""
    tensor = {"name": "VOLUME", "datatype": "INT16", "shape": list(_VOLUME.shape)}
    header = json.dumps({"inputs": [tensor | {"parameters": {"binary_data_size": _VOLUME.nbytes}}]}).encode()
    length = {"Inference-Header-Content-Length": str(len(header))}
    return {"short": (b'{"inputs": []}', {}, 100), "volume": (header + _VOLUME.tobytes(), length, 10)}


def _milliseconds(url: str, body: bytes, headers: dict[str, str], requests: int) -> float:
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port)
    seconds = []
    for _ in range(requests):
        started = time.perf_counter()
        connection.request("POST", "/v2/models/nothing/infer", body, headers)
        answer = connection.getresponse()
        answer.read()
        seconds.append(time.perf_counter() - started)
        if answer.status not in (400, 404):
            raise RuntimeError(f"the server answered {answer.status}")
    connection.close()
    return 1000.0 * statistics.median(seconds)


def _behind_the_gate(server: LocalServer) -> str:
    line = Path(f"/proc/{server.process.pid}/cmdline").read_text(encoding="utf-8")
    (port,) = re.findall(r"--http-port=(\d+)", line)
    return f"http://127.0.0.1:{port}"


def measure(server: LocalServer, n: int) -> Json:
    """Times by body, with and without the gate."""
    urls = {"gate": server.http_url, "direct": _behind_the_gate(server)}
    found: dict[str, dict[str, list[float]]] = {body: {way: [] for way in urls} for body in _bodies()}
    for _ in range(n):
        for name, (body, headers, requests) in _bodies().items():
            for way, url in urls.items():
                found[name][way].append(_milliseconds(url, body, headers, requests))
    return {name: {way: spread(times) for way, times in ways.items()} for name, ways in found.items()}


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, default=5, help="turns")
    n = parser.parse_args().n
    request = WeightsRequest("auto", "f32", gate=True, engines=Path())
    with serve(default_model_folder(), request, ServingOptions(), LocalOptions()) as server:
        times = measure(server, n)
    print(json.dumps({"environment": environment(("ucseg", "aiohttp")), "n": n, "ms": times}, indent=2))


if __name__ == "__main__":
    main()
