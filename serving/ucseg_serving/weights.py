"""Which artifacts a server may run: those whose engine passed the accuracy gate for the model."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ucseg_runtime.accuracy_gate import EngineProof
from ucseg_runtime.backends.choice import choose
from ucseg_runtime.backends.engine_cache import RECORD_NAME, EngineKey, load_engine_plan
from ucseg_runtime.backends.graphs import GRAPHS
from ucseg_runtime.backends.triton_tensors import VOLUME_MODEL, stage_model_name
from ucseg_runtime.config import EngineChoice, InferenceOptions
from ucseg_runtime.errors import AccuracyGateError, EngineMismatchError
from ucseg_runtime.manifest import MANIFEST_NAME
from ucseg_runtime.model_folder import Model
from ucseg_serving.repository import VERSION, Weights, model_folder_files
from ucseg_serving.server_models import MODEL_FOLDER
from ucseg_serving.serving_options import Served, ServingOptions

StagePrecision = Literal["f32", "bf16"]


@dataclass(frozen=True)
class WeightsRequest:
    """What the site wants to run.

    Attributes:
        engine: Of the cpu target.
        precision: Of the cpu target; the stages have no int8 graphs.
        gate: Whether engines that did not pass the accuracy gate for the model are refused.
        engines: Folder of built TensorRT engines.
    """

    engine: EngineChoice
    precision: StagePrecision
    gate: bool
    engines: Path


def weights_for(model: Model, request: WeightsRequest, options: ServingOptions) -> Weights:
    """Artifacts for the target that passed the gate.

    Raises:
        AccuracyGateError: The engine has not passed the accuracy gate for this model.
        EngineMismatchError: There is no TensorRT engine for the model, or several.
    """
    if options.target == "cpu":
        return _embedded(model, request)
    if options.target == "onnxruntime":
        return _onnx(model, request)
    return _tensorrt(model, request, options)


def committed_weights(model: Model) -> Weights:
    """What the committed repository says: the first engine that passed in float32, by the proofs alone, and no files.

    Raises:
        AccuracyGateError: None has passed.
    """
    fitting = [proof for proof in model.proofs.engines if proof.precision == "f32"]
    passed = [proof for proof in fitting if not proof.objection(model.manifest.budget("f32"))]
    if not passed:
        raise AccuracyGateError("no engine has passed the accuracy gate in f32.", hint="Run ucseg-export prove.")
    first = passed[0]
    return Weights(Served(model.digest, first.engine, first.version, "f32", first.device, True), {})


def _embedded(model: Model, request: WeightsRequest) -> Weights:
    chosen = choose(model, InferenceOptions(engine=request.engine, precision=request.precision, gate=request.gate))
    engine = chosen.engine
    served = Served(model.digest, chosen.name, engine.version, chosen.precision, engine.device, chosen.proven)
    return Weights(served, model_folder_files(model))


def _onnx(model: Model, request: WeightsRequest) -> Weights:
    version, proven = _proven_version(model, "onnxruntime", request.gate)
    files = {f"{stage_model_name(key)}/{VERSION}/model.onnx": model.graph(key) for key in GRAPHS}
    served = Served(model.digest, "onnxruntime", version, "f32", "GPU", proven)
    return Weights(served, files | _manifest_file(model))


def _tensorrt(model: Model, request: WeightsRequest, options: ServingOptions) -> Weights:
    key = _built_engines(model, request.engines)
    if key.max_batch < options.max_batch:
        raise EngineMismatchError(
            f"the TensorRT engines take {key.max_batch} tiles; --max-batch is {options.max_batch}.",
            hint="Give a smaller --max-batch, or build with a larger one: ucseg-export tensorrt MODEL_DIR.",
        )
    _, proven = _proven_version(model, key.builder, request.gate)
    files = {
        f"{stage_model_name(name)}/{VERSION}/model.plan": load_engine_plan(request.engines, key, name)
        for name in GRAPHS
    }
    served = Served(model.digest, key.builder, key.version, key.precision, "GPU", proven)
    return Weights(served, files | _manifest_file(model))


def _proven_version(model: Model, engine: str, gate: bool) -> tuple[str, bool]:
    """Version of the engine that passed, and whether one did."""
    proofs = [proof for proof in model.proofs.engines if proof.engine == engine]
    passed = [proof for proof in proofs if not proof.objection(model.manifest.budget(proof.precision))]
    if passed:
        return passed[0].version, True
    if gate:
        raise AccuracyGateError(
            f"{engine} has not passed the accuracy gate of {model.manifest.name} {model.manifest.version}: "
            f"{_objections(model, proofs)}.",
            hint="Run `ucseg-export prove` where the engine is, or give --no-gate, which every client then sees.",
        )
    return "unknown", False


def _objections(model: Model, proofs: list[EngineProof]) -> str:
    found = [proof.objection(model.manifest.budget(proof.precision)) for proof in proofs]
    return "; ".join(found) or "never compared with the reference for this model"


def _built_engines(model: Model, root: Path) -> EngineKey:
    """The one set of engines that was built for the model by TensorRT itself: Triton cannot load others."""
    records = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(root.glob(f"*/{RECORD_NAME}"))]
    keys = [EngineKey(**record["key"]) for record in records]
    fitting = [key for key in keys if key.model_digest == model.digest and key.builder == "tensorrt"]
    if len(fitting) == 1:
        return fitting[0]
    found = ", ".join(key.folder_name for key in fitting or keys) or "none"
    raise EngineMismatchError(
        f"expected one set of TensorRT engines for this model; found: {found}.",
        hint="Build it with ucseg-export tensorrt MODEL_DIR --out FOLDER, and give --engines FOLDER.",
    )


def _manifest_file(model: Model) -> dict[str, bytes]:
    content = (model.folder / MANIFEST_NAME).read_bytes()
    return {f"{VOLUME_MODEL}/{MODEL_FOLDER}/{MANIFEST_NAME}": content}
