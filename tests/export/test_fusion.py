"""Model folders with weight-free fusion rules: from folders and checkpoints, proved, and run on every engine."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import get_args

import numpy as np
import onnx
import pytest
import torch
from torch import nn
from typer.testing import CliRunner, Result

import ucseg_export.fusion as module
from tests.export.conftest import PLANAR, description, trained_like
from tests.model_phantom import ModelPhantom
from ucseg_export.canonical import merged_model
from ucseg_export.cli.app import app
from ucseg_export.fusion import FusionRequest, export_fusion
from ucseg_export.fusion_stages import fusion_stages
from ucseg_export.parity_engines import TOLERANCE
from ucseg_export.parity_tiles import random_tiles
from ucseg_export.to_onnx import exported_models
from ucseg_runtime.backends.base import TileOutput
from ucseg_runtime.backends.opening import open_backend
from ucseg_runtime.config import EngineName, InferenceOptions
from ucseg_runtime.errors import AccuracyGateError, ModelError
from ucseg_runtime.fusion_names import WeightFreeRule
from ucseg_runtime.fusion_rules import fuse
from ucseg_runtime.manifest import ModelSpec
from ucseg_runtime.model_folder import Model, load_model
from ucseg_training.checkpoint import save_checkpoint
from ucseg_training.nets import TrioConfig

RULES: tuple[WeightFreeRule, ...] = get_args(WeightFreeRule)
ENGINES: tuple[EngineName, ...] = ("openvino", "onnxruntime")
PHANTOMS = {
    "3D softmax": ModelPhantom(shift_b=0.2, sharpness=6.0, tile_shape=(8, 12, 16)),
    "2D sigmoid": ModelPhantom(
        centres=(0.0, 1.0),
        activation="sigmoid",
        shift_b=0.2,
        sharpness=6.0,
        tile_shape=(1, 16, 16),
        channel_weights=(0.2, 0.3, 0.5),
        changes={"dim": 2, "channels": 3},
    ),
}


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["fusion", *map(str, arguments)])


def options(engine: EngineName) -> InferenceOptions:
    return InferenceOptions(engine=engine, precision="f32", gate=False)


_EXPORTED: dict[object, dict[str, onnx.ModelProto]] = {}


def remembered(stages: Mapping[str, nn.Module], sizes: TrioConfig | ModelSpec) -> dict[str, onnx.ModelProto]:
    """Each rule is exported once for all tests: the same stages give the same graphs, and torch takes seconds."""
    choices = tuple(repr(getattr(stage, "choice", stage)) for stage in stages.values())
    key = (choices, repr(sizes.tiling if isinstance(sizes, ModelSpec) else sizes))
    if key not in _EXPORTED:
        _EXPORTED[key] = exported_models(stages, sizes)
    return _EXPORTED[key]


@pytest.fixture(scope="module", autouse=True)
def exported_once() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "exported_models", remembered)
        yield


@pytest.fixture(scope="module", params=["3D softmax", pytest.param("2D sigmoid", marks=pytest.mark.long)])
def folders(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The phantom's folder as ``upg``, and one of every rule made from it."""
    root = tmp_path_factory.mktemp("fusion")
    made = {"upg": PHANTOMS[request.param].write(root / "upg")}
    for rule in RULES:
        made[rule] = root / rule
        export_fusion(FusionRequest(made["upg"], rule, made[rule], tiles_per_set=1))
    return made


@pytest.mark.parametrize("rule", RULES)
def test_every_engine_computes_the_rule_of_the_numpy_reference(rule: WeightFreeRule, folders: dict[str, Path]) -> None:
    model = load_model(folders[rule])
    tiles = random_tiles(model.manifest, 2, seed=5).tiles
    for engine in ENGINES:
        merged, staged = outputs(model, engine, tiles)
        assert staged.logits_a is not None
        assert staged.logits_b is not None
        expected = fuse(rule, staged.logits_a, staged.logits_b, model.manifest.activation)
        for found in (merged, staged):
            np.testing.assert_allclose(found.probabilities, expected.probabilities, rtol=0, atol=TOLERANCE)
            np.testing.assert_allclose(found.uncertainty, expected.uncertainty, rtol=0, atol=TOLERANCE)
        np.testing.assert_allclose(staged.fused_logits, expected.log_probabilities, rtol=0, atol=TOLERANCE)


