"""Figures for the accuracy gate, made up: engines that decide like the reference, and some that do not."""

from __future__ import annotations

from pathlib import Path

from ucseg_runtime.accuracy_gate import PROOFS_NAME, CaseFigures, ClassFigures, EngineProof, Proofs
from ucseg_runtime.backends import engine_status
from ucseg_runtime.manifest import Precision
from ucseg_runtime.model_folder import load_model


def proof(
    engine: str = "openvino",
    precision: Precision = "f32",
    *,
    version: str = "2026.4.1",
    dice: float | None = 1.0,
    uncertainty_p99: float = 0.0,
    seconds_per_tile: float = 0.1,
) -> EngineProof:
    """One class of one case."""
    figures = ClassFigures(name="class 1", dice=dice, hd95_mm=0.0, volume_ml=1.0, reference_ml=1.0)
    case = CaseFigures(
        case="case 1 of 1",
        classes=(figures,),
        probability_max=0.0,
        probability_p99=0.0,
        uncertainty_max=uncertainty_p99,
        uncertainty_p99=uncertainty_p99,
        calibration_error=0.0,
        reference_calibration_error=0.0,
    )
    return EngineProof(
        engine=engine,
        version=version,
        precision=precision,
        device="CPU",
        processor="made up",
        ucseg_version="0",
        reference="made up",
        seconds_per_tile=seconds_per_tile,
        cases=(case,),
    )


def write_proofs(folder: Path, *proofs: EngineProof) -> Path:
    """Put proofs into a model folder in the place of those that it has."""
    text = Proofs(model_digest=load_model(folder).digest, engines=proofs).as_json()
    (folder / PROOFS_NAME).write_text(text, encoding="utf-8")
    return folder


def proven(folder: Path) -> Path:
    """Let every engine of this machine have passed in float32, in the order of the table of engines."""
    return write_proofs(
        folder,
        *(
            proof(status.name, version=status.version, seconds_per_tile=0.1 * place)
            for place, status in enumerate(engine_status(), start=1)
        ),
    )
