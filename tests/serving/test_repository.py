"""The model repository: what is committed, what is written, and what is refused before a server starts."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2
from typer.testing import CliRunner

from tests.calibration_phantom import calibration
from tests.proof_phantom import proof, proven, write_proofs
from tests.served_phantom import PHANTOM
from ucseg_runtime.backends import engine_status
from ucseg_runtime.backends.engine_cache import EngineKey, save_engines
from ucseg_runtime.backends.graphs import GRAPHS
from ucseg_runtime.calibration import CALIBRATION_NAME
from ucseg_runtime.errors import RepositoryError
from ucseg_runtime.model_folder import default_model_folder, load_model
from ucseg_serving.cli.app import app
from ucseg_serving.config_pbtxt import as_pbtxt, from_pbtxt
from ucseg_serving.repository import repository_texts
from ucseg_serving.repository_checks import check_repository
from ucseg_serving.repository_model import repository_model
from ucseg_serving.serving_options import ServingOptions
from ucseg_serving.weights import committed_weights

COMMITTED = Path(__file__).resolve().parents[2] / "model_repository"
MODELS = {
    "ucseg_tiles",
    "ucseg_logits",
    "ucseg_check",
    "ucseg_subnet_a",
    "ucseg_subnet_b",
    "ucseg_upg",
    "ucseg_decode",
    "ucseg_merged",
    "ucseg_volume",
}


@pytest.fixture
def model_folder(tmp_path: Path) -> Path:
    return proven(PHANTOM.write(tmp_path / "phantom"))


def run(*arguments: object) -> Any:
    return CliRunner().invoke(app, [str(item) for item in arguments])


def parsed(folder: Path, name: str) -> Any:
    return from_pbtxt((folder / name / "config.pbtxt").read_text(encoding="utf-8"))


def test_committed_repository_is_the_generated_one() -> None:
    model = load_model(default_model_folder())
    generated = repository_texts(model, committed_weights(model).served, ServingOptions())
    committed = {
        str(path.relative_to(COMMITTED)): path.read_text(encoding="utf-8")
        for path in COMMITTED.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert committed == generated, "run: ucseg-serve template ucseg_runtime/models/torso-ct-demo --out model_repository"


@pytest.mark.parametrize("target", ["cpu", "onnxruntime"])
def test_the_calibration_is_served_with_the_model(target: str, model_folder: Path, tmp_path: Path) -> None:
    """Its limits decide; and a signature vouches for the two together."""
    model = load_model(model_folder)
    made_up = calibration(model.digest, model.manifest.num_classes - 1, limits=True)
    (model_folder / CALIBRATION_NAME).write_text(made_up.as_json(), encoding="utf-8")
    made = run("repository", model_folder, "--out", tmp_path / "models", "--target", target)
    assert made.exit_code == 0, made.output
    served = repository_model(tmp_path / "models" / "ucseg_volume" / "model")
    assert (served.digest, served.calibration.calibration) == (model.digest, made_up)


@pytest.mark.parametrize("path", sorted(COMMITTED.glob("*/config.pbtxt")), ids=lambda path: path.parent.name)
def test_configurations_survive_a_round_trip_through_the_protobuf_of_triton(path: Path) -> None:
    message = text_format.Parse(path.read_text(encoding="utf-8"), model_config_pb2.ModelConfig())
    again = model_config_pb2.ModelConfig.FromString(message.SerializeToString(deterministic=True))
    assert as_pbtxt(again) == path.read_text(encoding="utf-8")


def test_unknown_fields_are_refused_as_triton_refuses_them() -> None:
    with pytest.raises(text_format.ParseError, match="max_bath_size"):
        from_pbtxt("max_bath_size: 4")


def test_every_model_says_which_model_folder_and_engine_computes(model_folder: Path, tmp_path: Path) -> None:
    assert run("repository", model_folder, "--out", tmp_path / "repository", "--engine", "openvino").exit_code == 0
    found = {path.parent.name for path in (tmp_path / "repository").glob("*/config.pbtxt")}
    assert found == MODELS
    openvino = next(status.version for status in engine_status() if status.name == "openvino")
    for name in MODELS:
        values = {key: item.string_value for key, item in parsed(tmp_path / "repository", name).parameters.items()}
        assert values["ucseg_model_digest"] == load_model(model_folder).digest
        assert (values["ucseg_engine"], values["ucseg_engine_version"]) == ("openvino", openvino)
        assert (values["ucseg_precision"], values["ucseg_proven"]) == ("f32", "true")


def test_a_single_instance_is_refused_since_its_requests_would_lie(model_folder: Path, tmp_path: Path) -> None:
    refused = run("repository", model_folder, "--out", tmp_path / "repository", "--instances", 1)
    assert refused.exit_code == 2
    assert "--instances" in refused.output
    assert not (tmp_path / "repository").exists()


def test_stages_warm_up_and_refuse_what_waits_too_long(model_folder: Path, tmp_path: Path) -> None:
    run("repository", model_folder, "--out", tmp_path / "repository", "--max-batch", 4, "--instances", 2)
    for key in GRAPHS:
        config = parsed(tmp_path / "repository", f"ucseg_{key}")
        assert [item.batch_size for item in config.model_warmup] == [1], "a processor computes tile by tile"
        assert all(item.zero_data for warm_up in config.model_warmup for item in warm_up.inputs.values())
        assert config.instance_group[0].count == 2
        assert list(config.dynamic_batching.preferred_batch_size) == [1], "merged requests would leave instances idle"
        assert config.dynamic_batching.max_queue_delay_microseconds == 0
        policy = config.dynamic_batching.default_queue_policy
        assert policy.timeout_action == model_config_pb2.ModelQueuePolicy.REJECT
        assert policy.default_timeout_microseconds > 0
        assert policy.max_queue_size == 0
    ensemble = parsed(tmp_path / "repository", "ucseg_tiles")
    assert [step.model_name for step in ensemble.ensemble_scheduling.step] == [
        "ucseg_check",
        "ucseg_subnet_a",
        "ucseg_subnet_b",
        "ucseg_upg",
        "ucseg_decode",
    ]
    assert not ensemble.instance_group


@pytest.mark.parametrize(("version", "limit"), [("2.51", 0), ("2.66", 0), ("2.67", 64), ("3.0", 64)])
def test_queues_have_a_size_limit_only_where_the_server_survives_it(
    model_folder: Path, tmp_path: Path, version: str, limit: int
) -> None:
    run("repository", model_folder, "--out", tmp_path / "repository", "--triton-version", version)
    policy = parsed(tmp_path / "repository", "ucseg_upg").dynamic_batching.default_queue_policy
    assert policy.max_queue_size == limit


def test_inputs_that_a_graph_does_not_use_are_not_sent_to_it(model_folder: Path, tmp_path: Path) -> None:
    run("repository", model_folder, "--out", tmp_path / "repository")
    decode = parsed(tmp_path / "repository", "ucseg_decode")
    step = parsed(tmp_path / "repository", "ucseg_tiles").ensemble_scheduling.step[-1]
    assert set(step.input_map) == {tensor.name for tensor in decode.input} == {"FUSED_LOGITS"}


def test_an_engine_that_did_not_pass_the_gate_is_not_served(tmp_path: Path) -> None:
    folder = write_proofs(PHANTOM.write(tmp_path / "phantom"), proof("openvino", dice=0.5))
    refused = run("repository", folder, "--out", tmp_path / "repository")
    assert refused.exit_code == 4
    assert "UCSEG-E132" in refused.stderr
    assert "Dice of class 1 0.5000" in refused.stderr
    assert not (tmp_path / "repository").exists()
    assert run("repository", folder, "--out", tmp_path / "repository", "--no-gate").exit_code == 0
    assert parsed(tmp_path / "repository", "ucseg_tiles").parameters["ucseg_proven"].string_value == "false"


def test_onnxruntime_target_serves_the_graphs_themselves(model_folder: Path, tmp_path: Path) -> None:
    assert run("repository", model_folder, "--out", tmp_path / "r", "--target", "onnxruntime").exit_code == 0
    model = load_model(model_folder)
    for key in GRAPHS:
        config = parsed(tmp_path / "r", f"ucseg_{key}")
        assert config.backend == "onnxruntime"
        assert config.instance_group[0].kind == model_config_pb2.ModelInstanceGroup.KIND_GPU
        assert [item.batch_size for item in config.model_warmup] == [1, 4]
        assert (tmp_path / "r" / f"ucseg_{key}" / "1" / "model.onnx").read_bytes() == model.graph(key)


PLAN_BUILD = hashlib.sha256(b"plan of merged").hexdigest()[:8]
PLAN_PROOF = proof("tensorrt", version=f"10.8.0+{PLAN_BUILD}").model_copy(update={"device": "GPU sm86"})
"""Of what `write_plans` writes."""


def write_plans(folder: Path, root: Path, *, builder: str = "tensorrt", precision: str = "fp32") -> None:
    key = EngineKey(load_model(folder).digest, builder, "10.8.0", "8.6", precision, 4)
    plans = {name: f"plan of {name}".encode() for name in GRAPHS}
    save_engines(root, key, plans, dict.fromkeys(GRAPHS, b"graph"), {name: {} for name in GRAPHS})


def tensorrt_repository(folder: Path, tmp_path: Path) -> tuple[object, ...]:
    return "repository", folder, "--out", tmp_path / "r", "--target", "tensorrt", "--engines", tmp_path / "engines"


def test_tensorrt_target_takes_verified_engines_from_the_cache(tmp_path: Path) -> None:
    folder = write_proofs(PHANTOM.write(tmp_path / "phantom"), PLAN_PROOF)
    write_plans(folder, tmp_path / "engines")
    arguments = tensorrt_repository(folder, tmp_path)
    assert run(*arguments).exit_code == 0
    assert (tmp_path / "r" / "ucseg_upg" / "1" / "model.plan").read_bytes() == b"plan of upg"
    assert parsed(tmp_path / "r", "ucseg_tiles").parameters["ucseg_precision"].string_value == "f32"

    too_many = run(*arguments, "--overwrite", "--max-batch", 8)
    assert too_many.exit_code == 4
    assert "take 4 tiles; --max-batch is 8" in too_many.stderr

    plan = next((tmp_path / "engines").glob("*/upg.plan"))
    plan.write_bytes(b"another")
    damaged = run(*arguments, "--overwrite")
    assert damaged.exit_code == 4
    assert "the engine of upg is not the file that its record names" in damaged.stderr
    assert (tmp_path / "r" / "ucseg_upg" / "1" / "model.plan").read_bytes() == b"plan of upg"


@pytest.mark.parametrize(
    "other",
    [{"precision": "fp16"}, {"version": "10.9.0"}, {"version": "10.8.0+00000000"}, {"device": "GPU sm90"}],
    ids=["another precision", "another version", "another build", "another kind of GPU"],
)
def test_a_proof_holds_for_its_own_engine_alone(tmp_path: Path, other: dict[str, str]) -> None:
    folder = write_proofs(PHANTOM.write(tmp_path / "phantom"), PLAN_PROOF.model_copy(update=other))
    write_plans(folder, tmp_path / "engines")
    arguments = tensorrt_repository(folder, tmp_path)
    refused = run(*arguments)
    assert refused.exit_code == 4
    assert f"tensorrt 10.8.0+{PLAN_BUILD} f32 on GPU sm86 has not passed the accuracy gate" in refused.stderr
    assert run(*arguments, "--no-gate").exit_code == 0
    assert parsed(tmp_path / "r", "ucseg_volume").parameters["ucseg_proven"].string_value == "false"


def test_a_record_of_engines_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    folder = proven(PHANTOM.write(tmp_path / "phantom"))
    write_plans(folder, tmp_path / "engines")
    next((tmp_path / "engines").glob("*/engines.json")).write_text("{}")
    refused = run(*tensorrt_repository(folder, tmp_path))
    assert refused.exit_code == 4
    assert "the record of the built engines cannot be read" in refused.stderr


def test_tensorrt_target_refuses_engines_of_tensorrt_rtx(tmp_path: Path) -> None:
    folder = write_proofs(PHANTOM.write(tmp_path / "phantom"), proof("tensorrt", version="10.8.0"))
    write_plans(folder, tmp_path / "engines", builder="tensorrt_rtx")
    refused = run(*tensorrt_repository(folder, tmp_path))
    assert refused.exit_code == 4
    assert "UCSEG-E131" in refused.stderr


def test_a_repository_is_replaced_only_when_asked_for(model_folder: Path, tmp_path: Path) -> None:
    assert run("repository", model_folder, "--out", tmp_path / "r").exit_code == 0
    again = run("repository", model_folder, "--out", tmp_path / "r")
    assert again.exit_code == 6
    assert "UCSEG-E152" in again.stderr
    assert run("repository", model_folder, "--out", tmp_path / "r", "--overwrite").exit_code == 0


def rename_tensor(config: Any) -> None:
    config.output[0].name = "LOGITS"


def other_shape(config: Any) -> None:
    config.input[0].dims[1] = 9


def other_type(config: Any) -> None:
    config.output[0].data_type = model_config_pb2.TYPE_FP16


def smaller_batch(config: Any) -> None:
    config.max_batch_size = 1


def other_model(config: Any) -> None:
    config.parameters["ucseg_model_digest"].string_value = "0" * 64


def huge_batch(config: Any) -> None:
    config.max_batch_size = 100_000


def many_instances(config: Any) -> None:
    config.instance_group[0].count = 100_000


@pytest.mark.parametrize(
    ("name", "damage", "message"),
    [
        pytest.param("ucseg_subnet_b", rename_tensor, "differ in the output LOGITS_B", id="tensor of another name"),
        pytest.param("ucseg_upg", other_shape, r"LOGITS_A is TYPE_FP32 \[3, 8, 12, 16\].*\[3, 9, 12, 16\]", id="shape"),
        pytest.param("ucseg_decode", other_type, "PROBABILITIES is TYPE_FP16.*expected TYPE_FP32", id="type"),
        pytest.param("ucseg_upg", smaller_batch, "takes 4 tiles; its step ucseg_upg takes 1", id="batch"),
        pytest.param("ucseg_merged", other_model, "ucseg_model_digest is 0000", id="another model folder"),
        pytest.param("ucseg_merged", huge_batch, "a gRPC message holds 2.1 GB", id="message"),
        pytest.param("ucseg_merged", many_instances, "GB of memory", id="memory"),
    ],
)
def test_models_that_do_not_fit_each_other_are_refused_by_name(
    model_folder: Path, tmp_path: Path, name: str, damage: Callable[[Any], None], message: str
) -> None:
    assert run("repository", model_folder, "--out", tmp_path / "r").exit_code == 0
    check_repository(tmp_path / "r")
    config = parsed(tmp_path / "r", name)
    damage(config)
    (tmp_path / "r" / name / "config.pbtxt").write_text(as_pbtxt(config), encoding="utf-8")
    with pytest.raises(RepositoryError, match=message):
        check_repository(tmp_path / "r")


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("ucseg_upg/1/model.py", "ucseg_upg: 1/model.py is missing"),
        ("ucseg_upg/config.pbtxt", "step ucseg_upg is no model of the repository"),
        ("ucseg_volume/config.pbtxt", "no repository of ucseg"),
        ("ucseg_volume/model/manifest.json", "model/manifest.json is missing"),
    ],
)
def test_missing_parts_are_named(model_folder: Path, tmp_path: Path, path: str, message: str) -> None:
    assert run("repository", model_folder, "--out", tmp_path / "r").exit_code == 0
    (tmp_path / "r" / path).unlink()
    with pytest.raises(RepositoryError, match=message):
        check_repository(tmp_path / "r")


def test_proofs_and_manifest_travel_with_the_repository(model_folder: Path, tmp_path: Path) -> None:
    run("repository", model_folder, "--out", tmp_path / "r")
    inside = load_model(tmp_path / "r" / "ucseg_volume" / "model")
    assert inside.digest == load_model(model_folder).digest
    assert json.loads(inside.proofs.as_json())["engines"]


@pytest.mark.parametrize("command", [["repository", "--out", "models"], ["local"], ["health"]])
def test_a_missing_extra_is_named(tmp_path: Path, command: list[str]) -> None:
    code = "import sys; sys.modules['tritonclient'] = None; from ucseg_serving.cli.app import main; main()"
    finished = subprocess.run(
        [sys.executable, "-c", code, *command], capture_output=True, text=True, check=False, cwd=tmp_path
    )
    assert finished.returncode == 5, finished.stderr
    assert "extra: pip install 'ucseg[" in finished.stderr
    assert list(tmp_path.iterdir()) == []
