"""How near the networks come to what the processor can do, stage by stage, as JSON and as a table.

    python benchmarks/limits.py [--size slim] [--size full] [--n 10] [--table FILE]

The limits are measured here and now: the best matrix product of OpenVINO and torch in each precision, and the memory
bandwidth of a triad, on all usable cores. Operations and bytes of every stage are counted from its graph
(`operations`). ``share_of_gemm`` is the rate of a stage over that of the matrix product; ``floor_ms`` its roofline
bound, the sum over its operators of the slower of arithmetic and memory; ``share_of_floor`` that bound over its time.
Weights are the demo model's for "slim", random for "full"; one tile at a time, as the runtime runs them.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from pathlib import Path

import numpy as np
import torch
from onnx import TensorProto, helper, numpy_helper

from measuring import Json, environment, seconds_of, spread
from operations import count
from subjects import CONFIGS, SIZES, write_subject
from ucseg_export.stages import tensor_shape
from ucseg_runtime.backends.cores import usable_cores
from ucseg_runtime.backends.graphs import GRAPHS
from ucseg_runtime.backends.openvino import OpenVinoEngine
from ucseg_runtime.backends.session import GraphFile, SessionSettings
from ucseg_runtime.manifest import Precision
from ucseg_runtime.model_folder import Model, load_model

_SIDE = 2048
_TRIAD_NUMBERS = 1 << 25
"""128 MB each in float32: more than caches hold."""
_BYTES: dict[Precision, int] = {"f32": 4, "bf16": 2}
_DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16}


def gemm_rates(engine: OpenVinoEngine, precision: Precision, n: int) -> dict[str, float]:
    """Operations per second of a square matrix product, the fastest of `n` runs, by what computed it."""
    dtype, threads = _DTYPES[precision], usable_cores()
    a, b, out = (torch.ones(_SIDE, _SIDE, dtype=dtype) for _ in range(3))
    session = engine.open_session(GraphFile("product", _product_graph()), SessionSettings(precision, threads))
    tensors = {"x": np.ones((1, _SIDE, _SIDE), dtype=np.float32)}
    seconds = {
        "torch": min(seconds_of(lambda: torch.mm(a, b, out=out), n)),
        "openvino": min(seconds_of(lambda: session.run(tensors), n)),
    }
    return {name: 2.0 * _SIDE**3 / value for name, value in seconds.items()}


def triad_rate(n: int) -> float:
    """Bytes per second of a = b + s c, the fastest of `n` runs; the read before a write is not counted."""
    a, b, c = (torch.ones(_TRIAD_NUMBERS) for _ in range(3))
    return 3.0 * 4.0 * _TRIAD_NUMBERS / min(seconds_of(lambda: torch.add(b, c, alpha=3.0, out=a), n))


def stage_rows(
    size: str, model: Model, engine: OpenVinoEngine, precision: Precision, limits: Json, n: int
) -> list[Json]:
    """One row per graph of a model."""
    rows = []
    random = np.random.default_rng(0)
    for key, graph in GRAPHS.items():
        content, counted = model.graph(key), count(model.graph(key))
        session = engine.open_session(GraphFile(key, content), SessionSettings(precision, usable_cores()))
        shapes = {name: (1, *tensor_shape(name, CONFIGS[size])) for name in graph.inputs}
        tensors = {name: random.standard_normal(shape, dtype=np.float32) for name, shape in shapes.items()}
        seconds = seconds_of(lambda session=session, tensors=tensors: session.run(tensors), n)  # type: ignore[misc]
        median, width = statistics.median(seconds), _BYTES[precision]
        floor = counted.floor_s(limits["gemm"][precision], limits["bandwidth"], width)
        rows.append(
            {
                "size": size,
                "precision": precision,
                "stage": key,
                "gflop": round(counted.operations / 1e9, 2),
                "mb": round(counted.bytes_moved(width) / 1e6, 1),
                "weights_mb": round(counted.weight_bytes(width) / 1e6, 2),
                "ms": spread([value * 1e3 for value in seconds], 2),
                "share_of_gemm": round(counted.operations / median / limits["gemm"][precision], 3),
                "floor_ms": round(floor * 1e3, 2),
                "share_of_floor": round(floor / median, 3),
            }
        )
    return rows


def table(rows: list[Json]) -> str:
    """The rows in Markdown."""
    lines = [
        "| size | precision | stage | GFLOP | MB | ms | of the gemm peak | floor, ms | of the floor |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        cells = [row["size"], row["precision"], row["stage"], row["gflop"], row["mb"], row["ms"]["median"]]
        cells += [f"{row['share_of_gemm']:.0%}", row["floor_ms"], f"{row['share_of_floor']:.0%}"]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines) + "\n"


def _product_graph() -> bytes:
    """X w with constant w, as weights are."""
    weights = numpy_helper.from_array(np.ones((_SIDE, _SIDE), dtype=np.float32), "w")
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", _SIDE, _SIDE]) for name in "xy")
    graph = helper.make_graph([helper.make_node("MatMul", ["x", "w"], ["y"])], "product", [x], [y], [weights])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return bytes(model.SerializeToString())


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", action="append", choices=SIZES, help="may be repeated; both if not given")
    parser.add_argument("--n", type=int, default=10)
    parser.add_argument("--table", type=Path, help="file for the table in Markdown")
    chosen = parser.parse_args()
    machine = environment(("ucseg", "openvino", "torch", "onnx", "numpy"))
    torch.set_num_threads(usable_cores())
    engine = OpenVinoEngine()
    precisions = [precision for precision in engine.precisions() if precision in _DTYPES]
    rates = {precision: gemm_rates(engine, precision, chosen.n) for precision in precisions}
    limits: Json = {
        "gemm": {precision: max(found.values()) for precision, found in rates.items()},
        "bandwidth": triad_rate(chosen.n),
    }
    rows: list[Json] = []
    for size in chosen.size or SIZES:
        with tempfile.TemporaryDirectory() as folder:
            model = load_model(write_subject(size, Path(folder)).model)
            for precision in precisions:
                rows += stage_rows(size, model, engine, precision, limits, chosen.n)
    gflops = {p: {name: round(rate / 1e9) for name, rate in found.items()} for p, found in rates.items()}
    measured = {"gemm_gflop_per_s": gflops, "triad_gb_per_s": round(limits["bandwidth"] / 1e9, 1)}
    if chosen.table:
        chosen.table.write_text(table(rows), encoding="utf-8")
    print(json.dumps({"environment": machine, "n": chosen.n, "limits": measured, "rows": rows}, indent=2))


if __name__ == "__main__":
    main()