def outputs(model: Model, engine: EngineName, tiles: np.ndarray) -> Iterator[TileOutput]:
    with ExitStack() as stack:
        for staged in (False, True):
            backend = stack.enter_context(open_backend(model, options(engine), staged=staged))
            yield backend.infer(tiles, with_logits=staged)


def test_rules_differ_from_each_other(folders: dict[str, Path]) -> None:
    """Or the comparison with the reference would show nothing: no two have the same uncertainty and probabilities."""
    tiles = random_tiles(load_model(folders["mean"]).manifest, 1, seed=5).tiles
    seen = []
    for rule in ("upg", *RULES):
        with open_backend(load_model(folders[rule]), options("openvino")) as backend:
            output = backend.infer(tiles)
            seen.append(np.concatenate([output.probabilities, output.uncertainty], axis=1))
    for index, one in enumerate(seen):
        for other in seen[:index]:
            assert np.abs(one - other).max() > 0.01


def test_folder_keeps_the_subnets_byte_for_byte_and_says_what_it_is(folders: dict[str, Path]) -> None:
    source, made = load_model(folders["upg"]), load_model(folders["dempster"])
    for key in ("subnet_a", "subnet_b"):
        assert made.graph(key) == source.graph(key)
    assert made.manifest.fusion == "dempster"
    assert made.manifest.version == "1.0.0+dempster"
    assert source.digest in made.manifest.provenance["subnets"]
    assert {row.graph for row in made.manifest.parity} == {"upg", "decode", "merged"}
    assert all(row.reference.endswith("rule dempster") for row in made.manifest.parity)
    assert max(row.tolerance for row in made.manifest.parity) == TOLERANCE
    assert "NumPy" in (folders["dempster"] / "parity.md").read_text(encoding="utf-8")


def test_graphs_of_a_rule_have_no_weights(folders: dict[str, Path]) -> None:
    for key in ("upg", "decode"):
        weights = onnx.load_from_string(load_model(folders["burl"]).graph(key)).graph.initializer
        assert all(np.prod(weight.dims) <= 2 for weight in weights)


def test_another_rule_can_follow_another(folders: dict[str, Path], tmp_path: Path) -> None:
    export_fusion(FusionRequest(folders["dempster"], "mean", tmp_path / "again", tiles_per_set=1))
    again, direct = load_model(tmp_path / "again"), load_model(folders["mean"])
    assert again.manifest.version == "1.0.0+mean"
    assert again.manifest.artifacts == direct.manifest.artifacts


def test_parameters_stand_in_the_manifest_and_in_the_graph(folders: dict[str, Path], tmp_path: Path) -> None:
    result = run(folders["upg"], "--rule", "coranet", "--cost", "2", "--out", tmp_path / "two", "--tiles-per-set", "1")
    assert result.exit_code == 0, result.output
    model = load_model(tmp_path / "two")
    assert model.manifest.fusion_parameters == {"cost": 2.0}
    assert load_model(folders["coranet"]).manifest.fusion_parameters == {}
    assert model.graph("decode") != load_model(folders["coranet"]).graph("decode")


