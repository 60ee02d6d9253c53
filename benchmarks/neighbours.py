"""Many studies with one open engine: one after the other against overlapped, as JSON.

    python benchmarks/neighbours.py [--input FOLDER] [--studies 4] [--n 3] [--precision auto]

Both ways take turns, each time in a process of its own that opens the engine once. Times are those of all studies,
without the start of Python and the loading of the model; memory is resident at its highest, in MB (1e6 bytes), of the
process and of all its children together: a sum of samples, in which libraries that processes share count in each.
Processor seconds are those of the process and of its children, and say what overlapping costs where cores are not idle.
The digests of what both ways wrote are compared. Without --input the demo's chest CT (133 x 512 x 512) is used.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import tempfile
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from threading import Event, Thread
from typing import TYPE_CHECKING, Any

from measuring import Json, answer, child_request, environment, run_child, spread

if TYPE_CHECKING:
    from ucseg_runtime.config import InferenceOptions, OutputOptions
    from ucseg_runtime.model_folder import Model

WAYS = ("one after the other", "overlapped")
_PACKAGES = ("ucseg", "openvino", "onnxruntime", "numpy", "highdicom", "pydicom")
_SECONDS_BETWEEN_SAMPLES = 0.05


class FamilyMemory:
    """Largest resident memory of this process and its children together, sampled; used with ``with``."""

    def __init__(self) -> None:
        self.peak_mb = 0.0
        self._ended = Event()
        self._thread = Thread(target=self._watch)

    def __enter__(self) -> FamilyMemory:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._ended.wait(_SECONDS_BETWEEN_SAMPLES):
            self.peak_mb = max(self.peak_mb, sum(map(_resident_mb, _family(os.getpid()))))


def _family(pid: int) -> list[int]:
    """A process and all below it."""
    try:
        children = [
            int(child)
            for task in Path(f"/proc/{pid}/task").iterdir()
            for child in (task / "children").read_text(encoding="ascii").split()
        ]
    except (FileNotFoundError, ProcessLookupError):
        return []  # it has just ended
    return [pid, *(member for child in children for member in _family(child))]


def _resident_mb(pid: int) -> float:
    try:
        found = re.findall(r"VmRSS:\s+(\d+)", Path(f"/proc/{pid}/status").read_text(encoding="ascii"))
    except (FileNotFoundError, ProcessLookupError):
        return 0.0
    return int(found[0]) * 1024 / 1e6 if found else 0.0


def one_after_the_other(
    source: Path, folders: list[Path], model: Model, inference: InferenceOptions, outputs: OutputOptions
) -> None:
    """Segment the same study again and again with one open engine."""
    from ucseg_runtime.backends.opening import open_backend
    from ucseg_runtime.config import WHATEVER_FITS
    from ucseg_runtime.inputs import found_in
    from ucseg_runtime.series_steps import StageTimes, infer_series, read_series, write_series

    with open_backend(model, inference) as backend:
        for folder in folders:
            with found_in(source, model.manifest, WHATEVER_FITS) as found:
                read = read_series(found, StageTimes())
            inferred = infer_series(read, model, nullcontext(backend), inference, outputs)
            del read
            write_series(inferred, folder, inference, outputs)


def overlapped(
    source: Path, folders: list[Path], model: Model, inference: InferenceOptions, outputs: OutputOptions
) -> None:
    """The same with reading and writing beside the network."""
    from ucseg_runtime.neighbours import Outcome, Refused, SeriesJob, segment_neighbours

    def refuse_failures(outcome: Outcome) -> None:
        if isinstance(outcome, Refused):
            raise outcome.error

    jobs = (SeriesJob(source, folder) for folder in folders)
    segment_neighbours(jobs, model, inference, outputs, refuse_failures)


def run_once(request: Json) -> Json:
    """All studies in one of both ways, in this process."""
    from ucseg_runtime.config import InferenceOptions, OutputOptions
    from ucseg_runtime.model_folder import default_model_folder, load_model

    segment_all: Callable[..., None] = dict(zip(WAYS, (one_after_the_other, overlapped), strict=True))[request["way"]]
    # A precision that was asked for is timed whether or not it passed.
    inference = InferenceOptions(precision=request["precision"], gate=request["precision"] == "auto")
    model = load_model(default_model_folder())
    with tempfile.TemporaryDirectory() as out, FamilyMemory() as memory:
        folders = [Path(out) / str(number) for number in range(request["studies"])]
        processor_before, started = _processor_seconds(), time.perf_counter()
        segment_all(Path(request["input"]), folders, model, inference, OutputOptions())
        seconds = time.perf_counter() - started
        records = [json.loads((folder / "record.json").read_text(encoding="utf-8")) for folder in folders]
    return {
        "seconds": seconds,
        "processor_seconds": _processor_seconds() - processor_before,
        "peak_memory_mb": memory.peak_mb,
        "outputs": [record["outputs"] for record in records],
    }


def _processor_seconds() -> float:
    return sum(os.times()[:4])


def summary(runs: dict[str, list[Json]], studies: int) -> Json:
    """Medians and spread of both ways, and their ratios."""
    outputs = [output for way in WAYS for run in runs[way] for output in run["outputs"]]
    found: dict[str, Any] = {
        way: {
            "seconds": spread([run["seconds"] for run in runs[way]], 2),
            "processor_seconds": spread([run["processor_seconds"] for run in runs[way]], 2),
            "peak_memory_mb": round(max(run["peak_memory_mb"] for run in runs[way])),
        }
        for way in WAYS
    }
    first, second = (found[way] for way in WAYS)
    return {
        "studies": studies,
        "turns": len(runs[WAYS[0]]),
        **found,
        "gain": round(first["seconds"]["median"] / second["seconds"]["median"], 3),
        "gain_of_each_turn": [
            round(a["seconds"] / b["seconds"], 3) for a, b in zip(*(runs[way] for way in WAYS), strict=True)
        ],
        "processor_seconds_ratio": round(
            second["processor_seconds"]["median"] / first["processor_seconds"]["median"], 3
        ),
        "peak_memory_ratio": round(second["peak_memory_mb"] / first["peak_memory_mb"], 2),
        "same_outputs": all(output == outputs[0] for output in outputs),
    }


def main() -> None:
    """Run the benchmark, or one turn of it in a child process."""
    if request := child_request():
        answer(run_once(request))
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--input", type=Path, help="folder with DICOM images; the demo study when not given")
    parser.add_argument("--studies", type=int, default=4, help="how often the study is segmented in one turn")
    parser.add_argument("--n", type=int, default=3, help="turns of each way")
    parser.add_argument("--precision", default="auto", choices=("auto", "f32", "bf16", "int8"))
    chosen = parser.parse_args()
    machine = environment(_PACKAGES)
    runs: dict[str, list[Json]] = {way: [] for way in WAYS}
    with tempfile.TemporaryDirectory() as folder:
        source = chosen.input or _demo_study(Path(folder))
        for _ in range(chosen.n):
            for way in WAYS:
                request = {"way": way, "input": str(source), "studies": chosen.studies, "precision": chosen.precision}
                runs[way].append(run_child(__file__, request))
    print(json.dumps({"environment": machine, **summary(runs, chosen.studies)}, indent=2))


def _demo_study(folder: Path) -> Path:
    from ucseg_runtime.packaged_data import write_demo_study

    write_demo_study(folder)
    return folder


if __name__ == "__main__":
    main()
