"""One `ucseg batch` beside a loop over `ucseg segment`, on the same series, in turns, as JSON.

    python benchmarks/batch_throughput.py [--series 6] [--n 3] [--lanes 2] [--runners 1]

The series are the demo's chest CT (133 x 512 x 512) under other UIDs, the model is the packaged one. Every run is a
process of its own with a new folder of results. Of the loop only what its stages say is counted, the loading of the
model left out, so that the start of each program and the model weigh nothing; of the batch everything is counted, from
the start of its program to its end. `processor` is the processor time of a batch with its children, of what all cores
could have given meanwhile. Each round has a batch of one process, one with --lanes, and with --runners that many
batches more, started together on one folder, each with its share of the cores as threads.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pydicom

from measuring import Json, environment, spread

_PROGRAM = (sys.executable, "-c", "from ucseg_runtime.cli.app import main; main()")
_OUTSIDE_OF_A_SERIES = ("load model",)


def write_copies(export: Path, copies: int) -> list[Path]:
    """The demo study again and again, each with UIDs of its own."""
    from ucseg_runtime.packaged_data import write_demo_study

    write_demo_study(export / "0")
    for number in range(1, copies):
        folder = export / str(number)
        folder.mkdir()
        for place, path in enumerate(sorted(path for path in (export / "0").rglob("*") if path.is_file())):
            dataset = pydicom.dcmread(path)
            for keyword in ("StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID", "SOPInstanceUID"):
                uid = pydicom.uid.generate_uid(entropy_srcs=[str(dataset[keyword].value), str(number)])
                setattr(dataset, keyword, uid)
            dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
            dataset.save_as(folder / f"{place}.dcm", enforce_file_format=True)
    return [export / str(number) for number in range(copies)]


def loop_seconds(studies: list[Path], out: Path) -> float:
    """All series by one program each: what their stages took."""
    seconds = 0.0
    for study in studies:
        arguments = ("segment", str(study), "--out", str(out / study.name), "--json")
        printed = subprocess.run([*_PROGRAM, *arguments], check=True, capture_output=True, text=True).stdout
        stages = json.loads(printed)["seconds"]
        seconds += sum(value for name, value in stages.items() if name not in _OUTSIDE_OF_A_SERIES)
    return seconds


def batch_seconds(export: Path, out: Path, lanes: int, runners: int) -> tuple[float, float]:
    """All series by a batch, or by several on one folder: seconds on the clock, and the share of all cores used."""
    cores = len(os.sched_getaffinity(0))
    threads = () if runners == 1 else ("--threads", str(max(1, cores // runners)))
    command = [*_PROGRAM, "batch", str(export), "--out", str(out), "--lanes", str(lanes), "--json", *threads]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    started = time.perf_counter()
    processes = [subprocess.Popen(command, stdout=subprocess.DEVNULL) for _ in range(runners)]
    codes = [process.wait() for process in processes]
    seconds = time.perf_counter() - started
    if any(codes):
        raise RuntimeError(f"batches ended with {codes}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return seconds, used / seconds / cores


def main() -> None:
    """Print the times as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--series", type=int, default=6)
    parser.add_argument("--n", type=int, default=3, help="number of rounds")
    parser.add_argument("--lanes", type=int, default=2, help="of the second batch")
    parser.add_argument("--runners", type=int, default=1, help="batches that share a folder, measured beside one")
    chosen = parser.parse_args()
    loop: list[float] = []
    ways = sorted({(1, 1), (chosen.lanes, 1), (1, chosen.runners)})
    batches: dict[tuple[int, int], list[tuple[float, float]]] = {way: [] for way in ways}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        studies = write_copies(folder / "export", chosen.series)
        for number in range(chosen.n):
            loop.append(loop_seconds(studies, folder / f"loop {number}"))
            for way, figures in batches.items():
                figures.append(batch_seconds(folder / "export", folder / f"batch {number} of {way}", *way))
    found: Json = {
        "series": chosen.series,
        "loop_without_model_s": spread(loop),
        "environment": environment(("ucseg", "openvino", "numpy", "highdicom", "pydicom")),
    }
    for (lanes, runners), figures in batches.items():
        seconds, shares = map(list, zip(*figures, strict=True))
        found[f"lanes_{lanes}_runners_{runners}"] = {
            "batch_s": spread(seconds),
            "loop_to_batch": round(statistics.median(loop) / statistics.median(seconds), 3),
            "processor": spread(shares),
        }
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
