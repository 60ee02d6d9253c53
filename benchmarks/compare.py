"""ucseg end to end against what a user would write today, on the same weights, tiles and overlap, as JSON.

    python benchmarks/compare.py [--size slim] [--n 5] [--precision f32 --precision bf16] [--with compile]

Contenders: ucseg on every engine and precision asked for, with the same tiles as the others (all of the volume) and,
as ``own plan``, with those that it takes by itself (air around the patient skipped where that saves tiles); MONAI's
sliding window around torch eager, and with ``--with compile`` around torch.compile; nnU-Net's predictor driving the
same networks, where nnunetv2 is installed; and upstream's window protocol (strides 18, 18, 4) on one crop, scaled by
the number of windows. Every run is a process of its own; runs take turns, so that what else the machine does hits all
alike. ``ratios`` are medians divided by the median of the first ucseg row; ``dice`` compares the masks of every
contender, label by label, with those of MONAI around torch eager and of nnU-Net's predictor. Where tiles do not fit a
volume exactly, ucseg and nnU-Net spread them evenly and MONAI moves the last one back; the crop of ``full`` has one
plan for all. nnU-Net adds up in half precision, which shows in masks of random weights.

Besides a SEG, ucseg writes uncertainty, measurements and a picture, and checks all of it; the others write a SEG.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from measuring import ChildFailedError, Json, answer, child_request, environment, peak_memory_mb, run_child, spread

BY_HAND = "monai torch eager"
COMPILED = "monai torch.compile"
NNUNET = "nnunet predictor"
UPSTREAM = "upstream windows 18/18/4"

_PACKAGES = ("ucseg", "openvino", "onnxruntime", "torch", "monai", "nnunetv2", "SimpleITK", "highdicom", "numpy")
_SAME_TILES, _OWN_PLAN = "same tiles", "own plan"
_START_UP = ("import", "load model")
_SIGMA_SCALE = 0.125

_Window = Callable[[Any], Any]
"""`by_hand.SlidingWindow`; the package of its arrays is not imported here, since start-up is measured."""


def run_ucseg(request: Json, folder: Path) -> Json:
    """One run of the deployed way. The labels are taken from a second reading of its SEG, outside the time."""
    started = time.perf_counter()
    from ucseg_runtime.config import InferenceOptions, OutputOptions
    from ucseg_runtime.model_folder import load_model
    from ucseg_runtime.series_pipeline import segment_series

    imported = time.perf_counter() - started
    # What is timed need not have passed the accuracy gate; how the masks agree stands beside the times.
    options = InferenceOptions(
        engine=request["engine"], precision=request["precision"], gate=False, skip_air=request["plan"] == _OWN_PLAN
    )
    model = load_model(Path(request["model"]))
    result = segment_series(Path(request["study"]), folder / "out", model, options, OutputOptions())
    seconds = {"import": imported, **result.seconds, "total": time.perf_counter() - started}
    found = {"seconds": seconds, "peak_memory_mb": peak_memory_mb(), "tiles": result.tiles}
    found["engine"] = f"{result.engine.name} {result.engine.version} {result.engine.precision}"
    _save_labels(_labels_of_seg(folder / "out" / "segmentation.dcm", Path(request["study"])), request)
    return found


def run_by_hand(request: Json, folder: Path) -> Json:
    """One run of a contender around torch; see `by_hand`."""
    started = time.perf_counter()
    import torch

    import by_hand
    from ucseg_runtime.backends.cores import usable_cores
    from ucseg_runtime.manifest import ModelSpec
    from ucseg_training.checkpoint import load_checkpoint

    watch = by_hand.Stopwatch()
    watch.seconds["import"] = time.perf_counter() - started
    torch.set_num_threads(usable_cores())
    with torch.inference_mode():
        with watch.stage("load model"):
            loaded = load_checkpoint(Path(request["checkpoint"]))
            spec = ModelSpec.model_validate(loaded.model_spec)
            window, windows = _WINDOWS[request["name"]](by_hand.ProbabilityNet(loaded.net).eval(), spec)
        with watch.stage("read"):
            image, names = by_hand.read_series(Path(request["study"]))
        with watch.stage("before network"):
            voxels = by_hand.to_network(image, spec)
        with watch.stage("network"):
            probabilities = window(voxels)
        with watch.stage("after network"):
            labels = by_hand.to_labels(probabilities, image, spec)
        with watch.stage("write"):
            by_hand.write_seg(labels, names, spec, folder / "seg.dcm")
    watch.seconds["total"] = time.perf_counter() - started
    found = {"seconds": watch.seconds, "peak_memory_mb": peak_memory_mb(), "tiles": len(windows)}
    _save_labels(labels, request)
    return found


def run_upstream(request: Json, folder: Path) -> Json:
    """Upstream's protocol on a crop of two windows along every axis; the rest of the way is that of `run_by_hand`."""
    import torch

    import by_hand
    from ucseg_runtime.backends.cores import usable_cores
    from ucseg_runtime.manifest import ModelSpec
    from ucseg_training.checkpoint import load_checkpoint
    from ucseg_training.paper_protocol import STRIDES, slide, window_starts

    torch.set_num_threads(usable_cores())
    with torch.inference_mode():
        loaded = load_checkpoint(Path(request["checkpoint"]))
        spec = ModelSpec.model_validate(loaded.model_spec)
        net = by_hand.ProbabilityNet(loaded.net).eval()
        image, _ = by_hand.read_series(Path(request["study"]))
        voxels = by_hand.to_network(image, spec)[0].numpy()
        sides = [max(side, tile) for side, tile in zip(voxels.shape[1:], spec.tiling.tile_shape, strict=True)]
        windows = 1
        for side, tile, stride in zip(sides, spec.tiling.tile_shape, STRIDES, strict=True):
            windows *= len(window_starts(side, tile, stride))
        crop = voxels[(slice(None), *(slice(t + s) for t, s in zip(spec.tiling.tile_shape, STRIDES, strict=True)))]
        seen = 0

        def predict(tiles: Any) -> Any:  # noqa: ANN401  # arrays of a package that is imported here
            nonlocal seen
            seen += 1
            return net(torch.as_tensor(tiles)).numpy()

        predict(torch.zeros(1, 1, *spec.tiling.tile_shape))
        seen, started = 0, time.perf_counter()
        slide(crop, predict, spec.tiling.tile_shape)
        measured = time.perf_counter() - started
    return {
        "seconds": {"network": measured / seen * windows},
        "measured_windows": seen,
        "tiles": windows,
        "scaled": f"{seen} windows of one crop took {measured:.2f} s; scaled to {windows} windows, not run",
        "peak_memory_mb": peak_memory_mb(),
    }


