"""Which way of writing the merged graph is best: exporter, form of the instance norm, head in one piece or in slabs.

    python benchmarks/exporters.py [--size slim] [--size full] [--n 5] [--checkpoint FILE [--cases FOLDER]]

Each graph is measured in a process of its own, one tile at a time, as the runtime runs it. Prints one JSON row per
graph and engine: nodes, size, seconds to export, largest difference of a probability or an uncertainty from torch in
float64 (on a random tile, and on tiles of --cases), milliseconds per tile (least of n runs), and memory that inferring
adds. "slim" is the demo model's size, "full" upstream's with tiles of 96 x 96 x 96, both with random weights;
--checkpoint measures a trained trio instead. Linux only; onnxslim must be installed besides the extra "export".
"""

from __future__ import annotations

import argparse
import copy
import json
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import onnx
import onnxslim
import torch
from torch import Tensor, nn

from ucseg_export.parity import reference_tensors
from ucseg_export.parity_tiles import case_tiles
from ucseg_export.rewrites import ScaledUpg, with_folded_norms, without_dead_biases, without_dropouts
from ucseg_export.stages import SubnetStage, UpgStage, inference_stages
from ucseg_export.to_onnx import Exporter, exported_stages
from ucseg_runtime.backends.cores import usable_cores
from ucseg_runtime.backends.graphs import GRAPHS, IMAGE
from ucseg_runtime.backends.onnx_runtime import OnnxRuntimeEngine
from ucseg_runtime.backends.openvino import OpenVinoEngine
from ucseg_runtime.backends.session import GraphFile, Session, SessionSettings
from ucseg_runtime.manifest import MERGED, ModelSpec
from ucseg_training.checkpoint import load_checkpoint
from ucseg_training.demo_model import TRIO
from ucseg_training.nets import DualNet, TrioConfig

Variant = Callable[[DualNet], bytes]
ENGINES = (("openvino", "f32"), ("openvino", "bf16"), ("onnxruntime", "f32"))
TILES_PER_CASE = 2
HEAD_SLABS = 8


