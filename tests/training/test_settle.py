"""The second phase changes the UPG alone, and makes it good with the statistics that it is deployed with."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.training_phantom import TINY, block_case, tiny_model_spec, tiny_spec
from ucseg_training.checkpoint import load_checkpoint
from ucseg_training.data.augment import AugmentSpec
from ucseg_training.data.case_batches import CaseBatches, CaseSampling
from ucseg_training.errors import TrainingError
from ucseg_training.method.config import MethodConfig
from ucseg_training.nets import DualNet
from ucseg_training.optimisation import Optimisation
from ucseg_training.settle import deployed_loss, settle
from ucseg_training.trainer import train
from ucseg_training.training_plan import TrainingPlan

SPEC = tiny_spec()
PLAN = TrainingPlan(
    trio=TINY,
    method=MethodConfig(total_steps=20, use_ccp=False, use_mixing=False, pseudo_labels="none", dice="batch"),
    optimisation=Optimisation(
        kind="adamw", learning_rate=1.5e-3, schedule="cosine", warm_up=2, gradient_norm=1.0, average_decay=0.99
    ),
    steps=20,
    model_spec=tiny_model_spec(),
)
SAMPLING = CaseSampling(
    tile_shape=SPEC.tiling.tile_shape,
    num_classes=3,
    preprocessing=SPEC.preprocessing,
    augment=AugmentSpec(enhancement_hu={1: (-50.0, 50.0)}),
    labelled_weights={"P": 1.0},
)
CASES = [block_case("P")]
FIRST, SECOND, UNSEEN = (CaseBatches(CASES, replace(SAMPLING, stream=stream)) for stream in range(3))


@pytest.fixture
def first_phase(tmp_path: Path) -> Path:
    return train(FIRST, PLAN, tmp_path)


def loss_of_unseen_tiles(net: DualNet) -> float:
    """Mean loss of the fused output in eval mode over tiles that no training drew."""
    losses = []
    for number in range(3):
        batch = UNSEEN.draw(number)
        with torch.no_grad():
            output = net.eval()(batch.labelled)
            losses.append(deployed_loss(net, output.logits_a, output.logits_b, batch.target).item())
    return float(np.mean(losses))


def test_settling_lowers_the_loss_of_the_deployed_fused_output(first_phase: Path, tmp_path: Path) -> None:
    before = loss_of_unseen_tiles(load_checkpoint(first_phase).net)

    settled = settle(first_phase, SECOND, 30, tmp_path)

    assert loss_of_unseen_tiles(load_checkpoint(settled).net) < before


def test_settling_leaves_both_subnets_as_they_are(first_phase: Path, tmp_path: Path) -> None:
    before = load_checkpoint(first_phase).net.state_dict()

    after = load_checkpoint(settle(first_phase, SECOND, 3, tmp_path)).net.state_dict()

    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed
    assert all(name.startswith("generate_pseudo_simple.") for name in changed)


def test_settling_again_gives_the_same_weights(first_phase: Path, tmp_path: Path) -> None:
    once, twice = (load_checkpoint(settle(first_phase, SECOND, 3, tmp_path)).net.state_dict() for _ in range(2))

    assert all(torch.equal(once[name], twice[name]) for name in once)


def test_settling_on_voxels_that_are_not_numbers_is_refused(first_phase: Path, tmp_path: Path) -> None:
    broken = [replace(block_case("P"), voxels=np.full((24, 40, 42), np.nan, np.float32))]
    with pytest.raises(TrainingError, match="settling, step 0: the loss of the fused output is not finite"):
        settle(first_phase, CaseBatches(broken, SAMPLING), 3, tmp_path)