# Any: a network and a description of packages that a contender imports for itself.
def _monai(net: Any, spec: Any, compiled: bool) -> tuple[_Window, list[int]]:
    import torch
    from monai.inferers.utils import sliding_window_inference

    predictor = torch.compile(net) if compiled else net
    shape = spec.tiling.tile_shape
    seen: list[int] = []

    def counted(tiles: torch.Tensor) -> torch.Tensor:
        seen.append(len(tiles))
        found: torch.Tensor = predictor(tiles)
        return found

    if compiled:  # compiling is part of getting ready
        predictor(torch.zeros(1, 1, *shape))

    def window(voxels: torch.Tensor) -> torch.Tensor:
        found = sliding_window_inference(
            voxels,
            shape,
            1,
            counted,
            overlap=spec.tiling.overlap,
            mode="gaussian",
            sigma_scale=_SIGMA_SCALE,
            cval=float(voxels.min()),
        )
        return torch.as_tensor(found)

    return window, seen


def _nnunet(net: Any, spec: Any) -> tuple[_Window, list[int]]:
    """Its predictor around our module, with stand-ins for the plans and labels that it would read from a training."""
    from types import SimpleNamespace

    import torch
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

    seen: list[int] = []
    net.register_forward_pre_hook(lambda module, tiles: seen.append(len(tiles[0])))
    predictor = nnUNetPredictor(
        tile_step_size=1.0 - spec.tiling.overlap,
        use_mirroring=False,
        perform_everything_on_device=False,
        device=torch.device("cpu"),
        allow_tqdm=False,
    )
    predictor.network = net
    predictor.configuration_manager = SimpleNamespace(patch_size=spec.tiling.tile_shape)
    predictor.label_manager = SimpleNamespace(num_segmentation_heads=spec.probability_channels)

    def window(voxels: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = predictor.predict_sliding_window_return_logits(voxels[0])
        return found[None].float()

    return window, seen


_WINDOWS: dict[str, Callable[..., tuple[_Window, list[int]]]] = {
    BY_HAND: lambda net, spec: _monai(net, spec, compiled=False),
    COMPILED: lambda net, spec: _monai(net, spec, compiled=True),
    NNUNET: _nnunet,
}


def _save_labels(labels: object, request: Json) -> None:
    import numpy as np

    np.save(request["labels"], labels)  # type: ignore[arg-type]  # an array


def _labels_of_seg(seg: Path, study: Path) -> object:
    """Labels of a binary SEG on the slices of its study, in ascending order of z."""
    import numpy as np
    import pydicom

    images = [pydicom.dcmread(path, stop_before_pixels=True) for path in study.rglob("*.dcm")]
    order = sorted(images, key=lambda image: float(image.ImagePositionPatient[2]))
    index = {image.SOPInstanceUID: number for number, image in enumerate(order)}
    stored = pydicom.dcmread(seg)
    labels = np.zeros((len(order), stored.Rows, stored.Columns), dtype=np.uint8)
    frames = stored.pixel_array.reshape(-1, stored.Rows, stored.Columns)
    shared = stored.SharedFunctionalGroupsSequence[0]
    for frame, place in zip(frames, stored.PerFrameFunctionalGroupsSequence, strict=True):
        source = place.DerivationImageSequence[0].SourceImageSequence[0].ReferencedSOPInstanceUID
        # Where there is one segment, all frames share its number.
        segment = place if "SegmentIdentificationSequence" in place else shared
        number = segment.SegmentIdentificationSequence[0].ReferencedSegmentNumber
        labels[index[source]][frame > 0] = number
    return labels


def dice_per_label(found: Path, reference: Path) -> dict[str, float | None]:
    """Dice of every label of the reference; None where neither has it."""
    import numpy as np

    a, b = np.load(found), np.load(reference)
    result: dict[str, float | None] = {}
    for label in range(1, max(int(a.max()), int(b.max())) + 1):
        total = int((a == label).sum() + (b == label).sum())
        result[str(label)] = round(2.0 * int(((a == label) & (b == label)).sum()) / total, 5) if total else None
    return result


def foreground_voxels(labels: Path) -> int:
    """Voxels that are not background: agreement on empty masks would mean nothing."""
    import numpy as np

    return int(np.count_nonzero(np.load(labels)))


def summarise(rows: Sequence[Json], n: int, labels: Path) -> list[Json]:
    """Medians, ratios and agreement of every contender that ran."""
    summary = []
    for row in rows:
        if not row["runs"]:
            summary.append({"contender": row["name"], "skipped": row["skipped"]})
            continue
        stages = row["runs"][0]["seconds"]
        figures = {name: [run["seconds"][name] for run in row["runs"]] for name in stages}
        if "total" in stages:
            figures["without start-up"] = [
                run["seconds"]["total"] - sum(run["seconds"][name] for name in _START_UP) for run in row["runs"]
            ]
        entry: Json = {"contender": row["name"], "runs": n, "tiles": row["runs"][0]["tiles"]}
        entry |= {key: row["runs"][0][key] for key in ("engine", "scaled") if key in row["runs"][0]}
        entry["seconds"] = {name: spread(values) for name, values in figures.items()}
        entry["peak_memory_mb"] = spread([run["peak_memory_mb"] for run in row["runs"]], 0)
        row["medians"] = {name: value["median"] for name, value in entry["seconds"].items()}
        base = rows[0].get("medians", {})  # of ucseg; empty where it failed
        entry["ratios"] = {
            name: round(row["medians"][name] / base[name], 2)
            for name in ("total", "network", "without start-up")
            if name in row["medians"] and name in base
        }
        summary.append(entry | _agreement(row["name"], labels))
    return summary


def _agreement(name: str, labels: Path) -> Json:
    found = labels / f"{name}.npy"
    if not found.is_file():
        return {"dice": "no masks: only one crop was run"}
    references = [other for other in (BY_HAND, NNUNET) if (labels / f"{other}.npy").is_file()]
    return {
        "voxels": foreground_voxels(found),
        "dice": {other: dice_per_label(found, labels / f"{other}.npy") for other in references},
    }


def contenders(engines: Sequence[str], precisions: Sequence[str], compiled: bool) -> list[Json]:
    """One row per contender, with the reason where it cannot run."""
    ucseg = [
        {"name": f"ucseg {engine} {precision}, {plan}", "engine": engine, "precision": precision, "plan": plan}
        for plan in (_SAME_TILES, _OWN_PLAN)
        for engine in engines
        for precision in precisions
    ]
    names = [BY_HAND, *([COMPILED] if compiled else []), NNUNET, UPSTREAM]
    rows: list[Json] = [*ucseg, *({"name": name} for name in names)]
    missing = {NNUNET: "nnunetv2 is not installed"} if importlib.util.find_spec("nnunetv2") is None else {}
    return [row | {"runs": [], "skipped": missing.get(row["name"], "")} for row in rows]


def take_turns(rows: list[Json], subject: Json, n: int, labels: Path) -> None:
    """Run every contender once per round; one that fails is reported and left out of later rounds."""
    for _ in range(n):
        for row in rows:
            if row["skipped"]:
                continue
            own = {key: value for key, value in row.items() if key in ("name", "engine", "precision", "plan")}
            request = {**own, **subject, "labels": str(labels / f"{row['name']}.npy")}
            try:
                row["runs"].append(run_child(__file__, request))
            except ChildFailedError as error:
                row |= {"runs": [], "skipped": str(error)}


def run_contender(request: Json) -> Json:
    """One run in this process."""
    with tempfile.TemporaryDirectory() as folder:
        if "engine" in request:
            return run_ucseg(request, Path(folder))
        if request["name"] == UPSTREAM:
            return run_upstream(request, Path(folder))
        return run_by_hand(request, Path(folder))


def main() -> None:
    """Run the benchmark, or one run of one contender in a child process."""
    if request := child_request():
        answer(run_contender(request))
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="slim", choices=("slim", "full"))
    parser.add_argument("--n", type=int, default=5, help="runs of every contender")
    parser.add_argument("--engine", action="append", help="of ucseg; may be repeated; openvino if not given")
    parser.add_argument("--precision", action="append", help="of ucseg; may be repeated; f32 and bf16 if not given")
    parser.add_argument("--with", action="append", dest="extra", choices=("compile",), default=[])
    parser.add_argument("--cases", type=Path, help="to calibrate int8 on: prepared cases or DICOM series")
    parser.add_argument("--smallest", action="store_true", help="full size on a study of one tile, to try it out")
    chosen = parser.parse_args()
    if "int8" in (chosen.precision or []) and chosen.cases is None:
        parser.error("--precision int8 needs --cases to calibrate on")
    from subjects import write_subject

    machine = environment(_PACKAGES)
    rows = contenders(chosen.engine or ["openvino"], chosen.precision or ["f32", "bf16"], "compile" in chosen.extra)
    with tempfile.TemporaryDirectory() as folder:
        subject = write_subject(chosen.size, Path(folder), smallest=chosen.smallest, calibrate_on=chosen.cases)
        take_turns(rows, {key: str(path) for key, path in vars(subject).items()}, chosen.n, Path(folder))
        found = summarise(rows, chosen.n, Path(folder))
    print(json.dumps({"environment": machine, "size": chosen.size, "contenders": found}, indent=2))


if __name__ == "__main__":
    main()
