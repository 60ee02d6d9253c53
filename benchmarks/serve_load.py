"""Load and faults on a real Triton server of this machine: every answer is compared, errors are counted by kind.

    python benchmarks/serve_load.py MODEL_DIR --tiles 2000 --tile-clients 16 --volumes 200 --volume-clients 4
    python benchmarks/serve_load.py MODEL_DIR --tiles 10000 --tile-clients 64 --volumes 0
    python benchmarks/serve_load.py MODEL_DIR --tiles 0 --volumes 0 --compare 3   # one client
    python benchmarks/serve_load.py MODEL_DIR --agreement 3   # what counting how far the subnets agree costs
    python benchmarks/serve_load.py MODEL_DIR --kills 50 --series 40   # killed, started again; see serve_kills.py

The server is started on loopback for the length of the run. Prints JSON.
"""

from __future__ import annotations

import argparse
import json
import statistics
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from measuring import environment
from serve_kills import kill_load
from served import Service
from tests.processes import free_port
from ucseg_runtime.backends import open_backend
from ucseg_runtime.backends.triton_volume import segment_on_server
from ucseg_runtime.config import InferenceOptions
from ucseg_runtime.errors import UcsegError
from ucseg_runtime.geometry import VolumeGeometry
from ucseg_runtime.model_folder import Model, load_model
from ucseg_runtime.pipeline import segment_volume
from ucseg_runtime.selftest import phantom
from ucseg_runtime.volume import Volume
from ucseg_serving.local_server import LocalOptions
from ucseg_serving.repository import write_repository
from ucseg_serving.serving_options import ServingOptions
from ucseg_serving.weights import WeightsRequest, weights_for

_SEED = 0
_REPEATS = (4, 6, 6)
"""Of the self-test's phantom: 400 x 384 x 336 mm."""


@dataclass
class Outcome:
    """What became of many requests."""

    right: int = 0
    wrong: int = 0
    errors: Counter[str] = field(default_factory=Counter)
    seconds: list[float] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def note(self, work: Callable[[], bool]) -> None:
        """Run one request and count it."""
        started = time.perf_counter()
        try:
            right = work()
        except UcsegError as error:
            with self.lock:
                self.errors[f"{error.code} {type(error).__name__}"] += 1
            return
        with self.lock:
            self.right += right
            self.wrong += not right
            self.seconds.append(time.perf_counter() - started)

    def as_json(self, wall_s: float) -> dict[str, Any]:
        """Counts, rate and latencies in s."""
        quantiles = statistics.quantiles(self.seconds, n=100) if len(self.seconds) > 1 else [0.0] * 99
        return {
            "right": self.right,
            "wrong": self.wrong,
            "errors": dict(self.errors),
            "per_second": round(len(self.seconds) / wall_s, 2),
            "p50_s": round(quantiles[49], 4),
            "p95_s": round(quantiles[94], 4),
            "p99_s": round(quantiles[98], 4),
            "longest_s": round(max(self.seconds, default=0.0), 4),
        }


def tile_load(service: Service, requests: int, clients: int) -> dict[str, Any]:
    """Random tiles by so many clients at once; each answer must be that of the embedded engine."""
    spec = service.model.manifest
    tiles = np.random.default_rng(_SEED).random((8, spec.channels, *spec.tiling.tile_shape), dtype=np.float32)
    with open_backend(service.model, InferenceOptions(engine="openvino", precision="f32", gate=False)) as backend:
        expected = backend.infer(tiles)
    outcome = Outcome()
    remaining = iter(range(requests))
    with ExitStack() as stack:
        options = InferenceOptions(gate=False, server=service.client("tile"))
        backends = [stack.enter_context(open_backend(service.model, options)) for _ in range(clients)]
        lock = threading.Lock()

        def client(backend: Any) -> None:  # noqa: ANN401
            while True:
                with lock:
                    number = next(remaining, None)
                if number is None:
                    return
                place = number % len(tiles)

                def request(place: int = place) -> bool:
                    answer = backend.infer(tiles[place : place + 1])
                    return bool(np.array_equal(answer.probabilities[0], expected.probabilities[place]))

                outcome.note(request)

        started = time.perf_counter()
        with ThreadPoolExecutor(clients) as pool:
            list(pool.map(client, backends))
    return outcome.as_json(time.perf_counter() - started)


def volume_load(service: Service, requests: int, clients: int) -> dict[str, Any]:
    """The self-test's phantom by so many clients at once, in volume mode."""
    volume, _ = phantom()
    options = InferenceOptions(engine="openvino", precision="f32", gate=False)
    with open_backend(service.model, options) as backend:
        embedded_started = time.perf_counter()
        expected = segment_volume(volume, service.model.manifest, backend, options).label_map
        embedded_s = time.perf_counter() - embedded_started
    outcome = Outcome()

    def request() -> bool:
        server = service.client("volume")
        found, _ = segment_on_server(volume, service.model, server, gate=False)
        return bool(np.array_equal(found.label_map, expected))

    started = time.perf_counter()
    with ThreadPoolExecutor(clients) as pool:
        list(pool.map(lambda _: outcome.note(request), range(requests)))
    return {**outcome.as_json(time.perf_counter() - started), "embedded_s": round(embedded_s, 4)}


