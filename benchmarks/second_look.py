"""What a second look costs and gains on patient A, as JSON.

    python benchmarks/second_look.py [--rule upg --rule mean] [--n 3]

Segments patient A with the demo model through the deployed flow (OpenVINO f32), with and without the second look, in
turns; for each fusion rule asked for the tiles of both passes, the median of the ratio of the times of a round, and the
Dice of every class against labels of the TotalSegmentator network.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import get_args

from measuring import Json, environment
from ucseg_export.fusion import FusionRequest, export_fusion
from ucseg_runtime.backends import open_backend
from ucseg_runtime.backends.timed import TimedBackend
from ucseg_runtime.config import InferenceOptions
from ucseg_runtime.fusion_names import FusionRule
from ucseg_runtime.model_folder import Model, default_model_folder, load_model
from ucseg_runtime.pipeline import segment_volume
from ucseg_runtime.segmentation import Segmentation
from ucseg_runtime.volume import Volume
from ucseg_training.data.case import Case
from ucseg_training.data.patient_a import patient_a
from ucseg_training.metrics import score_masks

ONCE = InferenceOptions(engine="openvino", precision="f32", gate=False)
TWICE = replace(ONCE, second_look=True)


def compared(model: Model, case: Case, n: int) -> Json:
    """Both ways in turns, after one run that does not count."""
    spec = model.manifest
    volume = Volume(case.voxels, case.geometry, spec.modality)
    found: dict[str, Json] = {"one look": {}, "two looks": {}}
    seconds: dict[str, list[float]] = {name: [] for name in found}
    with ExitStack() as stack:
        backend = stack.enter_context(open_backend(model, ONCE))
        segment_volume(volume, spec, backend, ONCE)
        for _ in range(n):
            for name, options in zip(found, (ONCE, TWICE), strict=True):
                timed = TimedBackend(backend)
                started = time.perf_counter()
                segmentation = segment_volume(volume, spec, timed, options)
                seconds[name].append(time.perf_counter() - started)
                found[name] = {"tiles": timed.tiles, "dice": dice(segmentation, case)}
    ratios = [twice / once for once, twice in zip(*seconds.values(), strict=True)]
    tiles = [part["tiles"] for part in found.values()]
    return {
        **found,
        "tile_ratio": round(tiles[1] / tiles[0], 3),
        "time_ratio": round(statistics.median(ratios), 3),
        "seconds": {name: round(statistics.median(values), 2) for name, values in seconds.items()},
    }


def dice(found: Segmentation, case: Case) -> dict[str, float]:
    """Of every class, and their mean."""
    of_class = {
        item.name: score_masks(
            found.label_map == item.label, case.label_map == item.label, case.geometry.spacing_mm, surfaces=False
        ).dice
        for item in found.classes
    }
    rounded = {name: round(value, 4) for name, value in of_class.items()}
    return {**rounded, "mean": round(statistics.mean(of_class.values()), 4)}


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rule", action="append", choices=get_args(FusionRule), help="may be repeated; upg by default")
    parser.add_argument("--n", type=int, default=3, help="runs of each way")
    chosen = parser.parse_args()
    machine = environment(("ucseg", "openvino", "numpy"))
    source, case, results = default_model_folder(), patient_a(), {}
    with tempfile.TemporaryDirectory() as folder:
        for rule in chosen.rule or ["upg"]:
            made = source if rule == "upg" else Path(folder) / rule
            if rule != "upg":
                export_fusion(FusionRequest(source, rule, made, tiles_per_set=1))
            results[rule] = compared(load_model(made), case, chosen.n)
    print(json.dumps({"environment": machine, "rules": results}, indent=2))


if __name__ == "__main__":
    main()
