"""The graph with 8-bit integers: where it computes in them, where not, and what becomes of the model folder."""

from __future__ import annotations

import logging
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import pytest
from typer.testing import CliRunner, Result

from tests.export.conftest import Exported, ExportedByName
from tests.volume_phantom import STRAIGHT, centred_geometry
from ucseg_export.cli.app import app
from ucseg_export.export_model import write_model_folder
from ucseg_export.manifest_writer import build_manifest
from ucseg_export.quantize import quantised
from ucseg_runtime.backends import open_backend
from ucseg_runtime.config import InferenceOptions
from ucseg_runtime.errors import AccuracyGateError, BackendUnavailableError
from ucseg_runtime.model_folder import Model, load_model
from ucseg_training.data.case import Case, save_case

SHAPE = (40, 40, 40)


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cases")
    voxels = np.random.default_rng(0).normal(0, 300, SHAPE).astype(np.float32)
    nothing = np.zeros(SHAPE, dtype=np.uint8)
    save_case(Case("a", voxels, nothing, nothing, centred_geometry(SHAPE, (3.0, 3.0, 3.0), STRAIGHT)), folder / "a.npz")
    return folder


def write_folder(exported: Exported, parent: Path) -> Path:
    manifest = build_manifest(exported.spec, exported.graphs, (), {})
    write_model_folder(parent / "model", manifest, exported.graphs, overwrite=False)
    return parent / "model"


@pytest.fixture
def folder(softmax: Exported, tmp_path: Path) -> Path:
    return write_folder(softmax, tmp_path)


def add_int8(folder: Path, cases: Path) -> Result:
    return CliRunner().invoke(app, ["int8", str(folder), "--cases", str(cases), "--tiles-per-case", "4"])


@dataclass(frozen=True)
class Quantised:
    """A model folder to which the command added integers, while others had put up a handler.

    Attributes:
        before: The model as it was.
        after: The model as it is.
        finished: What the command said.
        handler: Of the quantiser's logger, put up with the level DEBUG.
    """

    before: Model
    after: Model
    finished: Result
    handler: logging.Handler


@pytest.fixture(scope="module")
def by_command(exported_by_name: ExportedByName, cases: Path, tmp_path_factory: pytest.TempPathFactory) -> Quantised:
    folder = write_folder(exported_by_name("softmax"), tmp_path_factory.mktemp("quantised"))
    before = load_model(folder)
    handler = logging.NullHandler(logging.DEBUG)
    logger = logging.getLogger("nncf")
    logger.addHandler(handler)
    try:
        finished = add_int8(folder, cases)
    finally:
        logger.removeHandler(handler)
    assert finished.exit_code == 0, finished.output
    return Quantised(before, load_model(folder), finished, handler)


def operators_fed_by_integers(graph: onnx.ModelProto) -> set[tuple[str, str]]:
    """Part and operator of every node that reads what was 8 bits."""
    widened = {name for node in graph.graph.node if node.op_type == "DequantizeLinear" for name in node.output}
    return {
        (node.name.partition("/")[0], node.op_type)
        for node in graph.graph.node
        if node.op_type != "QuantizeLinear" and set(node.input) & widened
    }


def test_convolutions_of_the_subnets_alone_are_quantised(by_command: Quantised) -> None:
    before, model = by_command.before, by_command.after
    found = operators_fed_by_integers(onnx.load_from_string(model.graph("merged_int8")))
    assert {("subnet_a", "Conv"), ("subnet_b", "Conv")} <= found
    assert {part for part, _ in found} == {"subnet_a", "subnet_b"}
    assert model.digest != before.digest
    assert model.graph("merged") == before.graph("merged")
    assert "4 tiles of 1 cases" in model.manifest.provenance["int8"]


def test_handlers_that_others_have_put_up_keep_their_level(by_command: Quantised) -> None:
    assert by_command.handler.level == logging.DEBUG
    assert "Statistics collection" not in by_command.finished.stdout, "progress bars are no data"


def test_integers_serve_only_when_proved_and_differ_from_float(by_command: Quantised) -> None:
    model = by_command.after
    with (
        pytest.raises(AccuracyGateError, match="never compared"),
        open_backend(model, InferenceOptions(engine="openvino", precision="int8")),
    ):
        pytest.fail("an engine without a proof was opened")
    tiles = np.random.default_rng(1).normal(0, 0.3, (1, 1, *model.manifest.tiling.tile_shape)).astype(np.float32)
    outputs = {}
    for precision in ("f32", "int8"):
        options = InferenceOptions(engine="openvino", precision=precision, gate=False)  # type: ignore[arg-type]
        with open_backend(model, options) as backend:
            assert backend.info.engine.precision == precision
            outputs[precision] = backend.infer(tiles).probabilities
    difference = np.abs(outputs["f32"] - outputs["int8"])
    assert difference.max() > 0.0
    assert difference.mean() < 0.05


def test_missing_quantiser_is_named_with_its_extra(softmax: Exported, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "nncf", None)
    with pytest.raises(BackendUnavailableError, match=r"pip install 'ucseg\[int8\]'"):
        quantised(softmax.graphs["merged"], [])


def test_folder_without_cases_is_refused_and_the_model_is_as_it_was(folder: Path, tmp_path: Path) -> None:
    before = (folder / "manifest.json").read_bytes()
    (tmp_path / "empty").mkdir()
    assert add_int8(folder, tmp_path / "empty").exit_code == 3
    assert (folder / "manifest.json").read_bytes() == before
