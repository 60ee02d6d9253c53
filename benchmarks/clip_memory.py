"""Peak memory and time of clips of different lengths: memory must not grow with the frames but by what is written.

``python benchmarks/clip_memory.py --frames 60 240``
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from pydicom import uid

from tests.clip_phantom import ClipPhantom, colour_model
from ucseg_runtime.config import InferenceOptions, OutputOptions
from ucseg_runtime.model_folder import load_model
from ucseg_runtime.series_pipeline import segment_series


def main() -> None:
    """Print one line for each length."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--frames", type=int, nargs="+", default=[60, 240])
    parser.add_argument("--rows", type=int, default=1080)
    parser.add_argument("--columns", type=int, default=1920)
    parser.add_argument("--folder", type=Path)
    arguments = parser.parse_args()
    if arguments.folder is not None:
        run(arguments.folder)
        return
    for frames in arguments.frames:
        with tempfile.TemporaryDirectory() as folder:
            colour_model().write(Path(folder) / "model")
            clip = ClipPhantom(
                frames, arguments.rows, arguments.columns, "YBR_FULL_422", transfer_syntax=uid.JPEGBaseline8Bit
            )
            clip.write(Path(folder) / "in" / "clip.dcm")
            # A process of its own, since the peak is that of a whole life.
            subprocess.run([sys.executable, __file__, "--folder", folder], check=True)


def run(folder: Path) -> None:
    """Segment the clip of a folder and print what it took."""
    started = time.perf_counter()
    options = InferenceOptions(gate=False, engine="onnxruntime")
    result = segment_series(folder / "in", folder / "out", load_model(folder / "model"), options, OutputOptions())
    seconds = time.perf_counter() - started
    peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    found = {
        "frames": result.tiles,
        "peak_mb": round(peak_mb),
        "seconds": round(seconds, 1),
        "ms_per_frame": round(1000 * seconds / result.tiles),
        "segmentation_mb": round((folder / "out" / "segmentation.dcm").stat().st_size / 1e6, 1),
        "stages": {name: round(value, 1) for name, value in result.seconds.items()},
    }
    sys.stdout.write(json.dumps(found) + "\n")


if __name__ == "__main__":
    main()
