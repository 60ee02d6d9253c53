"""Where the time and the memory of one whole run go, as JSON.

    python benchmarks/segment.py [--input FOLDER] [--n 3] [--engine auto] [--precision auto]

Each run is a process of its own, so that peak memory and start-up are a user's. Without --input the demo's chest CT
(133 x 512 x 512) is used. Times are medians over the runs, with minimum and maximum.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path

from measuring import Json, answer, child_request, environment, peak_memory_mb, run_child, spread

# Stages that are neither the network nor its loading.
AROUND_THE_NETWORK = ("scan", "read", "before and after network", "measure", "write")


def run_once(source: Path, engine: str, precision: str) -> dict[str, object]:
    """One run of `ucseg segment` in this process: seconds per stage, peak memory of it."""
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
    return {
        "seconds": {"import": imported, **result.seconds, "total": time.perf_counter() - started},
        "peak_memory_mb": peak_memory_mb(),
        "engine": f"{result.engine.name} {result.engine.version} {result.engine.precision}",
        "tiles": result.tiles,
    }


def summary(runs: list[Json]) -> Json:
    """Medians, minima and maxima over the runs, with the environment."""
    seconds = {name: spread([run["seconds"][name] for run in runs]) for name in runs[0]["seconds"]}
    around = sum(seconds[name]["median"] for name in AROUND_THE_NETWORK)
    return {
        "environment": environment(("ucseg", "openvino", "onnxruntime", "numpy", "highdicom", "pydicom")),
        "runs": len(runs),
        "engine": runs[0]["engine"],
        "tiles": runs[0]["tiles"],
        "seconds": seconds,
        "around_the_network_to_network": round(around / seconds["network"]["median"], 3),
        "peak_memory_mb": round(max(run["peak_memory_mb"] for run in runs)),
    }


def _demo_study(folder: Path) -> Path:
    from ucseg_runtime.packaged_data import write_demo_study

    write_demo_study(folder)
    return folder


def main() -> None:
    """Run the benchmark, or one run of it in a child process."""
    if request := child_request():
        answer(run_once(Path(request["input"]), request["engine"], request["precision"]))
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--input", type=Path, help="folder with DICOM images; the demo study when not given")
    parser.add_argument("--n", type=int, default=3, help="number of runs")
    parser.add_argument("--engine", default="auto", choices=("auto", "openvino", "onnxruntime"))
    parser.add_argument("--precision", default="auto", choices=("auto", "f32", "bf16"))
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        source = chosen.input or _demo_study(Path(folder))
        request = {"input": str(source), "engine": chosen.engine, "precision": chosen.precision}
        runs = [run_child(__file__, request) for _ in range(chosen.n)]
    print(json.dumps(summary(runs), indent=2))


if __name__ == "__main__":
    main()
