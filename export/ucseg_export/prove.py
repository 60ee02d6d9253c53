"""The accuracy gate's measurement: every engine against the reference, on whole volumes, by what a user sees."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import replace

import numpy as np

from ucseg_export.files_beside import write_beside_manifest
from ucseg_runtime.accuracy_gate import PROOFS_NAME, CaseFigures, ClassFigures, EngineProof, Proofs
from ucseg_runtime.arrays import BoolArray, Float32Array, UInt8Array
from ucseg_runtime.backends import open_backend
from ucseg_runtime.backends.choice import verdicts
from ucseg_runtime.backends.cores import processor_name
from ucseg_runtime.backends.cuda import gpu_name
from ucseg_runtime.backends.engines import load_engine
from ucseg_runtime.backends.timed import TimedBackend
from ucseg_runtime.config import EngineChoice, InferenceOptions, PrecisionChoice
from ucseg_runtime.errors import AccuracyGateError, BackendUnavailableError
from ucseg_runtime.manifest import Manifest
from ucseg_runtime.model_folder import Model
from ucseg_runtime.pipeline import segment_volume
from ucseg_runtime.segmentation import Segmentation
from ucseg_runtime.version import __version__
from ucseg_runtime.volume import Volume
from ucseg_training.calibration import expected_calibration_error
from ucseg_training.metrics import score_masks

REFERENCE = InferenceOptions(engine="onnxruntime", precision="f32", gate=False, skip_air=False, keep_probabilities=True)
"""The four stages one by one, in float32, on the reference implementation of ONNX. Volumes are looked at whole: a proof
serves callers who want that too, and air that nobody looked at would make the differences small."""

_STEPS_OF_PROBABILITY = np.float32(255.0)
_PERCENTILE = 99.0


def candidates(
    model: Model, engine: EngineChoice, precision: PrecisionChoice, device: int = 0
) -> list[InferenceOptions]:
    """Engines and precisions of this machine that can run the model, of those that were asked for.

    Args:
        model: Verified model folder.
        engine: Name, or all.
        precision: One, or all.
        device: Number of the GPU.

    Raises:
        BackendUnavailableError: There is none.
        EngineMismatchError: The engine runs what is built on site, and nothing was.
    """
    wanted = [
        replace(REFERENCE, engine=item.engine, precision=item.precision, device=device)
        for item in verdicts(model, device)
        if engine in ("auto", item.engine) and precision in ("auto", item.precision)
    ]
    if not wanted and engine != "auto":
        loaded = load_engine(engine, device)  # says what is missing
        for offered in loaded.precisions():
            if precision in ("auto", offered):
                raise loaded.unavailable(model, offered)
    if not wanted:
        raise BackendUnavailableError(
            f"no engine of this machine fits --engine {engine} --precision {precision} for this model.",
            hint="See what there is: ucseg doctor.",
        )
    return wanted


def prove(model: Model, volumes: Iterable[Volume], options: Sequence[InferenceOptions]) -> tuple[EngineProof, ...]:
    """Compare engines with the reference on every volume.

    Args:
        model: Verified model folder.
        volumes: At least one.
        options: Engines to compare, the gate off and probabilities kept.

    Returns:
        One proof per engine, in the order of `options`, whether or not it keeps the budget.

    Raises:
        BackendError: An engine cannot run the model, or returned something unusable.
    """
    with ExitStack() as stack:
        reference = stack.enter_context(open_backend(model, REFERENCE, staged=True))
        backends = [TimedBackend(stack.enter_context(open_backend(model, option))) for option in options]
        figures: list[list[CaseFigures]] = [[] for _ in backends]
        for ordinal, volume in enumerate(volumes, start=1):
            expected = segment_volume(volume, model.manifest, reference, REFERENCE)
            for option, backend, cases in zip(options, backends, figures, strict=True):
                found = segment_volume(volume, model.manifest, backend, option)
                cases.append(compare(f"case {ordinal}", found, expected, model.manifest))
        said = f"{reference.info.engine.name} {reference.info.engine.version} f32, staged"
        return tuple(
            _proof(backend, option.device, tuple(cases), said)
            for backend, option, cases in zip(backends, options, figures, strict=True)
        )


def compare(case: str, found: Segmentation, expected: Segmentation, manifest: Manifest) -> CaseFigures:
    """What a user of one engine would see differ from the reference.

    Args:
        case: What to call the volume.
        found: By the engine, with probabilities.
        expected: By the reference, with probabilities, on the same grid.
        manifest: Of the model.
    """
    uncertainty = np.abs(found.uncertainty - expected.uncertainty)
    probability = _probability_differences(found, expected)
    return CaseFigures(
        case=case,
        classes=tuple(_class_figures(item.name, item.label, found, expected) for item in manifest.classes),
        probability_max=float(probability.max()),
        probability_p99=float(np.percentile(probability, _PERCENTILE)),
        uncertainty_max=float(uncertainty.max()),
        uncertainty_p99=float(np.percentile(uncertainty, _PERCENTILE)),
        calibration_error=_calibration_error(found, expected.label_map),
        reference_calibration_error=_calibration_error(expected, expected.label_map),
    )


def write_proofs(model: Model, proofs: Iterable[EngineProof]) -> Proofs:
    """Add proofs to the model folder; older ones of the same engine and precision go.

    Raises:
        OutputError: The file cannot be written; the old one is still there.
    """
    together = model.proofs
    for proof in proofs:
        together = together.with_proof(proof)
    write_beside_manifest(model.folder, PROOFS_NAME, together.as_json())
    return together


def require_passed(model: Model, proofs: Sequence[EngineProof]) -> None:
    """Let nobody take a refused engine for a proven one.

    Raises:
        AccuracyGateError: None of the engines keeps its budget; the message names the first one's figure.
    """
    objections = [proof.objection(model.manifest.budget(proof.precision)) for proof in proofs]
    if all(objections):
        raise AccuracyGateError(
            f"no engine passed the accuracy gate; {proofs[0].engine} {proofs[0].precision}: {objections[0]}.",
            hint="The figures are in the model folder. Use another engine or precision, or cases with the classes.",
        )


def _proof(backend: TimedBackend, device: int, cases: tuple[CaseFigures, ...], reference: str) -> EngineProof:
    engine = backend.info.engine
    return EngineProof(
        engine=engine.name,
        version=engine.version,
        precision=engine.precision,
        device=engine.device,
        processor=gpu_name(device) if engine.device.startswith("GPU") else processor_name(),
        ucseg_version=__version__,
        reference=reference,
        seconds_per_tile=round(statistics.median(backend.seconds_per_tile), 4),
        cases=tuple(case.model_copy(update={"case": f"{case.case} of {len(cases)}"}) for case in cases),
    )


def _class_figures(name: str, label: int, found: Segmentation, expected: Segmentation) -> ClassFigures:
    mask, reference = found.label_map == label, expected.label_map == label
    scores = score_masks(mask, reference, found.geometry.spacing_mm)
    return ClassFigures(
        name=name,
        dice=_or_none(scores.dice),
        hd95_mm=_or_none(scores.hd95_mm),
        volume_ml=scores.predicted_ml,
        reference_ml=scores.truth_ml,
    )


def _probability_differences(found: Segmentation, expected: Segmentation) -> Float32Array:
    """Largest difference over the classes for every voxel, float32, shape (z, y, x)."""
    differences = [
        np.abs(one.astype(np.int16) - other) for one, other in zip(*map(_stored, (found, expected)), strict=True)
    ]
    largest: Float32Array = np.maximum.reduce(differences).astype(np.float32) / _STEPS_OF_PROBABILITY
    return largest


def _calibration_error(segmentation: Segmentation, reference: UInt8Array) -> float:
    foreground = _stored(segmentation)
    total = foreground.sum(axis=0, dtype=np.int16)
    background = (255 - np.minimum(total, 255)).astype(np.uint8)
    confidence = np.choose(np.minimum(segmentation.label_map, len(foreground)), [background, *foreground])
    correct: BoolArray = segmentation.label_map == reference
    return expected_calibration_error(confidence.astype(np.float32) / _STEPS_OF_PROBABILITY, correct)


def _stored(segmentation: Segmentation) -> UInt8Array:
    assert segmentation.probabilities is not None  # noqa: S101  (every comparison asks for them)
    return segmentation.probabilities


def _or_none(value: float) -> float | None:
    return None if np.isnan(value) else value
