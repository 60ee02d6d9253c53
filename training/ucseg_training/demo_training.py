"""The demo model's training: the plan, and the description that goes into the checkpoint."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ucseg_runtime.manifest import Preprocessing
from ucseg_training.data.augment import AugmentSpec
from ucseg_training.data.case import Case, load_case, save_case
from ucseg_training.data.case_batches import CaseBatches, CaseSampling
from ucseg_training.demo_model import CLASSES, LABELS, POSTPROCESSING, PREPROCESSING, TILING, TRIO
from ucseg_training.errors import TrainingError
from ucseg_training.method.config import MethodConfig
from ucseg_training.observers import Observer
from ucseg_training.optimisation import Optimisation
from ucseg_training.precision import computes_in_bfloat16
from ucseg_training.settle import settle
from ucseg_training.trainer import train
from ucseg_training.training_plan import TrainingPlan

_LOG = logging.getLogger(__name__)

LABELLED = ("B", "C", "D")
_SECOND_PHASE = 1
_MADE_FOR_NAME = "made-for.json"
CASE_WEIGHTS = {"B": 0.42, "C": 0.18, "D": 0.28, "lung1": 0.06, "lung2": 0.06}

# Arterial, venous and no contrast agent, on a patient who was scanned in one of them.
ENHANCEMENT_HU = {
    LABELS["liver"]: (-15.0, 60.0),
    LABELS["aorta"]: (-60.0, 300.0),
    LABELS["heart"]: (-150.0, 150.0),
    LABELS["vertebrae"]: (-60.0, 120.0),
}

OPTIMISATION = Optimisation(
    kind="adamw",
    learning_rate=1.5e-3,
    schedule="cosine",
    warm_up=150,
    weight_decay=1e-4,
    gradient_norm=1.0,
    average_decay=0.995,
)

MODEL_SPEC: dict[str, object] = {
    "name": "torso-ct-demo",
    "version": "2.0.0",
    "licence": "Apache-2.0 for the weights; training images as named in the model card",
    "intended_use": "Demonstration and software tests on chest and abdominal CT of adults. Not for clinical use.",
    "modality": "CT",
    "dim": 3,
    "channels": 1,
    "classes": [item.model_dump(mode="json") for item in CLASSES],
    "activation": "softmax",
    "fusion": "upg",
    "default_precision": "bf16",
    "preprocessing": PREPROCESSING.model_dump(mode="json"),
    "tiling": TILING.model_dump(mode="json"),
    "postprocessing": POSTPROCESSING.model_dump(mode="json"),
    "provenance": {
        "method": "UC-Seg subnets and UPG, supervised on labelled and partially labelled CT (arXiv:2508.09014)",
        "labels": "TotalSegmentator network output and a threshold rule for lungs; no human contours",
        "patients": "B, C, D of totalsegmentator 2.18.0; lung1, lung2 of pyradiomics 3.0.1",
        "held_out": "A (LIDC-IDRI-0001)",
    },
    "quality": [],
}


@dataclass(frozen=True)
class DemoSchedule:
    """Lengths of the phases.

    Attributes:
        steps: Steps over which the learning rate falls, two tiles each.
        stop_after: Step to stop at before the schedule has ended; None for its end.
        settle_steps: Steps of the second phase, see `settle`.
    """

    steps: int = 1300
    stop_after: int | None = None
    settle_steps: int = 200


def demo_plan(schedule: DemoSchedule, seed: int = 42) -> TrainingPlan:
    """The plan of the demo model: labels alone, on both subnets and the fused output.

    Args:
        schedule: Lengths of the phases.
        seed: Of everything random.
    """
    return TrainingPlan(
        trio=TRIO,
        method=MethodConfig(
            total_steps=schedule.steps, pseudo_labels="none", use_ccp=False, use_mixing=False, dice="batch"
        ),
        optimisation=OPTIMISATION,
        steps=schedule.steps,
        stop_after=schedule.stop_after,
        seed=seed,
        precision="bf16" if computes_in_bfloat16() else "f32",
        model_spec=MODEL_SPEC,
    )


def demo_sampling(leave_out: str | None = None, seed: int = 42) -> CaseSampling:
    """How the tiles of the demo model, or of one fold of its validation, are drawn.

    Args:
        leave_out: Patient of `LABELLED` that is not trained on.
        seed: Of everything random.
    """
    return CaseSampling(
        tile_shape=TILING.tile_shape,
        num_classes=TRIO.num_classes,
        preprocessing=PREPROCESSING,
        augment=AugmentSpec(enhancement_hu=ENHANCEMENT_HU),
        labelled_weights={name: weight for name, weight in CASE_WEIGHTS.items() if name != leave_out},
        seed=seed,
    )


def prepared_cases(folder: Path, preprocessing: Preprocessing = PREPROCESSING) -> tuple[Case, ...]:
    """The demo's cases on the model grid, made once and kept in `folder`.

    Args:
        folder: One for each model grid and list of classes.
        preprocessing: Says which grid.

    Raises:
        InputError: The images cannot be fetched.
        TrainingError: The folder holds cases of another grid or of other classes.
    """
    names = tuple(CASE_WEIGHTS)
    made_for = {"classes": LABELS, "spacing_mm": list(preprocessing.spacing_mm or ())}
    record = folder / _MADE_FOR_NAME
    if record.is_file() and json.loads(record.read_text(encoding="utf-8")) != made_for:
        raise TrainingError(
            f"{folder.name} holds cases that were prepared for another grid or other classes.",
            hint="Remove that folder, or give another one.",
        )
    if not (record.is_file() and all((folder / f"{name}.npz").is_file() for name in names)):
        # Reading the packages needs nibabel and pynrrd; training from prepared cases does not.
        from ucseg_training.data.demo_cases import make_demo_cases

        _LOG.info("preparing %d patients", len(names))
        folder.mkdir(parents=True, exist_ok=True)
        for case in make_demo_cases(preprocessing):
            save_case(case, folder / f"{case.name}.npz")
        record.write_text(json.dumps(made_for) + "\n", encoding="utf-8")
    return tuple(load_case(folder / f"{name}.npz") for name in names)


def train_demo(
    folder: Path,
    schedule: DemoSchedule,
    leave_out: str | None = None,
    seed: int = 42,
    observers: Sequence[Observer] = (),
) -> Path:
    """Prepare the cases, train, let the UPG settle; returns the checkpoint. Continues a run that was interrupted."""
    cases = prepared_cases(folder.parent / "cases")
    plan, sampling = demo_plan(schedule, seed), demo_sampling(leave_out, seed)
    first_phase = train(CaseBatches(cases, sampling), plan, folder, observers=observers)
    others = CaseBatches(cases, replace(sampling, stream=_SECOND_PHASE))
    return settle(first_phase, others, schedule.settle_steps, folder, autocast=plan.precision == "bf16")
