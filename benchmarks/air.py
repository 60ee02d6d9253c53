"""What leaving the air around the patient out saves, and what it changes, as JSON.

    python benchmarks/air.py [--n 3] [--cases FOLDER]

For every CT of the demo: tiles with and without air, the time of network and everything around it (medians of runs that
take turns), and Dice with the labels both ways. B, C and D were trained on, so that their Dice says nothing about the
model; what matters is the difference.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path

from measuring import Json, environment, spread
from ucseg_runtime.backends import Backend, open_backend
from ucseg_runtime.backends.timed import TimedBackend
from ucseg_runtime.config import InferenceOptions
from ucseg_runtime.manifest import ModelSpec
from ucseg_runtime.model_folder import default_model_folder, load_model
from ucseg_runtime.pipeline import segment_volume
from ucseg_runtime.segmentation import Segmentation
from ucseg_runtime.volume import Volume
from ucseg_training.data.case import Case, bit
from ucseg_training.data.patient_a import patient_a
from ucseg_training.demo_model import PREPROCESSING
from ucseg_training.demo_training import prepared_cases
from ucseg_training.metrics import score_masks

WAYS = {"whole volume": InferenceOptions(skip_air=False), "air skipped": InferenceOptions(skip_air=True)}


def row(case: Case, spec: ModelSpec, backend: Backend, n: int) -> Json:
    """One case, both ways in turn."""
    volume = Volume(case.voxels, case.geometry, spec.modality)
    seconds: dict[str, list[float]] = {name: [] for name in WAYS}
    found: dict[str, Json] = {}
    for _ in range(n):
        for name, options in WAYS.items():
            timed = TimedBackend(backend)
            started = time.perf_counter()
            result = segment_volume(volume, spec, timed, options)
            seconds[name].append(time.perf_counter() - started)
            found[name] = {"tiles": timed.tiles, "dice": _dice(result, case)}
    times = {name: {"seconds": spread(values)} for name, values in seconds.items()}
    return {"case": case.name, **{name: found[name] | times[name] for name in WAYS}}


def _dice(result: Segmentation, case: Case) -> dict[str, float]:
    """Of every class that the labels have, over the voxels where they are known."""
    scores = {}
    for item in result.classes:
        truth = case.label_map == item.label
        if truth.any():
            known = ((case.known & bit(item.label)) != 0) | truth
            mask = result.label_map == item.label
            scores[item.name] = round(score_masks(mask, truth, case.geometry.spacing_mm, known, surfaces=False).dice, 4)
    return scores


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, default=3, help="runs of every case")
    parser.add_argument("--cases", type=Path, help="folder of prepared cases, made when missing")
    chosen = parser.parse_args()
    model = load_model(default_model_folder())
    with tempfile.TemporaryDirectory() as folder:
        cases = [*prepared_cases(chosen.cases or Path(folder), PREPROCESSING), patient_a()]
    with open_backend(model, InferenceOptions()) as backend:
        rows = [row(case, model.manifest, backend, chosen.n) for case in cases]
    print(
        json.dumps(
            {"environment": environment(("ucseg", "openvino", "numpy")), "runs": chosen.n, "cases": rows}, indent=2
        )
    )


if __name__ == "__main__":
    main()
