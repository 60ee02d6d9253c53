"""Accept, review or reject: what is to be done with the result of a case, with reasons.

A case score (`case_score`) is compared with two limits: those of the model's ``calibration.json``, else built-in ones,
which no case has confirmed; the decision then says that it is uncalibrated. Image, labels and uncertainty are all that
is looked at, so that a decision is the same whatever computed them.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Literal

from ucseg_runtime.calibration import ScoreLimits
from ucseg_runtime.case_figures import case_figures
from ucseg_runtime.case_score import CaseScore, score_case
from ucseg_runtime.config import FailOn
from ucseg_runtime.errors import EXIT_OK, EXIT_REJECT, EXIT_REVIEW
from ucseg_runtime.manifest import ModelSpec
from ucseg_runtime.model_folder import Model
from ucseg_runtime.segmentation import Segmentation, SegmentMeasurement
from ucseg_runtime.volume import Volume

Outcome = Literal["accept", "review", "reject"]

OUTCOMES: tuple[Outcome, ...] = ("accept", "review", "reject")
"""From best to worst."""

BUILT_IN_LIMITS = ScoreLimits(review=0.49, reject=0.89)
"""Just below one group of checks one unit outside of its range, see `case_score`; and below three units, or several
groups."""

_EVIDENTIAL = ("uncertainty", "border_uncertainty")
"""Figures whose built-in limits are those of evidence; of other fusion rules nothing is known without ranges."""

_EXIT_CODES = {"accept": EXIT_OK, "review": EXIT_REVIEW, "reject": EXIT_REJECT}


@dataclass(frozen=True)
class Reason:
    """One check that speaks against a result, or limits what the decision is worth.

    Attributes:
        check: Its name, stable.
        value: What was found.
        limit: What was expected at most or at least.
        text: A sentence for people; holds no patient data.
    """

    check: str
    value: float
    limit: float
    text: str


@dataclass(frozen=True)
class Decision:
    """What is to be done with a result.

    Attributes:
        outcome: ``accept``: nothing speaks against it; ``review``: somebody should look at it before it is used;
            ``reject``: it should not be used.
        calibrated: Whether the limits come from cases; else they are built in.
        score: 0 = sure … 1 = not at all; see `case_score`.
        reasons: Every check outside its limits, the worst first; also of cases that are accepted.
    """

    outcome: Outcome
    calibrated: bool
    score: float
    reasons: tuple[Reason, ...]

    @property
    def in_words(self) -> str:
        """One line without the reasons."""
        return f"{self.outcome} (score {self.score:.2f}, {self.standing})"

    @property
    def standing(self) -> str:
        """``calibrated`` or ``uncalibrated``."""
        return "calibrated" if self.calibrated else "uncalibrated"

    @property
    def suffix(self) -> str:
        """What a short description of the result ends with: nothing where it is accepted."""
        return "" if self.outcome == "accept" else f" ({self.outcome}, {self.standing})"

    def as_json(self) -> dict[str, object]:
        """As records and ``--json`` hold it."""
        return asdict(self)


def decide(
    volume: Volume, segmentation: Segmentation, measurements: Sequence[SegmentMeasurement], model: Model
) -> Decision:
    """Decide upon one case.

    Args:
        volume: What was segmented.
        segmentation: On its grid, with the uncertainty as it is stored (uint16).
        measurements: One per class.
        model: Has the ranges of its training cases in the manifest, and limits in its calibration.
    """
    return decision_on(scored(volume, segmentation, measurements, model.manifest), model)


def scored(
    volume: Volume,
    segmentation: Segmentation,
    measurements: Sequence[SegmentMeasurement],
    spec: ModelSpec,
    without: Collection[str] = (),
) -> CaseScore:
    """The score that a decision is made by; see `decide`.

    Args:
        volume: As for `decide`.
        segmentation: The same.
        measurements: The same.
        spec: Has the ranges.
        without: Keys of figures that are not looked at.
    """
    figures = case_figures(volume, segmentation, measurements)
    skipped = {*without, *(() if spec.fusion == "upg" or spec.training_ranges else _EVIDENTIAL)}
    looked_at = {key: value for key, value in figures.items() if key.partition("/")[0] not in skipped}
    return score_case(looked_at, spec.training_ranges, spec.classes)


def decision_on(scored: CaseScore, model: Model) -> Decision:
    """The decision that follows from a case score."""
    calibration = model.calibration.calibration
    limits = calibration.score_limits if calibration is not None else None
    return Decision(
        outcome=outcome_of(scored.score, limits or BUILT_IN_LIMITS),
        calibrated=limits is not None,
        score=scored.score,
        reasons=(
            *(Reason(finding.check, finding.value, finding.limit, finding.text) for finding in scored.findings),
            *_limitations(model),
        ),
    )


def outcome_of(score: float, limits: ScoreLimits) -> Outcome:
    """What a score means under some limits."""
    if score > limits.reject:
        return "reject"
    return "review" if score > limits.review else "accept"


def exit_code(outcomes: Iterable[Outcome], fail_on: FailOn | None) -> int:
    """Exit code of a run with these outcomes: that of the worst one, if it is as bad as `fail_on` or worse; else 0.

    Args:
        outcomes: Of all results, any number.
        fail_on: None: decisions never change the exit code.
    """
    worst = max((OUTCOMES.index(outcome) for outcome in outcomes), default=0)
    return EXIT_OK if fail_on is None or worst < OUTCOMES.index(fail_on) else _EXIT_CODES[OUTCOMES[worst]]


def _limitations(model: Model) -> tuple[Reason, ...]:
    """What the decision could not look at; changes no score."""
    reasons = []
    if model.manifest.training_ranges is None:
        text = "The model has no ranges of training cases: intensities, geometry and volumes could not be checked."
        reasons.append(Reason("training_ranges", 0.0, 1.0, text))
    if model.calibration.ignored:
        reasons.append(Reason("calibration", 0.0, 1.0, model.calibration.ignored))
    return tuple(reasons)
