"""From checkpoint to model folder: complete and proved, or nothing; and the command around it."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner, Result

import ucseg_export.export_model as module
from tests.export.conftest import SIGMOID, Exported, description
from tests.export.test_parity import with_changed_weight
from ucseg_export.cli.app import app
from ucseg_export.export_model import ExportRequest, export_model, write_model_folder
from ucseg_export.manifest_writer import build_manifest
from ucseg_export.parity_tiles import random_tiles
from ucseg_runtime.backends.opening import open_backend
from ucseg_runtime.config import InferenceOptions
from ucseg_runtime.errors import ArtifactMismatchError, ManifestError, OutputError, OutputExistsError
from ucseg_runtime.model_folder import load_model


@pytest.fixture(autouse=True)
def ready_graphs(monkeypatch: pytest.MonkeyPatch, softmax: Exported) -> None:
    """The slow step gives what it gave the other tests; the same weights give the same bytes."""
    monkeypatch.setattr(module, "onnx_graphs", lambda net: dict(softmax.graphs))


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["onnx", *map(str, arguments)])


def test_folder_is_what_the_runtime_loads_and_computes_what_torch_computes(
    checkpoint: Path, softmax: Exported, tmp_path: Path
) -> None:
    out = tmp_path / "models" / "tiny"
    export_model(ExportRequest(checkpoint, out))
    model = load_model(out)
    tiles = random_tiles(softmax.spec, 2, seed=9).tiles
    with torch.no_grad():
        expected = torch.softmax(softmax.net(torch.tensor(tiles)).fused_logits, dim=1).numpy()

    for staged in (False, True):
        with open_backend(
            model, InferenceOptions(engine="openvino", precision="f32", gate=False), staged=staged
        ) as backend:
            np.testing.assert_allclose(backend.infer(tiles).probabilities, expected, rtol=0, atol=1e-4)

    assert sorted(item.name for item in out.iterdir()) == [
        "decode.onnx",
        "manifest.json",
        "merged.onnx",
        "parity.md",
        "subnet_a.onnx",
        "subnet_b.onnx",
        "upg.onnx",
    ]
    assert model.manifest.provenance["training_steps"] == "7"
    assert (out / "parity.md").read_text(encoding="utf-8").count("| merged |") == 4


def test_failed_proof_leaves_nothing_behind(
    checkpoint: Path, softmax: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = {**softmax.graphs, "upg": with_changed_weight(softmax.graphs["upg"], "upg.shift", 0.0)}
    monkeypatch.setattr(module, "onnx_graphs", lambda net: broken)

    result = run(checkpoint, "--out", tmp_path / "model")

    assert result.exit_code == 4
    assert "AccuracyGateError" in result.stderr
    assert "graph upg" in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_folder_whose_files_differ_from_the_manifest_is_not_published(softmax: Exported, tmp_path: Path) -> None:
    manifest = build_manifest(softmax.spec, softmax.graphs, (), {})
    other = {**softmax.graphs, "upg": softmax.graphs["decode"]}

    with pytest.raises(ArtifactMismatchError):
        write_model_folder(tmp_path / "model", manifest, other, overwrite=False)

    assert list(tmp_path.iterdir()) == []


def test_existing_folder_is_kept_unless_overwriting_is_asked_for(checkpoint: Path, tmp_path: Path) -> None:
    out = tmp_path / "model"
    assert run(checkpoint, "--out", out).exit_code == 0
    (out / "parity.md").write_text("old", encoding="utf-8")

    refused = run(checkpoint, "--out", out)
    assert refused.exit_code == 6
    assert "OutputExistsError" in refused.stderr
    assert (out / "parity.md").read_text(encoding="utf-8") == "old"

    assert run(checkpoint, "--out", out, "--overwrite").exit_code == 0
    assert (out / "parity.md").read_text(encoding="utf-8") != "old"
    assert list(tmp_path.iterdir()) == [out]


def test_overwriting_never_replaces_what_is_no_model_folder(checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "letters").mkdir()
    (tmp_path / "letters" / "letter.txt").touch()
    (tmp_path / "link").symlink_to(tmp_path / "letters")
    (tmp_path / "file").touch()

    for name in ("letters", "link", "file"):
        with pytest.raises(OutputExistsError, match="holds no manifest.json"):
            export_model(ExportRequest(checkpoint, tmp_path / name, overwrite=True))

    assert (tmp_path / "letters" / "letter.txt").exists()


def test_old_folder_is_back_when_the_new_one_cannot_be_put_in_place(
    softmax: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "model"
    manifest = build_manifest(softmax.spec, softmax.graphs, (), {})
    write_model_folder(out, manifest, softmax.graphs, overwrite=False)
    replace = os.replace

    def fail_for_the_new_one(source: Any, target: Any) -> None:
        if Path(source).name == "new":
            raise OSError(28, "No space left on device")
        replace(source, target)

    monkeypatch.setattr(os, "replace", fail_for_the_new_one)

    with pytest.raises(OutputError, match="No space left"):
        write_model_folder(out, manifest, softmax.graphs, overwrite=True)

    load_model(out)
    assert list(tmp_path.iterdir()) == [out]


def test_quality_and_description_can_be_replaced(checkpoint: Path, softmax: Exported, tmp_path: Path) -> None:
    quality, spec = tmp_path / "quality.jsonl", tmp_path / "spec.json"
    quality.write_text('{"data_set": "d", "segment": "block 1", "output": "fused", "dice": 0.75}\n', encoding="utf-8")
    spec.write_text(softmax.spec.model_copy(update={"name": "renamed"}).model_dump_json(), encoding="utf-8")

    manifest = export_model(ExportRequest(checkpoint, tmp_path / "model", spec=spec, quality=quality))

    assert manifest.name == "renamed"
    assert [row.dice for row in load_model(tmp_path / "model").manifest.quality] == [0.75]


def test_description_of_another_model_is_refused_before_anything_is_exported(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = tmp_path / "spec.json"
    spec.write_text(json.dumps(description(SIGMOID)), encoding="utf-8")
    monkeypatch.setattr(module, "onnx_graphs", None)

    with pytest.raises(ManifestError, match="does not fit the networks"):
        export_model(ExportRequest(checkpoint, tmp_path / "model", spec=spec))


def test_given_tiles_are_part_of_the_proof(checkpoint: Path, softmax: Exported, tmp_path: Path) -> None:
    np.save(tmp_path / "tiles.npy", random_tiles(softmax.spec, 1).tiles)

    manifest = export_model(ExportRequest(checkpoint, tmp_path / "model", tiles=tmp_path / "tiles.npy"))

    assert sum(row.inputs.startswith("given (1)") for row in manifest.parity) == 10


def test_command_prints_one_json_document(checkpoint: Path, tmp_path: Path) -> None:
    result = run(checkpoint, "--out", tmp_path / "model", "--tiles-per-set", "1", "--json")

    document = json.loads(result.stdout)
    assert result.exit_code == 0
    assert document["name"] == "tiny"
    assert 0.0 < document["largest_difference"] <= 1e-4
    assert set(document["artifacts"]) == {"subnet_a", "subnet_b", "upg", "decode", "merged"}


def test_command_prints_a_table(checkpoint: Path, tmp_path: Path) -> None:
    result = run(checkpoint, "--out", tmp_path / "model")

    assert result.exit_code == 0
    assert "tiny 1.0.0" in result.stdout
    assert "20 comparisons with torch passed" in result.stdout


@pytest.mark.parametrize("content", [b"", b"not safetensors", None])
def test_command_names_a_file_that_is_no_checkpoint_by_its_role(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "canary.safetensors"
    if content is not None:
        path.write_bytes(content)

    result = run(path, "--out", tmp_path / "model", "--json")

    assert result.exit_code == 4
    assert json.loads(result.stdout)["error"]["error"] == "ModelError"
    assert "canary" not in result.output
    assert "Traceback" not in result.output


def test_command_reports_tiles_that_do_not_fit_as_bad_input(checkpoint: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "tiles.npy", np.zeros((1, 2, 3), np.float32))

    result = run(checkpoint, "--out", tmp_path / "model", "--tiles", tmp_path / "tiles.npy")

    assert result.exit_code == 3
    assert "TileShapeError" in result.stderr


def test_command_without_a_place_for_the_folder_is_a_usage_error(checkpoint: Path) -> None:
    assert run(checkpoint).exit_code == 2
