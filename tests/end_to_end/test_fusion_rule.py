"""A model with a weight-free fusion rule: on the command line, in the outputs, and from a real Triton server."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pydicom
import pytest
from typer.testing import CliRunner

from tests.model_phantom import ModelPhantom
from tests.phantoms import CtPhantom, write_ct_series
from tests.proof_phantom import proven
from tests.results import conformance
from tests.served_phantom import serve_model
from ucseg_export.fusion import FusionRequest, export_fusion
from ucseg_export.parity_tiles import random_tiles
from ucseg_runtime.backends.opening import open_backend
from ucseg_runtime.backends.triton_client import open_triton_backend
from ucseg_runtime.cli.app import app
from ucseg_runtime.config import InferenceOptions
from ucseg_runtime.fusion_names import WeightFreeRule
from ucseg_runtime.model_folder import load_model
from ucseg_runtime.server_options import TritonServer, server_address

PHANTOM = ModelPhantom(centres=(-8.0, 0.5, 25.0), tile_shape=(16, 32, 32), shift_b=0.2, sharpness=0.5)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return PHANTOM.write(tmp_path_factory.mktemp("model") / "phantom")


def with_rule(source: Path, folder: Path, rule: WeightFreeRule) -> Path:
    export_fusion(FusionRequest(source, rule, folder / rule, tiles_per_set=1))
    return proven(folder / rule)


def test_outputs_name_the_rule_and_what_its_uncertainty_is(source: Path, tmp_path: Path) -> None:
    write_ct_series(tmp_path / "study", CtPhantom(shape=(12, 40, 48)))
    model = with_rule(source, tmp_path, "dual")

    arguments = ["segment", tmp_path / "study", "--out", tmp_path / "out", "--model", model, "--json"]
    result = CliRunner().invoke(app, [str(item) for item in arguments])

    assert result.exit_code == 0, result.output
    identity = json.loads((tmp_path / "out" / "record.json").read_text())["identity"]
    assert (identity["fusion"], identity["model_version"]) == ("dual", "1.0.0+dual")
    mapped = pydicom.dcmread(tmp_path / "out" / "uncertainty.dcm")
    mapping = mapped.SharedFunctionalGroupsSequence[0].RealWorldValueMappingSequence[0]
    quantity = mapping.QuantityDefinitionSequence[0].ConceptCodeSequence[0]
    assert (quantity.CodeValue, quantity.CodeMeaning) == ("divergence", "Divergence of two networks")
    assert "Evidential" not in str(mapped)
    assert "Evidential" not in str(pydicom.dcmread(tmp_path / "out" / "report.dcm"))
    for name in ("uncertainty.dcm", "report.dcm", "segmentation.dcm"):
        assert not conformance(tmp_path / "out" / name).errors
    listed = CliRunner().invoke(app, ["models", "--model", str(model)])
    assert "1.0.0+dual" in listed.stdout
    assert "fusion dual" in listed.stdout


def test_triton_ensemble_gives_what_the_embedded_engine_gives(source: Path, tmp_path: Path) -> None:
    folder = with_rule(source, tmp_path, "dempster")
    options = InferenceOptions(engine="openvino", precision="f32")
    with serve_model(folder, tmp_path) as served:
        tiles = random_tiles(served.model.manifest, 3, seed=4).tiles
        server = TritonServer((server_address(served.url("grpc")),))
        with open_triton_backend(served.model, server, gate=True) as remote:
            found = remote.infer(tiles, with_logits=True)
    with open_backend(load_model(folder), options, staged=True) as embedded:
        expected = embedded.infer(tiles, with_logits=True)
    for name in ("probabilities", "uncertainty", "fused_logits", "logits_a", "logits_b"):
        np.testing.assert_allclose(getattr(found, name), getattr(expected, name), rtol=0, atol=1e-6)
