"""Which engine serves a model here: the one that was asked for, or the fastest that passed the accuracy gate."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ucseg_runtime.accuracy_gate import fastest_first
from ucseg_runtime.backends.engines import Engine, engine_status, installed_engines, load_engine
from ucseg_runtime.backends.offers import Offer
from ucseg_runtime.config import EngineName, InferenceOptions
from ucseg_runtime.errors import AccuracyGateError, BackendUnavailableError, EngineMismatchError
from ucseg_runtime.manifest import Precision
from ucseg_runtime.model_folder import Model

NOT_COMPARED = "never compared with the reference for this model"


@dataclass(frozen=True)
class Choice:
    """An engine that may serve.

    Attributes:
        name: Of the engine.
        engine: Loaded.
        precision: That it will compute in.
        offer: What it will run.
        proven: Whether it passed the accuracy gate for the model.
        reason: Why this one, for people.
        seconds_per_tile: Measured when it was compared with the reference; None without the gate.
    """

    name: str
    engine: Engine
    precision: Precision
    offer: Offer
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
        BackendUnavailableError: The engine that was asked for is not installed, or has not the precision here or for
            this model.
        EngineMismatchError: It runs what is built on site, and this was not.
        AccuracyGateError: None of those that were asked for has passed the gate; the message names the figure.
    """
    if options.engine != "auto":
        _require_available(model, options.engine, options)
    if not options.gate:
        return _without_gate(model, options)
    refusals: list[str] = []
    installed: dict[str, EngineName] = {name: name for name in installed_engines()}
    for proof in fastest_first(model.proofs.engines):
        name = installed.get(proof.engine)
        if name is None or not _is_wanted(name, proof.precision, options):
            continue
        try:
            engine = load_engine(name, options.device)
            offer = engine.offers(model).get(proof.precision)
        except (BackendUnavailableError, EngineMismatchError) as error:
            refusals.append(f"{name} {proof.precision} refused: {error}")
            continue
        if engine.device != proof.device:
            continue  # figures of another kind of device say nothing here
        refusal = _objection(model, name, engine, proof.precision, offer)
        if offer is not None and not refusal:
            reason = f"passed the accuracy gate, {proof.seconds_per_tile:.3f} s a tile"
            reasons = "; ".join([reason, *refusals])
            return Choice(name, engine, proof.precision, offer, True, reasons, proof.seconds_per_tile)
        refusals.append(f"{name} {engine.version} {proof.precision} refused: {refusal}")
    spec = model.manifest
    raise AccuracyGateError(
        f"no engine that was asked for has passed the accuracy gate of {spec.name} {spec.version}: "
        f"{'; '.join(refusals) or NOT_COMPARED}.",
        hint="Run `ucseg-export prove` on the model folder, choose another engine or precision, or give --no-gate, "
        "which is recorded in every output.",
    )


def verdicts(model: Model, device: int = 0) -> tuple[Verdict, ...]:
    """What the gate says of every engine and precision of this machine. Loads the engines, but no model.

    Args:
        model: Verified model folder.
        device: Number of the GPU.
    """
    times = {proof.subject: proof.seconds_per_tile for proof in model.proofs.engines}
    usable = [(status.name, load_engine(status.name, device)) for status in engine_status(device) if not status.reason]
    return tuple(verdict for name, engine in usable for verdict in _verdicts_on(name, engine, model, times))


def _verdicts_on(
    name: EngineName, engine: Engine, model: Model, times: Mapping[tuple[str, Precision, str], float]
) -> list[Verdict]:
    try:
        offers = engine.offers(model)
    except EngineMismatchError as error:  # doctor has to say so, and to go on with the other engines
        return [Verdict(name, engine.version, precision, str(error), None) for precision in engine.precisions()]
    return [
        Verdict(
            engine=name,
            version=offer.version(engine.version),
            precision=precision,
            objection=_objection(model, name, engine, precision, offer),
            seconds_per_tile=times.get((name, precision, engine.device)),
        )
        for precision, offer in offers.items()
    ]


def _require_available(model: Model, name: EngineName, options: InferenceOptions) -> None:
    engine = load_engine(name, options.device)
    offered, precisions = engine.offers(model), engine.precisions()
    if options.precision != "auto" and options.precision not in precisions:
        raise BackendUnavailableError(
            f"The {name} engine has no {options.precision} on this processor; it has {', '.join(precisions)}.",
            hint="Use --precision auto.",
        )
    if options.precision != "auto" and options.precision not in offered:
        raise engine.unavailable(model, options.precision)
    if not offered:
        raise engine.unavailable(model, precisions[0])


def _without_gate(model: Model, options: InferenceOptions) -> Choice:
    first: EngineName = next(iter(installed_engines()), "openvino")  # loading it says that it is missing
    name = first if options.engine == "auto" else options.engine
    engine = load_engine(name, options.device)
    precision = options.precision if options.precision != "auto" else engine.precisions()[0]
    offer = engine.offers(model).get(precision)
    if offer is None:
        raise engine.unavailable(model, precision)
    return Choice(name, engine, precision, offer, False, "the accuracy gate was skipped")


def _is_wanted(engine: str, precision: Precision, options: InferenceOptions) -> bool:
    return options.engine in ("auto", engine) and options.precision in ("auto", precision)


def _objection(model: Model, name: str, engine: Engine, precision: Precision, offer: Offer | None) -> str:
    if precision not in engine.precisions():
        return "not offered by this processor"
    if offer is None:
        return str(engine.unavailable(model, precision))
    version = offer.version(engine.version)
    proofs = (item for item in model.proofs.engines if item.is_about(name, version, precision, engine.device))
    proof = next(proofs, None)
    return NOT_COMPARED if proof is None else proof.objection(model.manifest.budget(precision))
