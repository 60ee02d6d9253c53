"""One command that makes everything a model folder can have, and proves what runs here."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from tests.export.conftest import Exported
from tests.volume_phantom import STRAIGHT, centred_geometry
from ucseg_export.cli.app import app
from ucseg_export.export_model import write_model_folder
from ucseg_export.manifest_writer import build_manifest
from ucseg_runtime.backends import open_backend
from ucseg_runtime.config import InferenceOptions
from ucseg_runtime.model_folder import load_model
from ucseg_training.data.case import Case, save_case

pytest.importorskip("tensorrt_rtx_bindings", reason="the extra tensorrt-rtx is not installed")

SHAPE = (32, 32, 32)


def test_all_makes_integers_and_engines_and_proves_what_runs_here(softmax: Exported, tmp_path: Path) -> None:
    folder, cases, engines = tmp_path / "model", tmp_path / "cases", tmp_path / "engines"
    manifest = build_manifest(softmax.spec, softmax.graphs, (), {})
    write_model_folder(folder, manifest, softmax.graphs, overwrite=False)
    cases.mkdir()
    voxels = np.random.default_rng(0).normal(0, 300, SHAPE).astype(np.float32)
    nothing = np.zeros(SHAPE, dtype=np.uint8)
    save_case(Case("a", voxels, nothing, nothing, centred_geometry(SHAPE, (3.0, 3.0, 3.0), STRAIGHT)), cases / "a.npz")

    arguments = ["all", folder, "--cases", cases, "--prove-on", cases, "--compute-capability", "8.6", "--out", engines]
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])

    assert result.exit_code == 0, result.output
    model = load_model(folder)
    assert "merged_int8" in model.manifest.artifacts
    compared = {(proof.engine, proof.precision) for proof in model.proofs.engines}
    assert compared >= {("openvino", "f32"), ("openvino", "int8"), ("onnxruntime", "f32")}
    assert len(list(engines.glob(f"{model.digest[:16]}_*/*.plan"))) == 5
    with open_backend(model, InferenceOptions()) as backend:
        assert backend.info.engine.proven
