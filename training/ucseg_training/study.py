"""The study: what each part of the method adds on a few patients, several runs of the same size and data.

Every run is trained on the same labelled patients, sees the same unlabelled ones or none, and is scored on the test
patient after its last step: nothing is chosen on a score. Runs that are finished are not repeated.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ucseg_training.data.augment import AugmentSpec
from ucseg_training.data.case import Case
from ucseg_training.data.case_batches import CaseBatches, CaseSampling
from ucseg_training.demo_model import PREPROCESSING, TILING, TRIO
from ucseg_training.demo_training import CASE_WEIGHTS, ENHANCEMENT_HU, LABELLED, MODEL_SPEC, OPTIMISATION
from ucseg_training.evaluate import evaluate
from ucseg_training.method.config import MethodConfig
from ucseg_training.observers import LogLines, TermsTable
from ucseg_training.precision import computes_in_bfloat16
from ucseg_training.settle import settle
from ucseg_training.trainer import TrainingPlan, train

_LOG = logging.getLogger(__name__)

UNLABELLED = ("lung1", "lung2")
SPACING_MM = 4.5
TILE_SHAPE = (48, 48, 48)
SCORES_NAME = "scores.jsonl"
TERMS_NAME = "terms.csv"

_WHOLE = MethodConfig(dice="batch", largest_component=False, queue_length=144)
_NO_UNLABELLED = replace(_WHOLE, pseudo_labels="none", use_ccp=False, use_mixing=False)

VARIANTS: dict[str, MethodConfig] = {
    "supervised": _NO_UNLABELLED,
    "mean_teacher": replace(_NO_UNLABELLED, pseudo_labels="teacher"),
    "uc_seg": _WHOLE,
    "without_ccp": replace(_WHOLE, use_ccp=False),
    "without_upg": replace(_WHOLE, pseudo_labels="mean"),
    "without_mixing": replace(_WHOLE, use_mixing=False),
}
"""Forms of the method by name. Classes of several parts (lungs, vertebrae) forbid the largest component."""

SEEDS: dict[str, tuple[int, ...]] = {
    "supervised": (42, 43, 44),
    "mean_teacher": (42, 43, 44),
    "uc_seg": (42, 43, 44),
    "without_ccp": (42,),
    "without_upg": (42,),
    "without_mixing": (42,),
}


REPORTED_CLASSES = ("lungs", "liver", "vertebrae", "aorta", "heart")
"""Classes that means are over: those that more than one labelled patient shows, or that were found in validation."""

STUDY_PREPROCESSING = PREPROCESSING.model_copy(update={"spacing_mm": (SPACING_MM,) * 3})
STUDY_TILING = TILING.model_copy(update={"tile_shape": TILE_SHAPE})


@dataclass(frozen=True)
class StudyRun:
    """One training of the study.

    Attributes:
        variant: Of `VARIANTS`.
        seed: Of everything random.
        steps: Optimiser steps.
    """

    variant: str
    seed: int
    steps: int

    @property
    def name(self) -> str:
        """Name of the run's folder."""
        return f"{self.variant}-{self.seed}"

    def plan(self) -> TrainingPlan:
        """What fixes the run besides the data; schedules are scaled to its length."""
        grid = {
            "preprocessing": STUDY_PREPROCESSING.model_dump(mode="json"),
            "tiling": STUDY_TILING.model_dump(mode="json"),
        }
        return TrainingPlan(
            trio=replace(TRIO, tile_shape=TILE_SHAPE),
            method=replace(VARIANTS[self.variant], total_steps=self.steps),
            optimisation=replace(OPTIMISATION, warm_up=max(1, self.steps // 20)),
            steps=self.steps,
            seed=self.seed,
            precision="bf16" if computes_in_bfloat16() else "f32",
            checkpoint_every=100,
            model_spec=MODEL_SPEC | {"name": f"study-{self.variant}"} | grid,
        )

    def sampling(self) -> CaseSampling:
        """Two labelled tiles a batch, and two unlabelled ones where the variant looks at them."""
        looks_at_unlabelled = VARIANTS[self.variant].pseudo_labels != "none"
        return CaseSampling(
            tile_shape=TILE_SHAPE,
            num_classes=TRIO.num_classes,
            preprocessing=STUDY_PREPROCESSING,
            augment=AugmentSpec(enhancement_hu=ENHANCEMENT_HU),
            labelled_weights={name: CASE_WEIGHTS[name] for name in LABELLED},
            unlabelled_weights=dict.fromkeys(UNLABELLED, 1.0) if looks_at_unlabelled else {},
            seed=self.seed,
        )


def study_runs(steps: int) -> tuple[StudyRun, ...]:
    """All runs, one seed of every variant first, so that a study that was cut short still compares them."""
    longest = max(map(len, SEEDS.values()))
    return tuple(
        StudyRun(variant, seeds[turn], steps)
        for turn in range(longest)
        for variant, seeds in SEEDS.items()
        if turn < len(seeds)
    )


def run_study(folder: Path, cases: Sequence[Case], test_case: Case, runs: Sequence[StudyRun]) -> None:
    """Do the runs that are not finished yet, each in its folder; a run that was interrupted is continued.

    Args:
        folder: Receives one folder per run, with its log of terms and its scores.
        cases: Training patients on the grid of the study.
        test_case: Scored on, never trained on.
        runs: Which runs.

    Raises:
        TrainingError: A run cannot go on, see `train`.
        OutputError: Nothing can be written.
    """
    for run in runs:
        here = folder / run.name
        scores = here / SCORES_NAME
        if scores.is_file():
            continue
        _LOG.info("study: %s, %d steps", run.name, run.steps)
        plan, sampling = run.plan(), run.sampling()
        with TermsTable(here / TERMS_NAME) as table:
            checkpoint = train(CaseBatches(cases, sampling), plan, here, observers=[LogLines(every=100), table])
        # Statistics alone: what is compared is the training, so that no variant gets a second one.
        others = CaseBatches(cases, replace(sampling, unlabelled_weights={}, stream=1))
        checkpoint = settle(checkpoint, others, 0, here, autocast=plan.precision == "bf16")
        rows = [json.dumps(row.as_json(), sort_keys=True) for row in evaluate(checkpoint, [test_case], surfaces=False)]
        part = scores.with_suffix(".part")
        part.write_text("\n".join(rows) + "\n", encoding="utf-8")
        os.replace(part, scores)
