"""`calibration.json`, optional beside the manifest: what was measured of a model on cases that no weight has seen.

It is not part of the model's digest. It names the digest of the model that it belongs to, and counts for no other.
"""

from __future__ import annotations

import json
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from ucseg_runtime.errors import ManifestError

CALIBRATION_NAME = "calibration.json"

Score = Annotated[float, Field(ge=0.0, le=1.0)]


class ScoreLimits(BaseModel):
    """From which case score on a case is not simply accepted.

    Attributes:
        review: Least score that somebody should look at.
        reject: Least score at which the result should not be used; at least `review`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    review: Score
    reject: Score

    @model_validator(mode="after")
    def _ascending(self) -> ScoreLimits:
        if self.review > self.reject:
            raise ValueError("review is above reject")
        return self


class Calibration(BaseModel):
    """The whole of ``calibration.json``; what else stands in it is for others.

    Attributes:
        schema_version: Of this layout.
        model_digest: SHA-256 of the manifest that the figures belong to.
        cases: Cases that were measured.
        patients: Patients that they are of.
        score_limits: None where the cases do not tell them.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    schema_version: Literal[1] = 1
    model_digest: str
    cases: Annotated[int, Field(ge=1)]
    patients: Annotated[int, Field(ge=1)]
    score_limits: ScoreLimits | None = None


def calibration_from_json(text: str) -> Calibration:
    """Parse ``calibration.json``, whichever model it belongs to.

    Raises:
        ManifestError: The text is not JSON or breaks the schema.
    """
    try:
        return Calibration.model_validate(json.loads(text))
    except (json.JSONDecodeError, ValidationError) as error:
        raise ManifestError(
            f"{CALIBRATION_NAME} of the model folder breaks its schema ({type(error).__name__}).",
            hint="Remove it and calibrate again.",
        ) from error
