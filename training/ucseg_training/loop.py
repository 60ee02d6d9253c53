"""Supervised training of a trio on a few partially labelled cases; seeded and resumable."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor, nn

from ucseg_runtime.manifest import Preprocessing, Tiling
from ucseg_runtime.preprocess import apply_intensity
from ucseg_training.checkpoint import (
    TrainingState,
    differences,
    load_training_state,
    optimizer_tensors,
    restore_optimizer,
    save_checkpoint,
    save_training_state,
)
from ucseg_training.data.augment import AugmentSpec, TrainingTile, draw_tile
from ucseg_training.data.case import Case
from ucseg_training.errors import TrainingError
from ucseg_training.losses import PartialTarget, partial_target, supervised_loss
from ucseg_training.nets import DualNet, TrioConfig, init_kaiming

_LOG = logging.getLogger(__name__)

STATE_NAME = "state.safetensors"
CHECKPOINT_NAME = "trio.safetensors"
_STEPS_PER_LOG_LINE = 50

Losses: TypeAlias = tuple[float, float, float]
"""Of subnet A, subnet B and the fused output."""


@dataclass(frozen=True)
class TrainingPlan:
    """How a trio is trained.

    Attributes:
        trio: Sizes of the networks.
        preprocessing: Intensity rule and padding, as deployed.
        tiling: Tile shape, as deployed.
        augment: Ranges of variation.
        case_weights: How often each case is drawn, by name, relative to the others.
        steps: Number of optimiser steps.
        tiles_per_step: Tiles per optimiser step. Of two, each takes half the time of a single one on a CPU: torch runs
            the deeper 3D convolutions of a single tile by a slow path.
        autocast: Whether the networks run in bfloat16; pays where the processor computes in it.
        learning_rate: Largest learning rate, reached after the warm-up; falls to 1 % along half a cosine.
        warm_up: Steps of linear warm-up. The V-Net has no normalisation and diverges without it.
        weight_decay: Of AdamW.
        gradient_norm: Largest gradient norm, for subnet A, subnet B and the UPG separately.
        average_decay: Decay of the running average of the weights, which is what is shipped.
        seed: Of everything random.
        checkpoint_every: Steps between two states on disk.
        stop_after: Step to stop at before the schedule has ended; None for its end.
        model_spec: JSON-able description of the model, stored in the checkpoint as it is.
    """

    trio: TrioConfig
    preprocessing: Preprocessing
    tiling: Tiling
    augment: AugmentSpec
    case_weights: dict[str, float]
    steps: int
    tiles_per_step: int = 2
    learning_rate: float = 1.5e-3
    warm_up: int = 150
    weight_decay: float = 1e-4
    gradient_norm: float = 1.0
    average_decay: float = 0.995
    autocast: bool = False
    seed: int = 42
    checkpoint_every: int = 200
    stop_after: int | None = None
    model_spec: dict[str, object] = field(default_factory=dict)

    @property
    def last_step(self) -> int:
        """Steps that a finished run has done."""
        return self.steps if self.stop_after is None else min(self.steps, self.stop_after)


def train(cases: Sequence[Case], plan: TrainingPlan, folder: Path) -> Path:
    """Train until the plan's last step, continuing from the state in `folder` if there is one.

    Args:
        cases: Training cases; those without a weight in the plan are not used.
        plan: Everything that fixes the run. The same plan on the same machine and thread count gives the same weights,
            interrupted or not.
        folder: Receives the state and the checkpoint; the figures of the run go to the logger.

    Returns:
        Path of the finished checkpoint (running average of the weights).

    Raises:
        TrainingError: A case of the plan is not there, the state in `folder` does not fit the plan, or the loss is not
            finite.
        ModelError: The state in `folder` cannot be read.
        OutputError: State or checkpoint cannot be written.
    """
    chosen = cases_of(plan, cases)
    folder.mkdir(parents=True, exist_ok=True)
    run = _Run.start(plan, folder)
    started = time.monotonic()
    losses: list[Losses] = []
    while run.step < plan.last_step:
        losses.append(run.advance(chosen))
        if run.step % _STEPS_PER_LOG_LINE == 0:
            a, b, fused = np.mean(losses, axis=0)
            rate = (time.monotonic() - started) / len(losses)
            _LOG.info("step %d: loss A %.3f, B %.3f, fused %.3f, %.2f s a step", run.step, a, b, fused, rate)
            started, losses = time.monotonic(), []
        if run.step % plan.checkpoint_every == 0 or run.step == plan.last_step:
            run.save(folder)
    return folder / CHECKPOINT_NAME


class _Run:
    """Networks, optimiser and running average in mid-training."""

    def __init__(self, plan: TrainingPlan) -> None:
        torch.manual_seed(plan.seed)
        self.plan = plan
        self.step = 0
        self.net = DualNet(plan.trio)
        init_kaiming(self.net.subnet_b)
        # The map that scales both subnets' logits starts at one instead of noise around zero, so that the head sees
        # logits from the first step on; with noise the fused output learnt nothing in the first 150 steps.
        nn.init.ones_(self.net.upg.cross_attn.to_out[0].get_parameter("bias"))
        # 40 % faster on CPU for 3D convolutions in bfloat16 than the default layout, with the same result.
        self.net.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]  # missing from torch's stubs
        self.optimizer = torch.optim.AdamW(
            self.net.parameters(), lr=plan.learning_rate, weight_decay=plan.weight_decay, betas=(0.9, 0.99)
        )
        self.average = {name: tensor.detach().clone() for name, tensor in self.net.state_dict().items()}

    @classmethod
    def start(cls, plan: TrainingPlan, folder: Path) -> _Run:
        """A new run, or the one whose state lies in `folder`."""
        run = cls(plan)
        path = folder / STATE_NAME
        if path.is_file():
            run._restore(load_training_state(path))
            _LOG.info("continuing after step %d", run.step)
        return run

    def _restore(self, state: TrainingState) -> None:
        if state.step > self.plan.last_step:
            raise _other_run(f"it has done {state.step} steps; the plan ends after {self.plan.last_step}")
        for tensors in (state.weights, state.average):
            if different := differences(tensors, self.net.state_dict()):
                raise _other_run(f"its networks are others; tensors {different}")
        self.step = state.step
        self.net.load_state_dict(state.weights)
        self.average = state.average
        restore_optimizer(self.optimizer, state.optimizer)

    def save(self, folder: Path) -> None:
        """The averaged weights as a checkpoint, and the state to go on from.

        In this order: a run that is interrupted in between repeats its last steps, and never counts as finished without
        its last checkpoint.
        """
        plan = self.plan
        save_checkpoint(folder / CHECKPOINT_NAME, self.average, plan.trio, self.step, plan.model_spec)
        state = TrainingState(self.step, self.net.state_dict(), self.average, optimizer_tensors(self.optimizer))
        save_training_state(folder / STATE_NAME, state)

    def advance(self, cases: Sequence[Case]) -> Losses:
        """One optimiser step; returns its losses.

        All randomness is derived from the seed and the step, so a continued run draws what an undisturbed one would.

        Raises:
            TrainingError: The loss is not finite; nothing was learnt from this step.
        """
        rng = np.random.default_rng((self.plan.seed, self.step))
        torch.manual_seed(int(rng.integers(2**62)))
        image, target = draw_batch(cases, self.plan, rng)
        self.net.train()
        with torch.autocast("cpu", torch.bfloat16, enabled=self.plan.autocast):
            output = self.net(image.to(memory_format=torch.channels_last_3d))
        progress = self.step / self.plan.steps
        loss_a, loss_b, loss_fused = (
            supervised_loss(logits, target, progress)
            for logits in (output.logits_a, output.logits_b, output.fused_logits)
        )
        losses = (loss_a.item(), loss_b.item(), loss_fused.item())
        total = 0.5 * (loss_a + loss_b) + loss_fused
        if not torch.isfinite(total):
            raise _diverged(self.step, losses)
        self._update(total)
        self.step += 1
        return losses

    def _update(self, total: Tensor) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = _learning_rate(self.plan, self.step)
        self.optimizer.zero_grad(set_to_none=True)
        total.backward()  # type: ignore[no-untyped-call]  # torch's own
        for part in (self.net.subnet_a, self.net.subnet_b, self.net.upg):
            nn.utils.clip_grad_norm_(part.parameters(), self.plan.gradient_norm)
        self.optimizer.step()
        # A short memory at first, or the average would hold on to the random start.
        decay = min(self.plan.average_decay, (1 + self.step) / (10 + self.step))
        for name, tensor in self.net.state_dict().items():
            if tensor.is_floating_point():
                self.average[name].lerp_(tensor, 1.0 - decay)
            else:
                self.average[name].copy_(tensor)


def cases_of(plan: TrainingPlan, cases: Sequence[Case]) -> list[Case]:
    """The cases that a plan trains on; raises TrainingError where one of them is missing."""
    chosen = [case for case in cases if plan.case_weights.get(case.name, 0.0) > 0.0]
    wanted = {name for name, weight in plan.case_weights.items() if weight > 0.0}
    missing = wanted - {case.name for case in chosen}
    if missing or not wanted:
        raise TrainingError(
            f"the plan names {len(wanted)} cases to train on; {len(missing)} of them are not there: "
            f"{', '.join(sorted(missing)) or 'none'}."
        )
    return chosen


def _other_run(reason: str) -> TrainingError:
    return TrainingError(f"the run in this folder is not one of this plan: {reason}.", hint="Use an empty folder.")


def _diverged(step: int, losses: Losses) -> TrainingError:
    a, b, fused = losses
    return TrainingError(
        f"step {step}: the loss is not finite: subnet A {a:.4g}, subnet B {b:.4g}, fused {fused:.4g}.",
        hint="Lower the learning rate or lengthen the warm-up. The last state in the folder is from before this step.",
    )


def draw_batch(cases: Sequence[Case], plan: TrainingPlan, rng: np.random.Generator) -> tuple[Tensor, PartialTarget]:
    """Network input, float32, (tiles, 1, z, y, x), and what is known of it."""
    tiles = [_draw(cases, plan, rng) for _ in range(plan.tiles_per_step)]
    image = torch.cat([_network_input(tile, plan.preprocessing) for tile in tiles])
    label_map, known = torch.cat([tile.label_map for tile in tiles]), torch.cat([tile.known for tile in tiles])
    return image, partial_target(label_map, known, plan.trio.num_classes)


def _draw(cases: Sequence[Case], plan: TrainingPlan, rng: np.random.Generator) -> TrainingTile:
    weights = np.array([plan.case_weights[case.name] for case in cases])
    case = cases[int(rng.choice(len(cases), p=weights / weights.sum()))]
    return draw_tile(case, plan.tiling.tile_shape, plan.augment, plan.preprocessing.padding_value, rng)


def _network_input(tile: TrainingTile, preprocessing: Preprocessing) -> Tensor:
    return torch.from_numpy(apply_intensity(tile.voxels.numpy(), preprocessing.intensity))


def _learning_rate(plan: TrainingPlan, step: int) -> float:
    if step < plan.warm_up:
        return plan.learning_rate * (step + 1) / plan.warm_up
    fraction = (step - plan.warm_up) / max(1, plan.steps - plan.warm_up)
    return plan.learning_rate * (0.01 + 0.99 * 0.5 * (1.0 + math.cos(math.pi * min(1.0, fraction))))