def test_graph_that_does_not_compute_the_rule_is_refused(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stages = module.fusion_stages
    monkeypatch.setattr(module, "fusion_stages", lambda rule, *rest: stages("entropy", *rest))
    with pytest.raises(AccuracyGateError, match="difference"):
        export_fusion(FusionRequest(folders["upg"], "dempster", tmp_path / "wrong", tiles_per_set=1))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("rule", ["dual", "burl"])
def test_small_probabilities_lose_digits_of_their_logarithms_alone(rule: WeightFreeRule) -> None:
    """So logarithms are compared by what they stand for: a weight at the foot of a ramp has few digits in float32."""
    rng = np.random.default_rng(0)
    a, b = (rng.normal(0.0, 6.0, size=(1, 4, 64, 64, 64)).astype(np.float32) for _ in range(2))
    expected = fuse(rule, a, b, "softmax").log_probabilities
    found = fusion_stages(rule, "softmax", {})["upg"](torch.tensor(a), torch.tensor(b)).numpy()
    assert np.abs(found - expected).max() > TOLERANCE
    assert np.abs(np.exp(found) - np.exp(expected)).max() < TOLERANCE / 5


def test_figures_of_the_old_fused_output_do_not_move_to_the_new_one(tmp_path: Path) -> None:
    rows = [{"data_set": "d", "segment": "class 1", "output": output, "dice": 0.5} for output in ("fused", "subnet_a")]
    source = ModelPhantom(tile_shape=(8, 8, 8), changes={"quality": rows}).write(tmp_path / "source")
    manifest = export_fusion(FusionRequest(source, "mean", tmp_path / "mean", tiles_per_set=1))
    assert [row.output for row in manifest.quality] == ["subnet_a"]


def test_stages_that_mean_something_else_together_are_not_merged() -> None:
    node = onnx.helper.make_node("ReduceMean", ["IMAGE"], ["LOGITS_A"])
    graph = onnx.helper.make_graph([node], "subnet_a", [], [])
    old = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)])
    new = onnx.helper.make_model(
        onnx.helper.make_graph(
            [],
            "rest",
            [onnx.helper.make_tensor_value_info("IMAGE", 1, [1])],
            [onnx.helper.make_tensor_value_info(name, 1, [1]) for name in ("PROBABILITIES", "UNCERTAINTY")],
        ),
        opset_imports=[onnx.helper.make_opsetid("", 20)],
    )
    with pytest.raises(ModelError, match="ReduceMean of opset 17"):
        merged_model({"subnet_a": old, "subnet_b": new, "upg": new, "decode": new})


def test_checkpoint_without_a_upg_becomes_a_model(tmp_path: Path) -> None:
    config = PLANAR
    subnets = {
        name: tensor
        for name, tensor in trained_like(config).state_dict().items()
        if not name.startswith("generate_pseudo_simple.")
    }
    path = tmp_path / "pair.safetensors"
    save_checkpoint(path, subnets, config, 3, description(config))

    result = run(path, "--rule", "dempster", "--out", tmp_path / "model", "--tiles-per-set", "1", "--json")

    assert result.exit_code == 0, result.output
    manifest = load_model(tmp_path / "model").manifest
    assert {row.graph for row in manifest.parity} == {"subnet_a", "subnet_b", "upg", "decode", "merged"}
    assert manifest.provenance["training_steps"] == "3"
    document = json.loads(result.stdout)
    assert document["version"] == "1.0.0+dempster"
    assert document["largest_difference"] <= TOLERANCE
    refused = run(path, "--rule", "upg", "--out", tmp_path / "upg")
    assert refused.exit_code == 4
    assert "two subnets without a UPG" in refused.stderr
    assert not (tmp_path / "upg").exists()


def test_folder_has_no_upg_to_give(folders: dict[str, Path], tmp_path: Path) -> None:
    result = run(folders["upg"], "--rule", "upg", "--out", tmp_path / "model", "--json")
    assert result.exit_code == 4
    assert "it is learned" in json.loads(result.stdout)["error"]["message"]


@pytest.mark.parametrize(
    "arguments",
    [
        ["--rule", "mean", "--tau", "0.5"],
        ["--rule", "burl", "--tau", "1"],
        ["--rule", "coranet", "--cost", "1"],
        ["--rule", "upg", "--cost", "5"],
        ["--rule", "vote"],
    ],
)
def test_rules_and_parameters_that_there_are_not_are_usage_errors(arguments: list[str], tmp_path: Path) -> None:
    result = run(tmp_path, *arguments, "--out", tmp_path / "model")
    assert result.exit_code == 2
    assert "Traceback" not in result.output


def test_source_that_is_neither_is_told(tmp_path: Path) -> None:
    (tmp_path / "canary.txt").touch()
    for source in ("canary.txt", "nothing", "."):
        result = run(tmp_path / source, "--rule", "mean", "--out", tmp_path / "model")
        assert result.exit_code == 4
        assert "canary" not in result.output
        assert "Traceback" not in result.output


def test_tensorrt_builds_the_graphs_of_a_rule(folders: dict[str, Path]) -> None:
    pytest.importorskip("tensorrt_rtx_bindings", reason="the extra tensorrt-rtx is not installed")
    from ucseg_export.tensorrt_builder import BuildOptions, load_builder
    from ucseg_export.to_tensorrt import build_engine

    model = load_model(folders["burl"])
    for key in ("upg", "decode", "merged"):
        options = BuildOptions(precision="fp32", compute_capability="8.6")
        assert build_engine(model.graph(key), key, model.manifest, options, load_builder()).plan
