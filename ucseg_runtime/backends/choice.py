"""Which engine serves a model here: the one that was asked for, or the fastest that passed the accuracy gate."""

from __future__ import annotations

from dataclasses import dataclass

from ucseg_runtime.accuracy_gate import fastest_first
from ucseg_runtime.backends.engines import Engine, engine_status, installed_engines, load_engine
from ucseg_runtime.config import EngineName, InferenceOptions
from ucseg_runtime.errors import AccuracyGateError, BackendUnavailableError
from ucseg_runtime.manifest import GRAPH_OF_PRECISION, Manifest, Precision
from ucseg_runtime.model_folder import Model

NOT_COMPARED = "never compared with the reference for this model"


@dataclass(frozen=True)
class Choice:
    """An engine that may serve.

    Attributes:
        name: Of the engine.
        engine: Loaded.
        precision: That it will compute in.
        proven: Whether it passed the accuracy gate for the model.
        reason: Why this one, for people.
        seconds_per_tile: Measured when it was compared with the reference; None without the gate.
    """

    name: str
    engine: Engine
    precision: Precision
    proven: bool
    reason: str
    seconds_per_tile: float | None = None


@dataclass(frozen=True)
class Verdict:
    """What the gate says of one engine of this machine.

    Attributes:
        engine: Its name.
        version: Of its package.
        precision: Arithmetic.
        objection: Why it is refused; empty where it passed.
        seconds_per_tile: Measured when it was compared; None where it never was.
    """

    engine: EngineName
    version: str
    precision: Precision
    objection: str
    seconds_per_tile: float | None


def choose(model: Model, options: InferenceOptions) -> Choice:
    """Pick engine and precision.

    Raises:
        BackendUnavailableError: The engine that was asked for is not installed, or has not the precision.
        AccuracyGateError: None of those that were asked for has passed the gate; the message names the figure.
    """
    _require_available(options)
    if not options.gate:
        return _without_gate(options)
    refusals: list[str] = []
    installed: dict[str, EngineName] = {name: name for name in installed_engines()}
    for proof in fastest_first(model.proofs.engines):
        name = installed.get(proof.engine)
        if name is None or not _is_wanted(name, proof.precision, options):
            continue
        engine = load_engine(name)
        refusal = _refusal(model, name, engine, proof.precision)
        if not refusal:
            reason = f"passed the accuracy gate, {proof.seconds_per_tile:.3f} s a tile"
            reasons = "; ".join([reason, *refusals])
            return Choice(name, engine, proof.precision, True, reasons, proof.seconds_per_tile)
        refusals.append(f"{name} {engine.version} {proof.precision} refused: {refusal}")
    spec = model.manifest
    raise AccuracyGateError(
        f"no engine that was asked for has passed the accuracy gate of {spec.name} {spec.version}: "
        f"{'; '.join(refusals) or NOT_COMPARED}.",
        hint="Run `ucseg-export prove` on the model folder, choose another engine or precision, or give --no-gate, "
        "which is recorded in every output.",
    )


def verdicts(model: Model) -> tuple[Verdict, ...]:
    """What the gate says of every engine and precision of this machine. Loads the engines, but no model."""
    times = {(proof.engine, proof.precision): proof.seconds_per_tile for proof in model.proofs.engines}
    return tuple(
        Verdict(
            engine=status.name,
            version=status.version,
            precision=precision,
            objection=_objection(model, status.name, status.version, precision),
            seconds_per_tile=times.get((status.name, precision)),
        )
        for status in engine_status()
        for precision in offered_precisions(model.manifest, status.precisions)
    )


def offered_precisions(manifest: Manifest, precisions: tuple[Precision, ...]) -> tuple[Precision, ...]:
    """Those of an engine's precisions that the model has a graph for."""
    return tuple(item for item in precisions if GRAPH_OF_PRECISION[item] in manifest.artifacts)


def _require_available(options: InferenceOptions) -> None:
    if options.engine == "auto":
        return
    available = load_engine(options.engine).precisions()
    if options.precision != "auto" and options.precision not in available:
        raise BackendUnavailableError(
            f"The {options.engine} engine has no {options.precision} on this processor; it has {', '.join(available)}.",
            hint="Use --precision auto.",
        )


def _without_gate(options: InferenceOptions) -> Choice:
    first: EngineName = next(iter(installed_engines()), "openvino")  # loading it says that it is missing
    name = first if options.engine == "auto" else options.engine
    precision = options.precision if options.precision != "auto" else "f32"
    return Choice(name, load_engine(name), precision, False, "the accuracy gate was skipped")


def _is_wanted(engine: str, precision: Precision, options: InferenceOptions) -> bool:
    return options.engine in ("auto", engine) and options.precision in ("auto", precision)


def _refusal(model: Model, name: str, engine: Engine, precision: Precision) -> str:
    if precision not in engine.precisions():
        return "not offered by this processor"
    return _objection(model, name, engine.version, precision)


def _objection(model: Model, engine: str, version: str, precision: Precision) -> str:
    proof = next((item for item in model.proofs.engines if item.is_about(engine, version, precision)), None)
    return NOT_COMPARED if proof is None else proof.objection(model.manifest.budget(precision))
