"""The packaged demo model and the checkpoint beside it belong together."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from ucseg_export.export_model import ExportRequest, export_model
from ucseg_runtime.manifest import CHECKPOINT_SHA256
from ucseg_runtime.model_folder import default_model_folder, load_model

CHECKPOINT = Path(__file__).resolve().parents[2] / "training" / "torso-ct-demo-2.0.0.safetensors"


def test_the_manifest_names_the_checkpoint_that_is_shipped() -> None:
    model = load_model(default_model_folder())
    assert model.manifest.provenance[CHECKPOINT_SHA256] == hashlib.sha256(CHECKPOINT.read_bytes()).hexdigest()


@pytest.mark.long
def test_exporting_the_checkpoint_gives_the_very_files_that_are_shipped(tmp_path: Path) -> None:
    export_model(ExportRequest(CHECKPOINT, tmp_path / "model"))
    exported, shipped = load_model(tmp_path / "model"), load_model(default_model_folder())
    assert exported.manifest.artifacts == shipped.manifest.artifacts
