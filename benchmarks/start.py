"""From the start of a process to its first tile, with and without kept compiled models, as JSON.

    python benchmarks/start.py [--n 5] [--precision f32]

Every start is a process of its own with the demo model on OpenVINO; the kinds of start take turns. Times in s, medians
with minimum and maximum: what the interpreter needs before the first import is not in them.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path

from measuring import Json, answer, child_request, environment, run_child, spread

_WITHOUT, _FIRST, _NEXT = "without a cache", "first with a cache", "next with a cache"


def start(request: Json) -> Json:
    """Seconds of every step up to the results of one tile."""
    moments = [("", time.perf_counter())]

    def passed(step: str) -> None:
        moments.append((step, time.perf_counter()))

    import numpy as np

    from ucseg_runtime.backends import open_backend
    from ucseg_runtime.config import InferenceOptions
    from ucseg_runtime.model_folder import default_model_folder, load_model

    passed("import")
    model = load_model(default_model_folder())
    passed("load and verify the model")
    folder = Path(request["cache"]) if request["cache"] else None
    options = InferenceOptions("openvino", request["precision"], gate=False, cache_folder=folder)
    with open_backend(model, options) as backend:
        passed("load the engine and compile")
        backend.infer(np.zeros((1, 1, *model.manifest.tiling.tile_shape), dtype=np.float32))
        passed("first tile")
    steps = {step: then - before for (_, before), (step, then) in zip(moments, moments[1:], strict=False)}
    return {**steps, "to the first tile": sum(steps.values()) - steps["first tile"], "total": sum(steps.values())}


def main() -> None:
    """Run the benchmark, or one start in a child process."""
    if request := child_request():
        answer(start(request))
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, default=5, help="rounds")
    parser.add_argument("--precision", default="f32", choices=("f32", "bf16"))
    chosen = parser.parse_args()
    machine = environment(("ucseg", "openvino", "numpy"))
    found: dict[str, list[Json]] = {_WITHOUT: [], _FIRST: [], _NEXT: []}
    for _ in range(chosen.n):
        with tempfile.TemporaryDirectory() as folder:
            for kind, starts in found.items():
                cache = "" if kind == _WITHOUT else str(Path(folder) / "compiled")
                starts.append(run_child(__file__, {"cache": cache, "precision": chosen.precision}))
    seconds = {
        kind: {step: spread([start[step] for start in starts], 3) for step in starts[0]}
        for kind, starts in found.items()
    }
    print(json.dumps({"environment": machine, "rounds": chosen.n, "seconds": seconds}, indent=2))


if __name__ == "__main__":
    main()
