"""The demo model on labelled cases: patient A, whom no weight has seen, and the patients that taught it.

Prints the tables of docs/calibration.md, and what the volume intervals of patient A cost.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
import time
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np

from ucseg_export.calibration.calibrate import calibrate, calibration_options
from ucseg_export.calibration.scores import AcceptedRisk
from ucseg_export.calibration.tables import calibration_tables
from ucseg_runtime.backends import open_backend
from ucseg_runtime.model_folder import default_model_folder, load_model
from ucseg_runtime.pipeline import segment_volume
from ucseg_runtime.segmentation import measure
from ucseg_runtime.volume import Volume
from ucseg_runtime.volume_interval import with_volume_intervals
from ucseg_training.data.case import Case
from ucseg_training.data.demo_cases import make_demo_cases
from ucseg_training.data.patient_a import patient_a


def main() -> None:
    """Run what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sets", nargs="*", choices=("held-out", "taught"), default=("held-out", "taught"))
    parser.add_argument("--n", type=int, default=20, help="how often the intervals are made")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder) / "model"
        shutil.copytree(default_model_folder(), model)
        if "held-out" in arguments.sets:
            print_tables(model, "Held out: patient A", [patient_a()])
            print_cost(model, patient_a(), arguments.n)
        if "taught" in arguments.sets:
            print_tables(model, "Not held out: the patients that taught the model", make_demo_cases())


def print_tables(folder: Path, title: str, cases: Iterable[Case]) -> None:
    """Calibrate and print; nothing is written into the folder."""
    model = load_model(folder)
    found = calibrate(model, cases, calibration_options("openvino", "f32"), AcceptedRisk())
    print(f"### {title}\n\n{calibration_tables(f'{model.manifest.name} {model.manifest.version}', found)}")


def print_cost(folder: Path, case: Case, number: int) -> None:
    """Time of a whole run, of measuring, and of the intervals, also where one class is not found."""
    model = load_model(folder)
    volume = Volume(case.voxels, case.geometry, "CT")
    options = replace(calibration_options("openvino", "f32"), keep_probabilities=False)
    with open_backend(model, options) as backend:
        started = time.perf_counter()
        segmentation = segment_volume(volume, model.manifest, backend, options)
        run_s = time.perf_counter() - started
    started = time.perf_counter()
    measurements = measure(segmentation)
    measure_s = time.perf_counter() - started
    missing = replace(segmentation, label_map=np.where(segmentation.label_map == 1, 0, segmentation.label_map))
    without_one = measure(missing)
    times: dict[str, list[float]] = {"all found": [], "one class missing": []}
    for _ in range(number):
        for name, pair in (("all found", (measurements, segmentation)), ("one class missing", (without_one, missing))):
            started = time.perf_counter()
            with_volume_intervals(*pair, None)
            times[name].append(time.perf_counter() - started)
    figures = {"segment_s": run_s, "measure_s": measure_s, **{name: min(found) for name, found in times.items()}}
    print(json.dumps({"volume intervals of patient A, least of the times in s": figures}, indent=2))
    intervals = {
        item.name: (round(item.volume_ml, 1), item.volume_interval_ml, (case.label_map == item.label).sum().item())
        for item in with_volume_intervals(measurements, segmentation, None)
    }
    print(json.dumps({"volume ml, interval ml, labelled voxels": intervals}))


if __name__ == "__main__":
    main()
