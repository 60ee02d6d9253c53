"""The study in 2D, on made-up planes: three patients with human contours are too few to tell methods apart.

Few labelled planes and as many unlabelled ones as a run asks for, which real data never offers.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from ucseg_training.batches import BatchSource
from ucseg_training.data.phantom_planes import PhantomPlanes, draw_phantom_plane
from ucseg_training.data.sample import Sample
from ucseg_training.evaluate import evaluate_sample, load_scorable
from ucseg_training.method.config import MethodConfig
from ucseg_training.phantom_training import phantom_plan
from ucseg_training.scoring import ScoreRow
from ucseg_training.study.design import Study, StudyRun
from ucseg_training.torch_backend import DECIDED
from ucseg_training.training_plan import TrainingPlan

SIDE = 96
LABELLED_PLANES = 4
TEST_PLANES = 60
_TEST_SEED = 2_000_000
# Every variant is scored with its running average, since one of them learns from it.
_AVERAGE_DECAY = 0.99


def phantom_study() -> Study:
    """A dark lesion in speckle: four labelled planes, new unlabelled ones in every step, sixty planes to score on."""
    return Study(
        name="phantom",
        classes=("object",),
        whole=MethodConfig(),
        plan=_plan,
        batches=_batches,
        score=_score,
    )


def _plan(run: StudyRun, method: MethodConfig) -> TrainingPlan:
    plan = phantom_plan(1, run.steps, run.seed, side=SIDE)
    return replace(plan, method=method, optimisation=replace(plan.optimisation, average_decay=_AVERAGE_DECAY))


def _batches(seed: int, unlabelled: bool, stream: int) -> BatchSource:
    return PhantomPlanes(
        SIDE, channels=1, seed=seed, stream=stream, labelled_planes=LABELLED_PLANES, unlabelled=unlabelled
    )


def held_out_planes() -> Iterator[Sample]:
    """Planes with an object that no run learns from, the same for every run."""
    rng = np.random.default_rng(_TEST_SEED)
    planes = (draw_phantom_plane(SIDE, 1, rng) for _ in itertools.count())
    shown = (plane for plane in planes if plane.mask.any())
    for number, plane in enumerate(itertools.islice(shown, TEST_PLANES)):
        yield Sample(
            name=f"plane {number + 1}",
            patient=f"plane {number + 1}",
            image=(plane.image / 255.0).astype(np.float32),
            label_map=plane.mask.astype(np.uint8),
            known=None,
            padding=np.zeros(1, np.float32),
        )


def _score(checkpoint: Path) -> Iterator[ScoreRow]:
    model = load_scorable(checkpoint)
    for sample in held_out_planes():
        yield from evaluate_sample(model, sample, None, DECIDED)
