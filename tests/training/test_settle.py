"""The second phase changes the UPG alone, and makes it good with the statistics that it is deployed with."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.training_phantom import TINY, block_case, tiny_model_spec, tiny_spec
from ucseg_training.checkpoint import load_checkpoint
from ucseg_training.data.augment import AugmentSpec
from ucseg_training.errors import TrainingError
from ucseg_training.loop import TrainingPlan, draw_batch, train
from ucseg_training.losses import supervised_loss
from ucseg_training.nets import DualNet
from ucseg_training.settle import settle

SPEC = tiny_spec()
PLAN = TrainingPlan(
    trio=TINY,
    preprocessing=SPEC.preprocessing,
    tiling=SPEC.tiling,
    augment=AugmentSpec(enhancement_hu={1: (-50.0, 50.0)}),
    case_weights={"P": 1.0},
    steps=20,
    warm_up=2,
    model_spec=tiny_model_spec(),
)
CASES = [block_case("P")]


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def first_phase(tmp_path: Path) -> Path:
    return train(CASES, PLAN, tmp_path)


def deployed_loss(net: DualNet) -> float:
    """Mean loss of the fused output in eval mode over tiles that no training drew."""
    losses = []
    for tile in range(6):
        image, target = draw_batch(CASES, PLAN, np.random.default_rng((99, tile)))
        with torch.no_grad():
            losses.append(supervised_loss(net.eval()(image).fused_logits, target, progress=1.0).item())
    return float(np.mean(losses))


def test_settling_lowers_the_loss_of_the_deployed_fused_output(first_phase: Path, tmp_path: Path) -> None:
    before = deployed_loss(load_checkpoint(first_phase).net)

    settled = settle(first_phase, CASES, PLAN, 30, tmp_path)

    assert deployed_loss(load_checkpoint(settled).net) < before


def test_settling_leaves_both_subnets_as_they_are(first_phase: Path, tmp_path: Path) -> None:
    before = load_checkpoint(first_phase).net.state_dict()

    after = load_checkpoint(settle(first_phase, CASES, PLAN, 3, tmp_path)).net.state_dict()

    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed
    assert all(name.startswith("generate_pseudo_simple.") for name in changed)


def test_settling_again_gives_the_same_weights(first_phase: Path, tmp_path: Path) -> None:
    once, twice = (load_checkpoint(settle(first_phase, CASES, PLAN, 3, tmp_path)).net.state_dict() for _ in range(2))

    assert all(torch.equal(once[name], twice[name]) for name in once)


def test_settling_without_a_case_of_the_plan_is_refused(first_phase: Path, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="not there"):
        settle(first_phase, CASES, replace(PLAN, case_weights={"Q": 1.0}), 3, tmp_path)
