"""The accuracy gate: which engines have shown, for this very model, that they decide like the reference.

`ucseg-export prove` compares what a user sees (masks, probabilities, uncertainty, volumes) between an engine and the
reference, and writes the figures into ``proofs.json`` of the model folder. An engine whose figures are missing or
outside the manifest's budget is not served. The gate guards against engines that are wrong, not against people: whoever
can write the model folder can write this file.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Literal

from pydantic import BaseModel, ConfigDict, FiniteFloat, ValidationError

from ucseg_runtime.errors import ManifestError
from ucseg_runtime.json_text import json_text
from ucseg_runtime.manifest import Budget, Precision

PROOFS_NAME = "proofs.json"
SCHEMA_VERSION = 1

_PROVEN_PARTS = 2
"""Leading numbers of an engine's version that a proof holds for: 2026.4.0 and 2026.4.1 count as one."""


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ClassFigures(_Frozen):
    """How one class of one case compares with the reference.

    Attributes:
        name: Of the class.
        dice: Dice of the two masks, in [0, 1]; None where both are empty.
        hd95_mm: 95th percentile of the surface distances; None where a mask is empty.
        volume_ml: By the engine.
        reference_ml: By the reference.
    """

    name: str
    dice: FiniteFloat | None
    hd95_mm: FiniteFloat | None
    volume_ml: FiniteFloat
    reference_ml: FiniteFloat


class CaseFigures(_Frozen):
    """How one case compares with the reference, over all voxels of the source grid.

    Attributes:
        case: Its place in the list, ``case 1 of 3``; names can belong to patients.
        classes: One per class of the model.
        probability_max: Largest difference of a class probability; probabilities have steps of 1/255.
        probability_p99: 99th percentile of the differences.
        uncertainty_max: Largest difference of the uncertainty.
        uncertainty_p99: 99th percentile of the differences.
        calibration_error: Expected calibration error of the engine's probabilities against the reference's masks.
        reference_calibration_error: The same of the reference's own probabilities.
    """

    case: str
    classes: tuple[ClassFigures, ...]
    probability_max: FiniteFloat
    probability_p99: FiniteFloat
    uncertainty_max: FiniteFloat
    uncertainty_p99: FiniteFloat
    calibration_error: FiniteFloat
    reference_calibration_error: FiniteFloat


class EngineProof(_Frozen):
    """Figures of one engine in one precision.

    Attributes:
        engine: Name of the engine.
        version: Version of its package; behind a ``+`` the first digits of the digest of an engine built on site.
        precision: Arithmetic.
        device: Kind of processor, such as ``CPU`` or ``GPU sm86``.
        processor: Which one it was.
        ucseg_version: That compared.
        reference: What it was compared with.
        seconds_per_tile: Median time of a tile on that processor.
        cases: At least one.
    """

    engine: str
    version: str
    precision: Precision
    device: str
    processor: str
    ucseg_version: str
    reference: str
    seconds_per_tile: FiniteFloat
    cases: tuple[CaseFigures, ...]

    @property
    def subject(self) -> tuple[str, Precision, str]:
        """Engine, precision and kind of device, of which a model folder holds one proof each."""
        return self.engine, self.precision, self.device

    def is_about(self, engine: str, version: str, precision: Precision, device: str) -> bool:
        """Whether these are figures of this engine on this kind of device.

        The last number of its version may differ; what was built on site must be the very same.
        """
        same_subject = self.subject == (engine, precision, device)
        return same_subject and _proven_part(self.version) == _proven_part(version)

    def objection(self, budget: Budget) -> str:
        """The figure that is farthest outside the budget, as a sentence without a full stop; empty if none is."""
        failed = [
            (budget.mask_dice - item.dice, f"Dice of {item.name} {item.dice:.4f}, at least {budget.mask_dice} needed")
            for case in self.cases
            for item in case.classes
            if item.dice is not None and item.dice < budget.mask_dice
        ]
        failed += [
            (
                case.uncertainty_p99 - budget.uncertainty_p99,
                f"99th percentile of the difference of uncertainty {case.uncertainty_p99:.4f}, "
                f"at most {budget.uncertainty_p99} allowed",
            )
            for case in self.cases
            if case.uncertainty_p99 > budget.uncertainty_p99
        ]
        if not self.cases:
            failed.append((math.inf, "no case was compared"))
        elif all(item.dice is None for case in self.cases for item in case.classes):
            # An engine that finds nothing anywhere would pass.
            failed.append((math.inf, "no mask was compared, since no case shows any class of the model"))
        return max(failed)[1] if failed else ""


class Proofs(_Frozen):
    """The whole of ``proofs.json``.

    Attributes:
        schema_version: Of this layout.
        model_digest: SHA-256 of the manifest that the figures belong to.
        engines: One per engine, precision and kind of device.
    """

    schema_version: Literal[1] = 1
    model_digest: str
    engines: tuple[EngineProof, ...] = ()

    def with_proof(self, proof: EngineProof) -> Proofs:
        """These and another one, which replaces figures of the same engine and precision on such a device."""
        others = [item for item in self.engines if item.subject != proof.subject]
        return self.model_copy(update={"engines": (*others, proof)})

    def as_json(self) -> str:
        """The text of the file."""
        return json_text(self.model_dump(mode="json")) + "\n"


def proofs_from_json(text: str, model_digest: str) -> Proofs:
    """Parse ``proofs.json``.

    Args:
        text: Content of the file.
        model_digest: Of the model folder that it lies in; figures of another model count for nothing.

    Raises:
        ManifestError: The text is not JSON or breaks the schema.
    """
    try:
        proofs = Proofs.model_validate(json.loads(text))
    except (json.JSONDecodeError, ValidationError) as error:
        raise ManifestError(
            f"{PROOFS_NAME} of the model folder breaks its schema ({type(error).__name__}).",
            hint="Remove it and run ucseg-export prove again.",
        ) from error
    return proofs if proofs.model_digest == model_digest else Proofs(model_digest=model_digest)


def fastest_first(proofs: Sequence[EngineProof]) -> list[EngineProof]:
    """In order of the time of a tile, on whatever processor each was measured."""
    return sorted(proofs, key=lambda proof: proof.seconds_per_tile)


def _proven_part(version: str) -> tuple[str, ...]:
    numbers, _, build = version.partition("+")
    return (*numbers.split(".")[:_PROVEN_PARTS], build)