def compare(service: Service, rounds: int) -> dict[str, Any]:
    """One client's time for a volume of many tiles in every way, in turns, against the embedded engine's."""
    volume = large_phantom()
    embedded = InferenceOptions(engine="openvino", precision="f32", gate=False)
    ways = {
        "embedded": embedded,
        "tile": InferenceOptions(gate=False, server=service.client("tile")),
        "merged": InferenceOptions(gate=False, server=service.client("merged")),
        "merged_shared_memory": InferenceOptions(
            gate=False, server=replace(service.client("merged"), shared_memory=True)
        ),
        "tile_shared_memory": InferenceOptions(gate=False, server=replace(service.client("tile"), shared_memory=True)),
    }
    whole = {
        "volume": service.client("volume"),
        "volume_shared_memory": replace(service.client("volume"), shared_memory=True),
    }
    seconds: dict[str, list[float]] = {name: [] for name in (*ways, *whole)}
    for _ in range(rounds + 1):
        for name, way in ways.items():
            # Opened anew, as a client has nothing else open: threads of an engine beside it wait actively.
            with open_backend(service.model, way) as backend:
                started = time.perf_counter()
                segment_volume(volume, service.model.manifest, backend, way)
                seconds[name].append(time.perf_counter() - started)
        for name, server in whole.items():
            started = time.perf_counter()
            segment_on_server(volume, service.model, server, gate=False)
            seconds[name].append(time.perf_counter() - started)
    return _against(seconds, "embedded")


def agreement_cost(services: dict[str, Service], rounds: int) -> dict[str, Any]:
    """Time of a volume of many tiles where the volume model asks one model or another for its tiles, in turns."""
    volume = large_phantom()
    seconds: dict[str, list[float]] = {name: [] for name in services}
    with ExitStack() as stack:
        for service in services.values():
            stack.enter_context(service.start())
        for _ in range(rounds + 1):
            for name, service in services.items():
                started = time.perf_counter()
                segment_on_server(volume, service.model, service.client("volume"), gate=False)
                seconds[name].append(time.perf_counter() - started)
    return _against(seconds, next(iter(services)))


def large_phantom() -> Volume:
    """The self-test's phantom side by side with itself."""
    small, _ = phantom()
    voxels = np.tile(small.voxels, _REPEATS)
    z, y, x = voxels.shape
    return Volume(voxels, VolumeGeometry(small.geometry.affine, (z, y, x)), small.modality)


def _against(seconds: dict[str, list[float]], reference: str) -> dict[str, Any]:
    """Medians without the first turn, which warms up, and of each turn's ratios to one of them: machines drift."""
    counted = {name: times[1:] for name, times in seconds.items()}
    ratios = {
        name: statistics.median(one / other for one, other in zip(times, counted[reference], strict=True))
        for name, times in counted.items()
    }
    medians = {name: round(statistics.median(times), 3) for name, times in counted.items()}
    return {"seconds": medians, "ratios": {name: round(ratio, 3) for name, ratio in ratios.items()}}


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Start the server and send what was asked for."""
    model = load_model(arguments.model)
    report: dict[str, Any] = {
        "environment": environment(["openvino", "tritonclient", "numpy"]),
        "model": model.manifest.name,
    }
    with TemporaryDirectory() as folder:
        service = written(model, ServingOptions(instances=arguments.instances), Path(folder) / "models")
        if arguments.kills:
            report["faults"] = kill_load(service, arguments.series, arguments.kills, arguments.seed)
            return report
        if arguments.agreement:
            logits = ServingOptions(instances=arguments.instances, volume_over="ucseg_logits")
            services = {"ucseg_merged": service, "ucseg_logits": written(model, logits, Path(folder) / "logits")}
            report["volume_over"] = agreement_cost(services, arguments.agreement)
            return report
        with service.start() as server:
            if arguments.tiles:
                report["tiles"] = tile_load(service, arguments.tiles, arguments.tile_clients)
            if arguments.volumes:
                report["volumes"] = volume_load(service, arguments.volumes, arguments.volume_clients)
            if arguments.compare:
                report["compare"] = compare(service, arguments.compare)
            report["alive"] = server.process.poll() is None
    return report


def written(model: Model, options: ServingOptions, repository: Path) -> Service:
    """A repository of the model, and ports for its server."""
    weights = weights_for(model, WeightsRequest("openvino", "f32", False, repository), options)
    write_repository(model, weights, options, repository, overwrite=False)
    ports = LocalOptions(free_port(), free_port(), free_port(), shared_memory=True, stop_timeout_s=5.0)
    return Service(model, repository, ports)


def main() -> None:
    """Parse, run, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--tiles", type=int, default=2000)
    parser.add_argument("--tile-clients", type=int, default=16)
    parser.add_argument("--volumes", type=int, default=200)
    parser.add_argument("--volume-clients", type=int, default=4)
    parser.add_argument("--kills", type=int, default=0, help="of the server, during --series; nothing else then runs")
    parser.add_argument("--series", type=int, default=40, help="whole runs of ucseg segment, with --kills")
    parser.add_argument("--seed", type=int, default=0, help="of the times of the kills")
    parser.add_argument("--compare", type=int, default=0, help="rounds")
    parser.add_argument("--agreement", type=int, default=0, help="rounds")
    parser.add_argument("--instances", type=int, default=2)
    arguments = parser.parse_args()
    print(json.dumps(run(arguments), indent=2))


if __name__ == "__main__":
    main()
