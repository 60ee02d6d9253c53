"""`calibration.json`: what a model's probabilities and uncertainty turned out to be worth on labelled cases.

`ucseg-export calibrate` measures it and writes it into the model folder. It is not part of the model's digest; it names
the digest that it belongs to, and counts for nothing beside another model.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, ValidationError, model_validator

from ucseg_runtime.errors import ManifestError
from ucseg_runtime.json_text import json_text

CALIBRATION_NAME = "calibration.json"

FEWEST_PATIENTS = 10
"""With fewer patients nothing is fitted that decides about new ones, and every figure is marked."""

Share = Annotated[FiniteFloat, Field(ge=0.0, le=1.0)]
Count = Annotated[int, Field(ge=0)]
Positive = Annotated[FiniteFloat, Field(gt=0.0)]
NotNegative = Annotated[FiniteFloat, Field(ge=0.0)]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Estimate(_Frozen):
    """A figure with its confidence interval over patients.

    Attributes:
        value: Over all patients; None where it is not defined.
        low: Lower end of the interval; None where it is not defined, as with a single patient.
        high: Upper end.
    """

    value: FiniteFloat | None
    low: FiniteFloat | None = None
    high: FiniteFloat | None = None


class Resampling(_Frozen):
    """How the confidence intervals were made: the percentile bootstrap over patients.

    Attributes:
        resamples: How many times as many patients were drawn with replacement.
        seed: Of the draws.
        level: Share of the resamples that an interval holds.
    """

    resamples: Annotated[int, Field(ge=1)]
    seed: int
    level: Share


class VoxelFigures(_Frozen):
    """Figures over all voxels of the region, all classes together.

    Attributes:
        voxels: How many.
        error_rate: Share of voxels whose label is wrong.
        calibration_error: Expected calibration error of the decided class, 15 bins.
        error_auroc: How well the uncertainty tells wrong voxels from right ones: area under the ROC curve.
        error_aupr: The same as average precision; by chance it is the error rate.
        aurc: Area under the risk–coverage curve: mean error rate while the most uncertain voxels are left out one by
            one.
        sparsification: Error rate of what is left when the share `left_out` of the most uncertain voxels is left out.
        left_out: The shares.
    """

    voxels: Count
    error_rate: Estimate
    calibration_error: Estimate
    error_auroc: Estimate
    error_aupr: Estimate
    aurc: Estimate
    sparsification: tuple[FiniteFloat, ...]
    left_out: tuple[Share, ...]


class ClassCalibration(_Frozen):
    """Figures of one class.

    Attributes:
        name: Of the class.
        label: Value in the label map.
        calibration_error: Of the probability of this class against its share of the labels, 15 bins, over the region.
        error_auroc: As in `VoxelFigures`, over the voxels to which prediction or label give the class.
        error_aupr: The same.
        dice: Mean over the patients that have the class.
    """

    name: str
    label: Annotated[int, Field(ge=1, le=255)]
    calibration_error: Estimate
    error_auroc: Estimate
    error_aupr: Estimate
    dice: Estimate


class CasePoint(_Frozen):
    """One case.

    Attributes:
        case: Its place in the list, ``case 1 of 3``; names can belong to patients.
        patient: Number of the patient, from 1.
        score: Case score, 0 = sure … 1 = not at all.
        dice: Mean over the classes that the labels show; None where they show none.
    """

    case: str
    patient: Annotated[int, Field(ge=1)]
    score: Share
    dice: Share | None


class CoveragePoint(_Frozen):
    """What is accepted when every case with at most this score is.

    Attributes:
        score: The highest score that is accepted.
        coverage: Share of the cases that are.
        risk: Mean of 1 − Dice of those.
    """

    score: Share
    coverage: Share
    risk: Share


class CaseFigures(_Frozen):
    """How the score of a case and its Dice go together.

    Attributes:
        points: One per case.
        spearman: Rank correlation of score and Dice; −1 would be a perfect score.
        risk_coverage: In the order of the scores.
    """

    points: tuple[CasePoint, ...]
    spearman: Estimate
    risk_coverage: tuple[CoveragePoint, ...]


class Temperature(_Frozen):
    """One factor for all fused logits, and whether it helps patients that it was not fitted on.

    Attributes:
        value: Fitted on all patients, beyond what the model has already; logits are divided by it. None with fewer than
            two patients.
        helps: Whether calibration error and negative log-likelihood of held-out patients both got better.
        patients: That were held out, one after the other.
        voxels: Voxels of the model grid that it was fitted on.
        calibration_error: Mean over the held-out patients without it.
        calibration_error_after: The same with it.
        nll: Mean negative log-likelihood over the held-out patients without it, in nats.
        nll_after: The same with it.
    """

    value: Positive | None
    helps: bool
    patients: Count
    voxels: Count
    calibration_error: Estimate
    calibration_error_after: Estimate
    nll: Estimate
    nll_after: Estimate


class ClassInterval(_Frozen):
    """The volume interval of one class.

    Attributes:
        name: Of the class.
        label: Value in the label map.
        factor: Of the doubtful volume, for the promised coverage; None where too few patients were there: then 1, and
            nothing is promised.
        cases: With complete labels of the class, in which it was found or labelled.
        patients: Of these cases.
        covered_with_factor_1: Of the cases, those whose labelled volume lies in the interval with a factor of 1.
        covered: The same with the factor fitted on the other patients; None where that cannot be fitted.
    """

    name: str
    label: Annotated[int, Field(ge=1, le=255)]
    factor: NotNegative | None
    cases: Count
    patients: Count
    covered_with_factor_1: Count
    covered: Count | None


class VolumeIntervals(_Frozen):
    """How volume intervals are made, and how often they hold the labelled volume.

    Attributes:
        method: In words.
        level: Share of new patients whose labelled volume an interval with a fitted factor is to hold.
        classes: One per class of the model.
    """

    method: str
    level: Share
    classes: tuple[ClassInterval, ...]


class ScoreLimits(_Frozen):
    """Case scores above which a case is to be looked at, and above which it is not to be used.

    Attributes:
        review: A case with a greater score is to be reviewed.
        reject: A case with a greater score is to be rejected; at least `review`.
    """

    review: Share
    reject: Share

    @model_validator(mode="after")
    def _in_order(self) -> ScoreLimits:
        if self.reject < self.review:
            raise ValueError("the limit for rejection is below the one for review")
        return self


class Calibration(_Frozen):
    """The whole of ``calibration.json``.

    Attributes:
        schema_version: Of this layout.
        model_digest: SHA-256 of the manifest that the figures belong to.
        ucseg_version: That measured.
        engine: What computed, with version, precision and device.
        cases: How many were measured.
        patients: Of how many patients they are.
        too_few: Why the figures say little of new patients; empty where there were enough.
        region: Over which voxels figures were taken, in words.
        resampling: How the intervals were made.
        all_voxels: All classes together.
        classes: One per class of the model.
        case_scores: How the case score goes with Dice.
        temperature: Of the fused logits.
        volume_intervals: For volumes in ml.
        score_limits: For the case score; None where there are none.
        score_limits_reason: Why there are none; empty where there are.
    """

    schema_version: Literal[1] = 1
    model_digest: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    ucseg_version: str
    engine: str
    cases: Annotated[int, Field(ge=1)]
    patients: Annotated[int, Field(ge=1)]
    too_few: str
    region: str
    resampling: Resampling
    all_voxels: VoxelFigures
    classes: tuple[ClassCalibration, ...]
    case_scores: CaseFigures
    temperature: Temperature
    volume_intervals: VolumeIntervals
    score_limits: ScoreLimits | None
    score_limits_reason: str

    def interval_of(self, label: int) -> ClassInterval | None:
        """The volume interval of a class; None where it has none."""
        return next((item for item in self.volume_intervals.classes if item.label == label), None)

    def as_json(self) -> str:
        """The text of the file."""
        return json_text(self.model_dump(mode="json")) + "\n"

    @property
    def digest(self) -> str:
        """SHA-256 of the text, 64 hexadecimal digits; part of the identity of every output that depends on it."""
        return hashlib.sha256(self.as_json().encode()).hexdigest()


@dataclass(frozen=True)
class FoundCalibration:
    """What a model folder has.

    Attributes:
        calibration: That of this very model; None where there is none.
        ignored: Why a file that is there does not count, as a sentence; empty where it does or there is none.
    """

    calibration: Calibration | None = None
    ignored: str = ""

    @property
    def digest(self) -> str:
        """See `Calibration.digest`; empty where there is none."""
        return self.calibration.digest if self.calibration is not None else ""


NO_CALIBRATION = FoundCalibration()
"""Of a folder without the file."""


def calibration_from_json(text: str, model_digest: str, labels: Sequence[int]) -> FoundCalibration:
    """Parse ``calibration.json``.

    Args:
        text: Content of the file.
        model_digest: Of the model folder that it lies in.
        labels: Of the model's classes.

    Raises:
        ManifestError: The text is not JSON, breaks the schema, or has other classes than the model that it names.
    """
    try:
        found = Calibration.model_validate(json.loads(text))
    except json.JSONDecodeError as error:
        raise _broken(f"line {error.lineno}: {error.msg}") from error
    except ValidationError as error:
        first = error.errors()[0]
        raise _broken(f"{'.'.join(map(str, first['loc'])) or 'whole'}: {first['msg']}") from error
    if found.model_digest != model_digest:
        return FoundCalibration(
            ignored=f"{CALIBRATION_NAME} of the model folder belongs to another model (manifest "
            f"{found.model_digest[:12]}, this one is {model_digest[:12]}) and is ignored; run ucseg-export calibrate."
        )
    for part, classes in (("classes", found.classes), ("volume_intervals.classes", found.volume_intervals.classes)):
        if [item.label for item in classes] != list(labels):
            raise _broken(f"{part}: labels {[item.label for item in classes]}; the model has {list(labels)}")
    return FoundCalibration(found)


def _broken(what: str) -> ManifestError:
    return ManifestError(
        f"{CALIBRATION_NAME} of the model folder breaks its schema: {what}.",
        hint="Remove it and run ucseg-export calibrate again.",
    )
