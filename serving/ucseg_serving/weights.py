"""Which artifacts a server may run: those whose engine passed the accuracy gate for the model."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ucseg_runtime.accuracy_gate import EngineProof
from ucseg_runtime.backends.choice import NOT_COMPARED, choose
from ucseg_runtime.backends.cuda import gpu_kind
from ucseg_runtime.backends.engine_cache import BuiltEngines, engines_of_model, load_engine_plan
from ucseg_runtime.backends.graphs import GRAPHS
from ucseg_runtime.backends.offers import Offer
from ucseg_runtime.backends.tensorrt_engine import precision_built
from ucseg_runtime.backends.triton_tensors import stage_model_name
from ucseg_runtime.config import EngineChoice, InferenceOptions
from ucseg_runtime.errors import AccuracyGateError, EngineMismatchError
from ucseg_runtime.manifest import MERGED
from ucseg_runtime.model_folder import Model
from ucseg_serving.repository import VERSION, Weights, description_files, model_folder_files
from ucseg_serving.serving_options import Served, ServingOptions

StagePrecision = Literal["f32", "bf16"]

_BUILDER = "tensorrt"


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
    served = Served(
        model.digest, chosen.name, chosen.offer.version(engine.version), chosen.precision, engine.device, chosen.proven
    )
    return Weights(served, model_folder_files(model))


def _onnx(model: Model, request: WeightsRequest) -> Weights:
    # The container brings a version of its own, which nobody knows here; the graphs are float32.
    proofs = [proof for proof in model.proofs.engines if (proof.engine, proof.precision) == ("onnxruntime", "f32")]
    proven = _is_proven(model, "onnxruntime f32", proofs, gate=request.gate)
    version = proofs[0].version if proven else "unknown"
    files = {f"{stage_model_name(key)}/{VERSION}/model.onnx": model.graph(key) for key in GRAPHS}
    served = Served(model.digest, "onnxruntime", version, "f32", "GPU", proven)
    return Weights(served, files | description_files(model))


def _tensorrt(model: Model, request: WeightsRequest, options: ServingOptions) -> Weights:
    built = _built_engines(model, request.engines)
    key = built.key
    if key.max_batch < options.max_batch:
        raise EngineMismatchError(
            f"the TensorRT engines take {key.max_batch} tiles; --max-batch is {options.max_batch}.",
            hint="Give a smaller --max-batch, or build with a larger one: ucseg-export tensorrt MODEL_DIR.",
        )
    precision, device = precision_built(key.precision), gpu_kind(key.compute_capability)
    version = Offer(MERGED, built.build).version(key.version)
    proofs = [proof for proof in model.proofs.engines if proof.is_about(key.builder, version, precision, device)]
    proven = _is_proven(model, f"{key.builder} {version} {precision} on {device}", proofs, gate=request.gate)
    files = {
        f"{stage_model_name(name)}/{VERSION}/model.plan": load_engine_plan(request.engines, key, name)
        for name in GRAPHS
    }
    served = Served(model.digest, key.builder, version, precision, device, proven)
    return Weights(served, files | description_files(model))


def _is_proven(model: Model, name: str, proofs: list[EngineProof], *, gate: bool) -> bool:
    """Whether the figures of an engine are within the budget.

    Raises:
        AccuracyGateError: They are not, or there are none, and the gate counts.
    """
    objections = [proof.objection(model.manifest.budget(proof.precision)) for proof in proofs]
    if objections and not any(objections):
        return True
    if gate:
        raise AccuracyGateError(
            f"{name} has not passed the accuracy gate of {model.manifest.name} {model.manifest.version}: "
            f"{'; '.join(filter(None, objections)) or NOT_COMPARED}.",
            hint="Run `ucseg-export prove` where the engine is, or give --no-gate, which every client then sees.",
        )
    return False


def _built_engines(model: Model, root: Path) -> BuiltEngines:
    """The one set of engines that was built for the model by TensorRT itself: Triton cannot load others."""
    built = engines_of_model(root, model.digest)
    fitting = [item for item in built if item.key.builder == _BUILDER]
    if len(fitting) == 1:
        return fitting[0]
    found = ", ".join(item.key.folder_name for item in fitting or built) or "none"
    raise EngineMismatchError(
        f"expected one set of TensorRT engines for this model; found: {found}.",
        hint="Build it with ucseg-export tensorrt MODEL_DIR --out FOLDER, and give --engines FOLDER.",
    )
