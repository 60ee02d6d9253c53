"""Where the time and the memory of one whole run go, as JSON.

    python benchmarks/segment.py [--input FOLDER] [--n 3] [--engine auto] [--precision auto]

Each run is a process of its own, so that peak memory and start-up are a user's. Without --input the demo's chest CT
(133 x 512 x 512) is used. Times are medians over the runs, with minimum and maximum.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

# Stages that are neither the network nor its loading.
AROUND_THE_NETWORK = ("scan", "read", "before and after network", "write")


def run_once(source: Path, engine: str, precision: str) -> dict[str, object]:
    """One run of `ucseg segment` in this process: seconds per stage, peak memory of it and its children."""
    started = time.perf_counter()
    from ucseg_runtime.config import InferenceOptions, OutputOptions
    from ucseg_runtime.model_folder import default_model_folder, load_model
    from ucseg_runtime.series_pipeline import segment_series

    imported = time.perf_counter() - started
    model = load_model(default_model_folder())
    with tempfile.TemporaryDirectory() as folder:
        # A precision that was asked for is timed whether or not it passed.
        options = InferenceOptions(engine, precision, gate=precision == "auto")  # type: ignore[arg-type]  # by argparse
        result = segment_series(source, Path(folder) / "out", model, options, OutputOptions())
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return {
        "seconds": {"import": imported, **result.seconds, "total": time.perf_counter() - started},
        "peak_memory_mb": usage.ru_maxrss / 1024,
        "engine": f"{result.engine.name} {result.engine.version} {result.engine.precision}",
        "tiles": result.tiles,
    }


def summary(runs: list[dict[str, object]]) -> dict[str, object]:
    """Medians, minima and maxima over the runs, with the environment."""
    stages = {name: [run["seconds"][name] for run in runs] for name in runs[0]["seconds"]}  # type: ignore[index]
    seconds = {
        name: {"median": round(statistics.median(v), 3), "min": round(min(v), 3), "max": round(max(v), 3)}
        for name, v in stages.items()
    }
    around = sum(seconds[name]["median"] for name in AROUND_THE_NETWORK)
    return {
        "runs": len(runs),
        "engine": runs[0]["engine"],
        "tiles": runs[0]["tiles"],
        "seconds": seconds,
        "around_the_network_to_network": round(around / seconds["network"]["median"], 3),
        "peak_memory_mb": round(max(run["peak_memory_mb"] for run in runs)),  # type: ignore[type-var]
        "cores": len(os.sched_getaffinity(0)),
        "processor": _processor(),
        "python": platform.python_version(),
        "commit": _commit(),
    }


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text(encoding="ascii").splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor()


def _commit() -> str:
    command = ["git", "describe", "--always", "--dirty"]
    return subprocess.run(
        command, capture_output=True, text=True, check=False, cwd=Path(__file__).parent
    ).stdout.strip()


def _demo_study(folder: Path) -> Path:
    from ucseg_runtime.packaged_data import write_demo_study

    write_demo_study(folder)
    return folder


def main() -> None:
    """Run the benchmark, or one run of it in a child process."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--input", type=Path, help="folder with DICOM images; the demo study when not given")
    parser.add_argument("--n", type=int, default=3, help="number of runs")
    parser.add_argument("--engine", default="auto", choices=("auto", "openvino", "onnxruntime"))
    parser.add_argument("--precision", default="auto", choices=("auto", "f32", "bf16"))
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.child:
        print(json.dumps(run_once(chosen.input, chosen.engine, chosen.precision)))
        return
    with tempfile.TemporaryDirectory() as folder:
        source = chosen.input or _demo_study(Path(folder))
        command = [sys.executable, __file__, "--child", "--input", str(source), "--engine", chosen.engine]
        command += ["--precision", chosen.precision]
        outputs = [subprocess.run(command, capture_output=True, text=True, check=True).stdout for _ in range(chosen.n)]
    print(json.dumps(summary([json.loads(output) for output in outputs]), indent=2))


if __name__ == "__main__":
    main()
