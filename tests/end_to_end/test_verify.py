"""``ucseg verify``: each link of the chain holds, and is seen when it is broken."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pydicom
import pytest
from typer.testing import CliRunner

from tests.batch.exports import TINY, write_model
from tests.phantoms import write_ct_series
from tests.signing import write_key
from ucseg_export.cli.app import app as export_app
from ucseg_runtime.accuracy_gate import PROOFS_NAME
from ucseg_runtime.cli.app import app
from ucseg_runtime.manifest import CHECKPOINT_SHA256, MANIFEST_NAME
from ucseg_runtime.publish import RECORD, SEGMENTATION
from ucseg_runtime.signatures import TRUST_STORE_VARIABLE
from ucseg_runtime.site_secret import SITE_SECRET_VARIABLE

CHECKPOINT = b"weights"
SITE = "known to this site alone"


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with images, checkpoint, signed model, trust store and results that belong together."""
    root = tmp_path_factory.mktemp("chain")
    write_ct_series(root / "images", TINY)
    (root / "trio.safetensors").write_bytes(CHECKPOINT)
    name_checkpoint(write_model(root / "model"))
    key = write_key(root, "site")
    assert CliRunner().invoke(export_app, ["sign", str(root / "model"), "--key", str(key)]).exit_code == 0
    command = ["segment", str(root / "images"), "--model", str(root / "model"), "--out", str(root / "out")]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(SITE_SECRET_VARIABLE, SITE)
        result = CliRunner().invoke(app, [*command, "--rtstruct", "--preview"])
    assert result.exit_code == 0, result.output
    return root


def name_checkpoint(model: Path) -> None:
    """Let the manifest name the checkpoint, and the proofs the new manifest."""
    manifest = json.loads((model / MANIFEST_NAME).read_text())
    manifest["provenance"][CHECKPOINT_SHA256] = hashlib.sha256(CHECKPOINT).hexdigest()
    (model / MANIFEST_NAME).write_text(json.dumps(manifest))
    proofs = json.loads((model / PROOFS_NAME).read_text())
    proofs["model_digest"] = hashlib.sha256((model / MANIFEST_NAME).read_bytes()).hexdigest()
    (model / PROOFS_NAME).write_text(json.dumps(proofs))


