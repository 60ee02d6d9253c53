"""Peak memory of a whole run, and of each of its stages, as JSON.

    python benchmarks/memory.py [--slices 300] [--precision f32] [--seg-type binary] [--mode auto] [--max-memory MB]

A child process segments a made-up chest CT of 512 x 512 x SLICES with the demo model and writes all objects. Memory is
what the kernel counts as resident at its highest, libraries included, in MB (1e6 bytes). The volume's own size is that
of its voxels in int16.
"""

from __future__ import annotations

import argparse
import json
import logging
import tempfile
from pathlib import Path

from made_up import SIDE, write_series
from measuring import Json, answer, child_request, environment, peak_memory_mb, run_child

_PACKAGES = ("ucseg", "openvino", "onnxruntime", "numpy", "highdicom", "pydicom")
_MB_PER_MIB = 1.048576


class StagePeaks(logging.Handler):
    """Largest resident memory of each stage, in MB: the pipeline logs a line when a stage ends."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self.peaks_mb: dict[str, int] = {}

    def emit(self, record: logging.LogRecord) -> None:
        """Note the peak since the last line, and start a new one."""
        if isinstance(record.args, tuple):
            self.peaks_mb[str(record.args[0])] = round(peak_memory_mb() * _MB_PER_MIB)
            # proc(5): 5 resets the high-water mark to what is resident now.
            Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def run_once(request: Json) -> Json:
    """One run of `ucseg segment` in this process."""
    from ucseg_runtime import series_steps
    from ucseg_runtime.config import InferenceOptions, OutputOptions, SegEncoding
    from ucseg_runtime.model_folder import default_model_folder, load_model
    from ucseg_runtime.series_pipeline import segment_series

    stages = StagePeaks()
    logger = logging.getLogger(series_steps.__name__)
    logger.setLevel(logging.INFO)
    logger.addHandler(stages)
    options = InferenceOptions(**request["inference"])
    outputs = OutputOptions(SegEncoding(request["seg_type"]))
    model = load_model(default_model_folder())
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out"
        result = segment_series(Path(request["input"]), out, model, options, outputs)
        written = json.loads((out / "record.json").read_text(encoding="utf-8"))["outputs"]
    return {
        "engine": f"{result.engine.name} {result.engine.version} {result.engine.precision}",
        "tiles": result.tiles,
        "seconds": {name: round(value, 2) for name, value in result.seconds.items()},
        "peak_mb": {**stages.peaks_mb, "whole run": max(stages.peaks_mb.values())},
        "sha256": {name: item["sha256"] for name, item in written.items()},
    }


def main() -> None:
    """Run the benchmark, or its run in a child process."""
    if request := child_request():
        answer(run_once(request))
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--slices", type=int, default=300)
    parser.add_argument("--precision", default="f32", choices=("f32", "bf16", "int8"))
    parser.add_argument("--seg-type", default="binary", choices=("binary", "labelmap", "fractional"))
    parser.add_argument("--mode", default="auto", choices=("auto", "latency", "throughput"))
    parser.add_argument("--max-memory", type=int, default=0, metavar="MB", help="budget of the run; 0 means none")
    chosen = parser.parse_args()
    # A precision that was asked for is measured whether or not it passed.
    inference = {"engine": "openvino", "precision": chosen.precision, "gate": False}
    inference |= {"mode": chosen.mode, "max_memory_mb": chosen.max_memory}
    machine = environment(_PACKAGES)
    with tempfile.TemporaryDirectory() as folder:
        study = Path(folder) / "study"
        write_series(study, chosen.slices)
        found = run_child(__file__, {"input": str(study), "inference": inference, "seg_type": chosen.seg_type})
    volume_mb = chosen.slices * SIDE * SIDE * 2 / 1e6
    above = round(found["peak_mb"]["whole run"] - volume_mb)
    sizes = {"shape": [chosen.slices, SIDE, SIDE], "volume_mb": round(volume_mb), "above_the_volume_mb": above}
    print(json.dumps({"environment": machine, **sizes, **found}, indent=2))


if __name__ == "__main__":
    main()
