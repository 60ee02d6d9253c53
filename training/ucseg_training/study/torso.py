"""The study on CT: organs of the torso, coarser than the demo model so that twelve runs fit into hours."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from ucseg_training.batches import BatchSource
from ucseg_training.data.augment import AugmentSpec
from ucseg_training.data.case import Case
from ucseg_training.data.case_batches import CaseBatches, CaseSampling
from ucseg_training.demo_model import CLASSES, PREPROCESSING, TILING, TRIO
from ucseg_training.demo_training import CASE_WEIGHTS, ENHANCEMENT_HU, LABELLED, MODEL_SPEC, OPTIMISATION
from ucseg_training.evaluate import evaluate
from ucseg_training.method.config import MethodConfig
from ucseg_training.precision import computes_in_bfloat16
from ucseg_training.scoring import ScoreRow
from ucseg_training.study.design import Study, StudyRun
from ucseg_training.training_plan import TrainingPlan

UNLABELLED = ("lung1", "lung2")
TILE_SHAPE = (48, 48, 48)
STUDY_PREPROCESSING = PREPROCESSING.model_copy(update={"spacing_mm": (4.5, 4.5, 4.5)})
STUDY_TILING = TILING.model_copy(update={"tile_shape": TILE_SHAPE})


def torso_study(cases: Sequence[Case], test_case: Case) -> Study:
    """Patients B, C, D labelled, two CTs unlabelled.

    Args:
        cases: Training patients on the grid of `STUDY_PREPROCESSING`.
        test_case: Scored on, never trained on.
    """

    def batches(seed: int, unlabelled: bool, stream: int) -> BatchSource:
        return CaseBatches(cases, _sampling(seed, unlabelled, stream))

    def score(checkpoint: Path) -> Iterator[ScoreRow]:
        return evaluate(checkpoint, [test_case], surfaces=False)

    return Study(
        name="torso",
        classes=tuple(item.name for item in CLASSES),
        # Lungs and vertebrae have several parts, which forbids the largest component.
        whole=MethodConfig(dice="batch", largest_component=False),
        plan=_plan,
        batches=batches,
        score=score,
    )


def _plan(run: StudyRun, method: MethodConfig) -> TrainingPlan:
    return TrainingPlan(
        trio=replace(TRIO, tile_shape=TILE_SHAPE),
        method=method,
        optimisation=replace(OPTIMISATION, warm_up=max(1, run.steps // 20)),
        steps=run.steps,
        seed=run.seed,
        precision="bf16" if computes_in_bfloat16() else "f32",
        checkpoint_every=100,
        model_spec=MODEL_SPEC
        | {
            "name": f"study-{run.variant}",
            "preprocessing": STUDY_PREPROCESSING.model_dump(mode="json"),
            "tiling": STUDY_TILING.model_dump(mode="json"),
        },
    )


def _sampling(seed: int, unlabelled: bool, stream: int) -> CaseSampling:
    """Two labelled tiles a batch, and two unlabelled ones where the method looks at them."""
    return CaseSampling(
        tile_shape=TILE_SHAPE,
        num_classes=TRIO.num_classes,
        preprocessing=STUDY_PREPROCESSING,
        augment=AugmentSpec(enhancement_hu=ENHANCEMENT_HU),
        labelled_weights={name: CASE_WEIGHTS[name] for name in LABELLED},
        unlabelled_weights=dict.fromkeys(UNLABELLED, 1.0) if unlabelled else {},
        seed=seed,
        stream=stream,
    )
