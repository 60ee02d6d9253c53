"""Plan, run and resume a batch of very many tiny series, and see what grows with their number, as JSON.

    python benchmarks/batch_scale.py [--n 10000] [--parts 10]

Every series is one made-up slice. The network and the writing of DICOM objects, which take the same time for every
series, are left out: in their place small files are published, with a record that is as good as that of a real run.
All else is the real batch: index, plan, leases, staging, publication, tables. It is done for a quarter of the series
and for all of them, so that one can see whether time and memory grow as their number does; then the command line is
started on the same folders, in a process of its own, and finds everything done.

`run_mb_per_1000` is the slope of the process's memory while it works, the index apart; `peak_mb_per_1000` that of the
peaks of the second start between the two numbers of series, which are those of the libraries while the index is small.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import pydicom

from measuring import Json, answer, child_request, environment, run_child
from tests.batch.exports import TINY, write_model
from tests.phantoms import write_ct_series
from ucseg_runtime.backends.opening import engine_of
from ucseg_runtime.batch.export_index import index_export
from ucseg_runtime.batch.plan import BatchOptions, BatchPlan, SeriesOutcome, plan_batch
from ucseg_runtime.batch.run import run_batch
from ucseg_runtime.batch.runners import Finished
from ucseg_runtime.batch.summary import SUMMARY, summary_rows, write_csv
from ucseg_runtime.config import InferenceOptions, OutputOptions
from ucseg_runtime.dicom.content import SeriesContent
from ucseg_runtime.dicom.headers import quiet_pydicom, read_instances
from ucseg_runtime.model_folder import Model, load_model
from ucseg_runtime.neighbours import SeriesJob
from ucseg_runtime.publish import REPORT, SEGMENTATION, UNCERTAINTY, staged_results
from ucseg_runtime.segmentation import EngineInfo

INFERENCE = InferenceOptions(engine="openvino", precision="f32")
_IN_A_FOLDER = 100
_PUBLISHED = {SEGMENTATION: 3000, UNCERTAINTY: 3000, REPORT: 6000}
_UID_DIGITS = 30


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, default=10_000, help="series")
    parser.add_argument("--parts", type=int, default=10, help="samples of time and memory during a run")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = measured(Path(folder), arguments.n, arguments.parts)
    print(json.dumps({"environment": environment(("ucseg", "pydicom")), **found}, indent=2))


def measured(folder: Path, series: int, parts: int) -> Json:
    """Figures for a quarter of the series and for all."""
    model = write_model(folder / "model")
    sizes = {str(count): _of_size(folder / str(count), model, count, parts) for count in (series // 4, series)}
    small, large = sizes.values()
    growth = (large["resume"]["peak_mb"] - small["resume"]["peak_mb"]) / (series - series // 4) * 1000
    return {"series": series, "sizes": sizes, "peak_mb_per_1000": round(growth, 3)}


def _of_size(folder: Path, model: Path, series: int, parts: int) -> Json:
    write_tiny_export(folder / "export", series)
    request = {"folder": str(folder), "model": str(model), "step": max(1, series // parts)}
    run = run_child(__file__, request)
    return {**run, "resume": resumed(folder, model, series)}


def write_tiny_export(root: Path, series: int) -> None:
    """Series of one slice each, some in every folder; they differ in their UIDs alone."""
    root.mkdir(parents=True)
    (path,) = write_ct_series(root, replace(TINY, shape=(1, 8, 8)))
    dataset = pydicom.dcmread(path)
    marks = {
        kind: f"2.25.{digit * _UID_DIGITS}" for kind, digit in (("study", "7"), ("series", "8"), ("instance", "9"))
    }
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID = marks["study"], marks["series"]
    dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = marks["instance"]
    dataset.save_as(path, enforce_file_format=True)
    template = path.read_bytes()
    path.unlink()
    for number in range(series):
        content = template
        for digit, mark in enumerate(marks.values(), start=1):
            content = content.replace(mark.encode(), f"2.25.{digit}{number:0{_UID_DIGITS - 1}}".encode())
        place = root / str(number // _IN_A_FOLDER) / f"{number}.dcm"
        place.parent.mkdir(exist_ok=True)
        place.write_bytes(content)


class PublishingRunner:
    """In place of a network: publishes small files for every series, with a record that proves it done."""

    def __init__(self, plan: BatchPlan, model: Model) -> None:
        self._expected = plan.expected
        self._labels = [item.label for item in model.manifest.classes]

    def engine(self) -> EngineInfo | None:
        """The plan was made before."""
        return None

    def segment(self, jobs: Iterable[SeriesJob | None], finished: Finished) -> None:
        """See `Runner.segment`."""
        for ordinal, job in enumerate(filter(None, jobs), start=1):
            self._publish(job)
            finished(ordinal, None)

    def _publish(self, job: SeriesJob) -> None:
        assert isinstance(job.source, tuple), "series of archives are not made here"  # noqa: S101
        content = SeriesContent()
        with quiet_pydicom() as caught:
            (instance,) = read_instances(job.source[0], caught)
        content.add(instance)
        figures = {"volume_ml": 1.0, "mean_uncertainty": 0.5}
        with staged_results(job.folder, overwrite=True) as staging:
            for name, size in _PUBLISHED.items():
                staging.path(name).write_bytes(bytes(size))
            staging.publish(
                {
                    "schema_version": 1,
                    "study_uid": instance.study_uid,
                    "series_uid": instance.series_uid,
                    "source_sop_uids": [instance.sop_instance_uid],
                    "input": {"content": content.digest},
                    "notes": [],
                    "measurements": [{"label": label, **figures} for label in self._labels],
                    **self._expected,
                    "decision": {"outcome": "accept", "calibrated": False, "score": 0.0, "reasons": []},
                }
            )


def first_run(folder: Path, model_folder: Path, step: int) -> Json:
    """Index, plan, run and tables, with time and memory after every `step` series."""
    begun, begun_processor = time.perf_counter(), time.process_time()
    index = index_export(folder / "export")
    indexed = time.perf_counter()
    model = load_model(model_folder)
    outputs, options = OutputOptions(), BatchOptions()
    plan = plan_batch(index, folder / "out", model, INFERENCE, outputs, options, engine_of(model, INFERENCE))
    planned = time.perf_counter()
    outcomes: list[SeriesOutcome] = []
    samples: list[tuple[int, float, float]] = []

    def report(outcome: SeriesOutcome) -> None:
        outcomes.append(outcome)
        if len(outcomes) % step == 0:
            samples.append((len(outcomes), time.perf_counter(), resident_mb()))

    run_batch(plan, PublishingRunner(plan, model), report)
    ran = time.perf_counter()
    rows = summary_rows(outcomes, plan.places, model.manifest.classes)
    write_csv(folder / "out" / SUMMARY, list(rows[0]), rows)
    told, times, resident = zip(*samples, strict=True)
    parts = [later - sooner for sooner, later in zip((planned, *times), times, strict=False)]
    return {
        "index_s": round(indexed - begun, 2),
        "plan_s": round(planned - indexed, 2),
        "run_s": round(ran - planned, 2),
        "tables_s": round(time.perf_counter() - ran, 2),
        "processor_s": round(time.process_time() - begun_processor, 2),
        "run_s_of_parts": [round(part, 2) for part in parts],
        "run_mb_of_parts": [round(value, 1) for value in resident],
        "run_mb_per_1000": round(statistics.linear_regression(told, resident).slope * 1000, 3),
    }


def resumed(folder: Path, model: Path, series: int) -> Json:
    """Seconds, those of the processor, and peak memory of the command line on a finished run, its start included.

    Raises:
        RuntimeError: Not everything was found done.
    """
    program = "from ucseg_runtime.cli.app import main; main()"
    options = ["--out", folder / "out", "--model", model, "--engine", "openvino", "--precision", "f32"]
    command = [sys.executable, "-c", program, "batch", folder / "export", *options, "--json"]
    said = folder / "said.json"
    begun = time.perf_counter()
    with said.open("w") as file:
        process = subprocess.Popen([str(part) for part in command], stdout=file)
        _, status, usage = os.wait4(process.pid, 0)  # the memory of this very process, not of the largest so far
    seconds = time.perf_counter() - begun
    process.returncode = os.waitstatus_to_exitcode(status)
    counts = json.loads(said.read_text(encoding="utf-8"))["counts"]
    if process.returncode or counts != {"done": series}:
        raise RuntimeError(f"of {series} series that were done, the second run says {counts}")
    processor_s = usage.ru_utime + usage.ru_stime
    return {"s": round(seconds, 2), "processor_s": round(processor_s, 2), "peak_mb": round(usage.ru_maxrss / 1024, 1)}


def resident_mb() -> float:
    """Resident memory of this process now."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


if __name__ == "__main__":
    asked = child_request()
    if asked is None:
        main()
    else:
        answer(first_run(Path(asked["folder"]), Path(asked["model"]), asked["step"]))
