"""Every way to run the merged network on a GPU against the least time that its operations and bytes need, as JSON.

    python benchmarks/gpu.py [--size slim] [--size full] [--batch 1] [--batch 4] [--n 20] [--limit-s 600]
    python benchmarks/gpu.py --dry-run

One call, unattended: every row is a process of its own, and a contender that is missing or fails gives a row with the
reason. Times are those of one batch with input and output already on the device, but for "ucseg TensorRT", the session
that serves: one tile after the other, copies from and to the host included. ``difference`` is the largest of a
probability from torch in float32 on the CPU. ``--dry-run`` takes the same paths on the CPU with a tiny trio and no
compiler; its times mean nothing.

A further engine is one more function in `_OPENERS` with a line in `contenders`: it gets the request, and returns a
function that runs the batch to the end and one that gives the result.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime
import torch

from by_hand import ProbabilityNet
from measuring import ChildFailedError, Json, answer, child_request, environment, run_child, seconds_of, spread
from operations import count
from subjects import CONFIGS, SIZES, description_of, random_trio
from ucseg_export.manifest_writer import model_spec
from ucseg_export.tensorrt_builder import BuildOptions, EnginePrecision, load_builder
from ucseg_export.to_onnx import onnx_graphs
from ucseg_export.to_tensorrt import build_engine
from ucseg_runtime.backends.engines import load_engine
from ucseg_runtime.backends.graphs import IMAGE, PROBABILITIES, UNCERTAINTY
from ucseg_runtime.backends.tensorrt_engine import TensorRtSession
from ucseg_runtime.errors import BackendUnavailableError
from ucseg_runtime.manifest import MERGED
from ucseg_training.checkpoint import load_checkpoint, save_checkpoint
from ucseg_training.nets import TrioConfig

Arithmetic = str
"""``f32``, ``tf32``, ``f16`` or ``bf16``."""

_BYTES: dict[Arithmetic, int] = {"f32": 4, "tf32": 4, "f16": 2, "bf16": 2}
_TINY = TrioConfig(
    dim=3,
    in_channels=1,
    num_classes=3,
    tile_shape=(32, 32, 32),
    unet_width=2,
    vnet_width=2,
    token_side=8,
    attention_width=8,
    heads=2,
    head_dim=4,
    mlp_hidden=8,
    head_widths=(2, 2, 2, 2, 2),
    activation="softmax",
)
_CPU_PROVIDER = "CPUExecutionProvider"


@dataclass(frozen=True)
class Peak:
    """What a device can do at most: operations per second by arithmetic, without sparsity; bytes per second."""

    operations: dict[Arithmetic, float]
    bandwidth: float


_HOPPER = {"f32": 66.9e12, "tf32": 494.7e12, "f16": 989.4e12, "bf16": 989.4e12}
PEAKS = {"NVIDIA H100 80GB HBM3": Peak(_HOPPER, 3.35e12), "NVIDIA H200": Peak(_HOPPER, 4.8e12)}
"""By the name that the driver gives. Source: NVIDIA, H100 and H200 Tensor Core GPU data sheets, SXM modules; their
figures for tensor cores are with sparsity and halved here."""

Opened = tuple[Callable[[], object], Callable[[], npt.NDArray[np.float32]]]
"""Runs the batch to the end; gives the probabilities of the last run."""


def contenders(device: str) -> list[Json]:
    """Every row that there could be on this machine, with the reason where it cannot run."""
    provider = "CUDAExecutionProvider" if device == "cuda" else _CPU_PROVIDER
    tensorrt = "TensorrtExecutionProvider"
    return [
        _row("torch eager", "torch", "f32"),
        _row("torch eager", "torch", "tf32", "" if device == "cuda" else "TF32 needs CUDA"),
        _row("torch AMP", "torch", "f16", "" if device == "cuda" else "float16 needs CUDA"),
        _row("torch AMP", "torch", "bf16"),
        _row("torch.compile", "torch", "f32", compiled=True),
        _row("torch.compile AMP", "torch", "bf16", compiled=True),
        _row("ONNX Runtime", "onnxruntime", "f32", _without(provider), provider=provider),
        _row("ONNX Runtime TensorRT", "onnxruntime", "f32", _without(tensorrt), provider=tensorrt),
        _row("ONNX Runtime TensorRT", "onnxruntime", "f16", _without(tensorrt), provider=tensorrt),
        *(_row("ucseg TensorRT", "tensorrt", arithmetic, _without_tensorrt()) for arithmetic in ("f32", "tf32", "f16")),
    ]


def _row(contender: str, opener: str, arithmetic: Arithmetic, skipped: str = "", **own: object) -> Json:
    return {"contender": contender, "opener": opener, "arithmetic": arithmetic, "skipped": skipped, **own}


def _without(provider: str) -> str:
    available = onnxruntime.get_available_providers()
    return "" if provider in available else f"onnxruntime has no {provider}; it has {', '.join(available)}"


def _without_tensorrt() -> str:
    try:
        load_engine("tensorrt")
    except BackendUnavailableError as error:
        return str(error)
    return ""


def open_torch(request: Json, image: npt.NDArray[np.float32]) -> Opened:
    """The trio itself, in eager mode or compiled, with or without autocast."""
    device, arithmetic = request["device"], request["arithmetic"]
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = arithmetic == "tf32"
    torch.backends.cudnn.benchmark = True
    net: Callable[[torch.Tensor], torch.Tensor] = _net(request).to(device)
    if request.get("compiled"):
        # Dry runs compile nothing, so that they need no compiler and little time.
        net = torch.compile(net, backend="eager" if request["dry_run"] else "inductor")
    tiles = torch.from_numpy(image).to(device)
    dtype = {"f16": torch.float16, "bf16": torch.bfloat16}.get(arithmetic)
    found: list[torch.Tensor] = []

    def run() -> None:
        autocast = torch.autocast(device, dtype) if dtype else contextlib.nullcontext()
        with torch.inference_mode(), autocast:
            found[:] = [net(tiles)]
        if device == "cuda":
            torch.cuda.synchronize()

    return run, lambda: found[0].float().cpu().numpy()


def open_onnxruntime(request: Json, image: npt.NDArray[np.float32]) -> Opened:
    """The merged graph on one execution provider, with input and output bound to the device."""
    device, provider = request["device"], request["provider"]
    settings = {"trt_fp16_enable": request["arithmetic"] == "f16"} if provider.startswith("Tensorrt") else {}
    if provider.startswith("CUDA"):
        settings = {"use_tf32": request["arithmetic"] == "tf32"}
    session = onnxruntime.InferenceSession(request["graph"], providers=[(provider, settings)])
    if session.get_providers()[0] != provider:
        raise RuntimeError(f"onnxruntime did not take {provider}; it took {session.get_providers()}")
    binding = session.io_binding()
    binding.bind_ortvalue_input(IMAGE, onnxruntime.OrtValue.ortvalue_from_numpy(image, device, 0))
    for name in (PROBABILITIES, UNCERTAINTY):
        binding.bind_output(name, device, 0)

    def run() -> None:
        session.run_with_iobinding(binding)
        binding.synchronize_outputs()

    return run, lambda: np.asarray(binding.copy_outputs_to_cpu()[0], dtype=np.float32)


def open_tensorrt(request: Json, image: npt.NDArray[np.float32]) -> Opened:
    """The merged graph as `ucseg segment --engine tensorrt` runs it."""
    precisions: dict[Arithmetic, EnginePrecision] = {"f32": "fp32", "tf32": "tf32", "f16": "fp16"}
    config, builder = load_checkpoint(Path(request["checkpoint"])).net.config, load_builder()
    options = BuildOptions(precisions[request["arithmetic"]], max_batch=1)
    graph, spec = Path(request["graph"]).read_bytes(), model_spec(description_of(config), config)
    session = TensorRtSession(build_engine(graph, MERGED, spec, options, builder).plan, builder.name)
    found: list[npt.NDArray[np.float32]] = []

    def run() -> None:
        found[:] = [session.run({IMAGE: tile[None]})[PROBABILITIES].copy() for tile in image]

    return run, lambda: np.concatenate(found)


_OPENERS: dict[str, Callable[[Json, npt.NDArray[np.float32]], Opened]] = {
    "torch": open_torch,
    "onnxruntime": open_onnxruntime,
    "tensorrt": open_tensorrt,
}


def measure(request: Json) -> Json:
    """One row in this process."""
    config = load_checkpoint(Path(request["checkpoint"])).net.config
    shape = (request["batch"], config.in_channels, *config.tile_shape)
    image = np.random.default_rng(0).standard_normal(shape, dtype=np.float32)
    run, result = _OPENERS[request["opener"]](request, image)
    seconds = seconds_of(run, request["n"])
    with torch.inference_mode():
        reference = _net(request)(torch.from_numpy(image[:1])).numpy()
    found: Json = {"ms_per_tile": spread([value * 1e3 / request["batch"] for value in seconds])}
    found["difference"] = float(f"{np.abs(result()[:1] - reference).max():.1e}")
    if request["device"] == "cuda" and request["opener"] == "torch":
        found["peak_memory_mb"] = round(torch.cuda.max_memory_allocated() / 2**20)
    return found


def _net(request: Json) -> Any:  # noqa: ANN401  # a module; torch.compile returns anything callable
    return ProbabilityNet(load_checkpoint(Path(request["checkpoint"])).net).eval()


def floor(graph: bytes, batch: int, device_name: str) -> Json:
    """Operations and bytes per tile, and the least milliseconds per tile for every arithmetic.

    The floor is there on machines without a GPU too, for the devices that are known.
    """
    counted = count(graph, batch)
    names = [device_name] if device_name in PEAKS else list(PEAKS)
    return {
        "gflop_per_tile": round(counted.operations / batch / 1e9, 3),
        "mb_per_tile": {str(width): round(counted.bytes_moved(width) / batch / 1e6, 2) for width in (4, 2)},
        "floor_ms_per_tile": {
            name: {
                arithmetic: round(counted.floor_s(peak, PEAKS[name].bandwidth, _BYTES[arithmetic]) / batch * 1e3, 5)
                for arithmetic, peak in PEAKS[name].operations.items()
            }
            for name in names
        },
    }


def rows_of(size: str, config: TrioConfig, folder: Path, common: Json, batches: Sequence[int], limit_s: float) -> Json:
    """All rows of one size, with its floors."""
    net = random_trio(config)
    checkpoint, file = folder / f"{size}.safetensors", folder / f"{size}.onnx"
    save_checkpoint(checkpoint, net.state_dict(), config, 0, {})
    graph = onnx_graphs(net)[MERGED]
    file.write_bytes(graph)
    found: Json = {"size": size, "batches": []}
    for batch in batches:
        limits = floor(graph, batch, common["device_name"])
        rows = []
        for contender in contenders(common["device"]):
            request = {**contender, **common, "batch": batch, "checkpoint": str(checkpoint), "graph": str(file)}
            row = {key: contender[key] for key in ("contender", "arithmetic")}
            rows.append(row | _measured(request, limits["floor_ms_per_tile"], limit_s))
        found["batches"].append({"batch": batch, **limits, "rows": rows})
    return found


def _measured(request: Json, floors: Json, limit_s: float) -> Json:
    if request["skipped"]:
        return {"skipped": request["skipped"]}
    try:
        found = run_child(__file__, request, limit_s)
    except ChildFailedError as error:
        return {"failed": str(error)}
    if request["device_name"] in floors:
        least = floors[request["device_name"]][request["arithmetic"]]
        found["share_of_floor"] = round(least / found["ms_per_tile"]["median"], 4)
    return found


def main() -> None:
    """Run the benchmark, or one row of it in a child process."""
    if request := child_request():
        answer(measure(request))
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", action="append", choices=SIZES, help="may be repeated; both if not given")
    parser.add_argument("--batch", action="append", type=int, help="tiles; may be repeated; 1 and 4 if not given")
    parser.add_argument("--n", type=int, default=20)
    parser.add_argument("--limit-s", type=float, default=600.0, help="longest time of one row in s")
    parser.add_argument("--dry-run", action="store_true", help="a tiny trio on the CPU")
    chosen = parser.parse_args()
    if not chosen.dry_run and not torch.cuda.is_available():
        parser.error("torch sees no CUDA device; --dry-run takes the same paths on the CPU")
    device = "cpu" if chosen.dry_run else "cuda"
    common: Json = {"device": device, "n": 1 if chosen.dry_run else chosen.n, "dry_run": chosen.dry_run}
    common["device_name"] = "CPU" if chosen.dry_run else torch.cuda.get_device_name()
    configs = {"tiny": _TINY} if chosen.dry_run else {size: CONFIGS[size] for size in chosen.size or SIZES}
    batches = [2] if chosen.dry_run else chosen.batch or [1, 4]
    with tempfile.TemporaryDirectory() as folder:
        sizes = [rows_of(*item, Path(folder), common, batches, chosen.limit_s) for item in configs.items()]
    machine = environment(("ucseg", "torch", "onnxruntime", "onnxruntime-gpu", "tensorrt", "onnx"))
    peaks = {name: dataclasses.asdict(peak) for name, peak in PEAKS.items()}
    print(json.dumps({"environment": machine, **common, "peaks": peaks, "sizes": sizes}, indent=2))


if __name__ == "__main__":
    main()