class HeadInSlabs(ScaledUpg):
    """The UPG with its head run over slabs along the first axis, one after the other."""

    def forward(self, logits_a: Tensor, logits_b: Tensor) -> Tensor:
        """See `ScaledUpg.forward`."""
        whole = (self.upg.scale(logits_a, logits_b), logits_a, logits_b)
        slabs = zip(*(tensor.split(tensor.shape[2] // HEAD_SLABS, dim=2) for tensor in whole), strict=True)
        return torch.cat([self.head(*slab) for slab in slabs], dim=2)


def merged(net: DualNet, changed: Mapping[str, nn.Module] | None = None, exporter: Exporter = "dynamo") -> bytes:
    """The merged graph with some stages replaced."""
    stages = {**inference_stages(net), **{key: stage.eval() for key, stage in (changed or {}).items()}}
    return exported_stages(stages, net.config, exporter)[MERGED]


def with_plain_norms(net: DualNet) -> bytes:
    """Instance norm as the one operator that ONNX has for it."""
    subnet_a = with_folded_norms(without_dead_biases(without_dropouts(net.subnet_a)))
    return merged(net, {"subnet_a": SubnetStage(subnet_a, net.config.dim)})


def slimmed(graph: bytes) -> bytes:
    """The graph after onnxslim."""
    content: bytes = onnxslim.slim(onnx.load_from_string(graph)).SerializeToString()
    return content


VARIANTS: Mapping[str, Variant] = {
    "as shipped (torch.export, opset 20)": merged,
    "as shipped, then onnxslim": lambda net: slimmed(merged(net)),
    "tracing, opset 17": lambda net: merged(net, exporter="legacy"),
    "tracing, opset 17, then onnxslim": lambda net: slimmed(merged(net, exporter="legacy")),
    "plain instance norm": with_plain_norms,
    "head in 8 slabs": lambda net: merged(net, {"upg": UpgStage(HeadInSlabs(net.upg), net.config.dim)}),
}


def random_trio(config: TrioConfig) -> DualNet:
    """A trio with random weights and with batch norms that are not the identity."""
    torch.manual_seed(0)
    net = DualNet(config)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d | nn.BatchNorm3d):
            nn.init.uniform_(module.running_mean, -0.5, 0.5)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    return net.eval()


def measure(
    graph: bytes, engine: str, precision: str, tensors: Mapping[str, np.ndarray], runs: int
) -> dict[str, object]:
    """Time, memory and differences of one graph on one engine, measured in this process."""
    package = OpenVinoEngine() if engine == "openvino" else OnnxRuntimeEngine()
    session = package.open_session(GraphFile("merged", graph), SessionSettings(precision, usable_cores()))  # type: ignore[arg-type]  # one of ENGINES
    before = peak_memory_mb(reset=True)
    seconds = []
    for _ in range(runs):
        started = time.perf_counter()
        session.run({IMAGE: tensors[f"random {IMAGE}"]})
        seconds.append(time.perf_counter() - started)
    memory = peak_memory_mb() - before
    kinds = [kind for kind in ("random", "real") if f"{kind} {IMAGE}" in tensors]
    differences = {f"difference, {kind}": float(f"{difference(session, tensors, kind):.1e}") for kind in kinds}
    return {
        "engine": f"{engine} {precision}",
        "ms": round(min(seconds) * 1e3),
        "mb_added": round(memory),
        **differences,
    }


def difference(session: Session, tensors: Mapping[str, np.ndarray], kind: str) -> float:
    """Largest over all tiles of a kind and all outputs."""
    largest = []
    for index in range(len(tensors[f"{kind} {IMAGE}"])):
        tile = slice(index, index + 1)
        results = session.run({IMAGE: tensors[f"{kind} {IMAGE}"][tile]})
        largest += [np.abs(results[name] - tensors[f"{kind} {name}"][tile]).max() for name in GRAPHS[MERGED].outputs]
    return float(max(largest))


def peak_memory_mb(*, reset: bool = False) -> float:
    """Largest resident memory since the last reset."""
    if reset:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(re.findall(r"VmHWM:\s+(\d+)", status)[0]) / 1024


def compare(size: str, net: DualNet, images: Mapping[str, np.ndarray], runs: int) -> None:
    """Export every variant, measure it in child processes, and print the rows."""
    exact = copy.deepcopy(net).double()
    tensors = {
        f"{kind} {name}": value
        for kind, image in images.items()
        for name, value in reference_tensors(exact, image).items()
    }
    with tempfile.TemporaryDirectory() as folder:
        tiles, file = Path(folder) / "tiles.npz", Path(folder) / "graph.onnx"
        np.savez(tiles, **tensors)  # type: ignore[arg-type]  # its stub takes the keywords for options
        for variant, export in VARIANTS.items():
            started = time.perf_counter()
            graph = export(net)
            row: dict[str, object] = {"size": size, "variant": variant}
            row["export_s"] = round(time.perf_counter() - started, 1)
            row |= {"nodes": len(onnx.load_from_string(graph).graph.node), "mb": round(len(graph) / 1e6, 2)}
            file.write_bytes(graph)
            for engine, precision in ENGINES:
                command = [sys.executable, __file__, "--child", engine, precision, str(file), str(tiles), str(runs)]
                found = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
                print(json.dumps(row | json.loads(found)), flush=True)


def random_tile(config: TrioConfig) -> np.ndarray:
    """One tile of normal noise, as the graphs take it."""
    return np.random.default_rng(0).standard_normal((1, config.in_channels, *config.tile_shape), dtype=np.float32)


def main() -> None:
    """Run the benchmark, or one measurement of it in a child process."""
    if sys.argv[1:2] == ["--child"]:
        engine, precision, file, tiles, runs = sys.argv[2:]
        with np.load(tiles) as stored:
            tensors = {name: stored[name] for name in stored.files}
        print(json.dumps(measure(Path(file).read_bytes(), engine, precision, tensors, int(runs))))
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", action="append", choices=("slim", "full"), help="may be repeated; both if not given")
    parser.add_argument("--n", type=int, default=5, help="runs per graph and engine")
    parser.add_argument("--checkpoint", type=Path, help="trained trio instead of random weights")
    parser.add_argument("--cases", type=Path, help="folder of training cases; needs --checkpoint")
    chosen = parser.parse_args()
    if chosen.checkpoint:
        loaded = load_checkpoint(chosen.checkpoint)
        images = {"random": random_tile(loaded.net.config)}
        if chosen.cases:
            spec = ModelSpec.model_validate(loaded.model_spec)
            images["real"] = case_tiles(spec, chosen.cases, TILES_PER_CASE).tiles
        compare("checkpoint", loaded.net, images, chosen.n)
        return
    configs = {"slim": TRIO, "full": TrioConfig.upstream_3d()}
    for size in chosen.size or configs:
        compare(size, random_trio(configs[size]), {"random": random_tile(configs[size])}, chosen.n)


if __name__ == "__main__":
    main()