@pytest.fixture
def root(chain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the chain that a test may break."""
    shutil.copytree(chain, tmp_path / "chain")
    monkeypatch.setenv(TRUST_STORE_VARIABLE, str(tmp_path / "chain" / "site"))
    monkeypatch.setenv(SITE_SECRET_VARIABLE, SITE)
    return tmp_path / "chain"


def verify(root: Path, *options: str) -> tuple[int, dict[str, str]]:
    """Exit code, and the state of every link."""
    evidence = {"--model": "model", "--images": "images", "--checkpoint": "trio.safetensors"}
    given = [str(item) for name, place in evidence.items() for item in (name, root / place)]
    result = CliRunner().invoke(app, ["verify", str(root / "out"), *given, "--json", *options])
    return result.exit_code, {link["name"]: link["state"] for link in json.loads(result.stdout)["links"]}


def test_a_whole_chain_is_proven(root: Path) -> None:
    code, links = verify(root)
    assert code == 0
    assert set(links.values()) == {"proven"}
    assert list(links) == ["record", "results", "objects", "images", "model", "signature", "engine", "training"]


def test_what_is_not_at_hand_is_not_called_proven(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(TRUST_STORE_VARIABLE)
    result = CliRunner().invoke(app, ["verify", str(root / "out"), "--json"])
    assert result.exit_code == 0
    states = {link["name"]: link["state"] for link in json.loads(result.stdout)["links"]}
    assert {name for name, state in states.items() if state == "proven"} == {"record", "results", "objects"}
    assert {states[name] for name in ("images", "model", "signature", "engine", "training")} == {"not checked"}


def change_record(root: Path, change: Callable[[dict[str, Any]], object]) -> None:
    record = json.loads((root / "out" / RECORD).read_text())
    change(record)
    (root / "out" / RECORD).write_text(json.dumps(record))


def byte_of_the_mask(root: Path) -> None:
    path = root / "out" / SEGMENTATION
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def lost_file(root: Path) -> None:
    (root / "out" / SEGMENTATION).unlink()


def foreign_file(root: Path) -> None:
    (root / "out" / "labels.nrrd").write_text("x")


def mask_of_another_run(root: Path) -> None:
    """Another object, and a record that names it: only its UID gives it away."""
    path = root / "out" / SEGMENTATION
    dataset = pydicom.dcmread(path)
    dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = "2.25.1"
    dataset.save_as(path)
    figures = {"sha256": hashlib.sha256(path.read_bytes()).hexdigest(), "size": path.stat().st_size}
    change_record(root, lambda record: record["outputs"].update({SEGMENTATION: figures}))


def pixels_and_the_record(root: Path) -> None:
    """Who can write the folder can make all digests fit, and keep the UID; only the seal gives it away."""
    path = root / "out" / SEGMENTATION
    byte_of_the_mask(root)
    figures = {"sha256": hashlib.sha256(path.read_bytes()).hexdigest(), "size": path.stat().st_size}
    change_record(root, lambda record: record["outputs"].update({SEGMENTATION: figures}))


def decision_in_the_record(root: Path) -> None:
    change_record(root, lambda record: record["decision"].update({"outcome": "accept", "score": 0.0}))


def source_of_another_patient(root: Path) -> None:
    change_record(root, lambda record: record["source_sop_uids"].append("1.2.3"))


def pixels_of_the_source(root: Path) -> None:
    path = next((root / "images").iterdir())
    dataset = pydicom.dcmread(path)
    dataset.PixelData = bytes(len(dataset.PixelData))
    dataset.save_as(path)


def another_model(root: Path) -> None:
    manifest = json.loads((root / "model" / MANIFEST_NAME).read_text())
    (root / "model" / MANIFEST_NAME).write_text(json.dumps({**manifest, "licence": "another"}))


def another_trust_store(root: Path) -> None:
    shutil.rmtree(root / "site")
    (root / "site.pem").unlink()
    write_key(root, "site")


def no_proof(root: Path) -> None:
    (root / "model" / PROOFS_NAME).unlink()


def gate_skipped(root: Path) -> None:
    change_record(root, lambda record: record["identity"]["engine"].update({"proven": False}))


def another_checkpoint(root: Path) -> None:
    (root / "trio.safetensors").write_bytes(b"other weights")


@pytest.mark.parametrize(
    ("damage", "broken"),
    [
        (byte_of_the_mask, {"results"}),
        (lost_file, {"results", "objects"}),
        (foreign_file, {"results"}),
        (mask_of_another_run, {"record", "objects"}),
        (pixels_and_the_record, {"record"}),
        (decision_in_the_record, {"record"}),
        (source_of_another_patient, {"record", "objects"}),
        (pixels_of_the_source, {"images"}),
        (another_model, {"model"}),
        (another_trust_store, {"signature"}),
        (no_proof, {"engine"}),
        (gate_skipped, {"record", "engine", "objects"}),
        (another_checkpoint, {"training"}),
    ],
)
def test_every_broken_link_is_named(root: Path, damage: Callable[[Path], None], broken: set[str]) -> None:
    damage(root)
    code, links = verify(root)
    assert code == 6
    assert {name for name, state in links.items() if state == "broken"} == broken


def test_objects_of_another_site_are_told(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SITE_SECRET_VARIABLE, "another site")
    code, links = verify(root)
    assert (code, links["objects"], links["record"]) == (6, "broken", "broken")


def test_a_seal_under_the_published_secret_proves_nothing(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(SITE_SECRET_VARIABLE)
    assert verify(root)[1]["record"] == "not checked"


@pytest.mark.parametrize(
    "content", [None, "", "[]", '{"schema_version": 2}', '{"schema_version": 1, "outputs": {}}', '{"input": null}']
)
def test_a_folder_without_a_record_proves_nothing(root: Path, content: str | None) -> None:
    record = root / "out" / RECORD
    record.unlink() if content is None else record.write_text(content)
    result = CliRunner().invoke(app, ["verify", str(root / "out")])
    assert result.exit_code == 3
    assert "UCSEG-E153" in result.output
