"""The examples of the serving guide, run as they stand against a real server."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.served_phantom import ServedPhantom
from ucseg_runtime.backends.triton_tensors import TritonModel, graph_model, logits_model, tiles_model, volume_model
from ucseg_runtime.manifest import MERGED

GUIDE = (Path(__file__).resolve().parents[2] / "docs" / "serving.md").read_text(encoding="utf-8")


def example(kind: str, marker: str) -> str:
    """The one block of a kind that holds a marker."""
    blocks = [block for block in re.findall(rf"```{kind}\n(.*?)```", GUIDE, re.DOTALL) if marker in block]
    assert len(blocks) == 1, marker
    return blocks[0]


def at_the_server(text: str, served: ServedPhantom) -> str:
    """With the ports of the test's server; the guide's own must be in the text."""
    changed = text.replace("127.0.0.1:8001", served.server.grpc_url.removeprefix("grpc://")).replace(
        "http://127.0.0.1:8000", served.server.http_url
    )
    assert changed != text
    return changed


def run(*command: str) -> str:
    finished = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert finished.returncode == 0, finished.stderr + finished.stdout
    return finished.stdout


def test_example_with_tritonclient(served_phantom: ServedPhantom) -> None:
    output = run(sys.executable, "-c", at_the_server(example("python", "tritonclient"), served_phantom))
    assert output.startswith("(4, 5, 6) 0 ")
    assert 0.0 < float(output.split()[-1]) <= 1.0


def test_example_with_requests(served_phantom: ServedPhantom) -> None:
    output = run(sys.executable, "-c", at_the_server(example("python", "requests"), served_phantom))
    lines = sorted(output.splitlines())
    assert lines[0] == "LABELS (4, 5, 6) 0"
    assert re.fullmatch(r"UNCERTAINTY \(4, 5, 6\) [1-9]\d*", lines[1])


def test_example_with_curl(served_phantom: ServedPhantom) -> None:
    answer = json.loads(run("sh", "-c", at_the_server(example("sh", "curl"), served_phantom)))
    tensors = {tensor["name"]: tensor for tensor in answer["outputs"]}
    assert tensors["LABELS"]["shape"] == [1, 2, 3]
    assert tensors["LABELS"]["data"] == [0] * 6
    assert all(0 < value <= 65535 for value in tensors["UNCERTAINTY"]["data"])


@pytest.mark.parametrize("name", ["ucseg_tiles", "ucseg_logits", "ucseg_merged", "ucseg_volume"])
def test_tensor_table_of_the_guide_is_that_of_the_models(served_phantom: ServedPhantom, name: str) -> None:
    spec = served_phantom.model.manifest
    models: dict[str, TritonModel] = {
        item.name: item for item in (tiles_model(spec), logits_model(spec), graph_model(MERGED, spec), volume_model())
    }
    types = {"FP32": "float32", "FP64": "float64", "INT16": "int16", "UINT8": "uint8", "UINT16": "uint16"}
    rows = [line for line in GUIDE.splitlines() if line.startswith("| `")]
    for tensor in (*models[name].inputs, *models[name].outputs):
        place = f"of `{name}`" if (name, tensor.name) == ("ucseg_volume", "UNCERTAINTY") else "| "
        fitting = [row for row in rows if f"`{tensor.name}`" in row.split("|")[1] and place in row]
        assert any(row.split("|")[2].strip() == types[tensor.data_type] for row in fitting), tensor
