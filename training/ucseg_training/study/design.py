"""Which runs a study has: forms of the method, and seeds of each.

Every run of a study has the same networks, labelled data and number of steps, looks at the same unlabelled data or at
none, and is scored on test data after its last step: nothing is chosen on a score.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from ucseg_training.batches import BatchSource
from ucseg_training.method.config import MethodConfig
from ucseg_training.scoring import ScoreRow
from ucseg_training.training_plan import TrainingPlan

SEEDS: dict[str, tuple[int, ...]] = {
    "supervised": (42, 43, 44),
    "mean_teacher": (42, 43, 44),
    "uc_seg": (42, 43, 44),
    "without_ccp": (42,),
    "without_upg": (42,),
    "without_mixing": (42,),
}
"""Seeds of each form of the method."""


def variants(whole: MethodConfig) -> dict[str, MethodConfig]:
    """Forms of the method by name.

    Args:
        whole: UC-Seg as the study's data want it.
    """
    labels_alone = replace(whole, pseudo_labels="none", use_ccp=False, use_mixing=False)
    return {
        "supervised": labels_alone,
        "mean_teacher": replace(labels_alone, pseudo_labels="teacher"),
        "uc_seg": whole,
        "without_ccp": replace(whole, use_ccp=False),
        "without_upg": replace(whole, pseudo_labels="mean"),
        "without_mixing": replace(whole, use_mixing=False),
    }


@dataclass(frozen=True)
class StudyRun:
    """One training of a study.

    Attributes:
        variant: Of `SEEDS`.
        seed: Of everything random.
        steps: Optimiser steps, over which every schedule runs.
    """

    variant: str
    seed: int
    steps: int

    @property
    def name(self) -> str:
        """Name of the run and of its folder."""
        return f"{self.variant}-{self.seed}"


def study_runs(steps: int) -> tuple[StudyRun, ...]:
    """All runs, one seed of every variant first, so that a study that was cut short still compares them."""
    longest = max(map(len, SEEDS.values()))
    return tuple(
        StudyRun(variant, seeds[turn], steps)
        for turn in range(longest)
        for variant, seeds in SEEDS.items()
        if turn < len(seeds)
    )


@dataclass(frozen=True)
class Study:
    """What is trained, on which data, and how it is scored.

    Attributes:
        name: Names its files.
        classes: Classes that means are over.
        whole: UC-Seg as these data want it, for a run of any length.
        plan: The training of a run with this method.
        batches: What a run learns from: its seed, whether it looks at unlabelled data, and the number of the stream;
            batches of another stream are other ones.
        score: Rows of a checkpoint on the test data, with a ``dice`` each.
    """

    name: str
    classes: tuple[str, ...]
    whole: MethodConfig
    plan: Callable[[StudyRun, MethodConfig], TrainingPlan]
    batches: Callable[[int, bool, int], BatchSource]
    score: Callable[[Path], Iterator[ScoreRow]]

    def method(self, run: StudyRun) -> MethodConfig:
        """The form of the method that a run has."""
        return replace(variants(self.whole)[run.variant], total_steps=run.steps)
