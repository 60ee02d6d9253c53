"""Second phase: the UPG learns to work with fixed normalisation statistics, as it is deployed.

With one tile a step, the fusion head's BatchNorm sees the statistics of that tile while it trains, and their running
average when it is deployed. The two differ so much from tile to tile that the fused output can lose whole classes. So
the statistics are measured over many training tiles with the finished subnets and held, and the UPG is trained on with
them while both subnets stay as they are.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from ucseg_training.checkpoint import load_checkpoint, save_checkpoint
from ucseg_training.data.case import Case
from ucseg_training.errors import TrainingError
from ucseg_training.loop import TrainingPlan, cases_of, draw_batch
from ucseg_training.losses import PartialTarget, supervised_loss
from ucseg_training.nets import DualNet

_LOG = logging.getLogger(__name__)

SETTLED_NAME = "settled.safetensors"
_STATISTICS_TILES = 60
_LEARNING_RATE = 1e-3
# Apart from the seeds of the first phase, so that other tiles are drawn.
_STREAM = 1


def settle(checkpoint: Path, cases: Sequence[Case], plan: TrainingPlan, steps: int, folder: Path) -> Path:
    """Measure the statistics, train the UPG on with them, and write the trio.

    Args:
        checkpoint: What the first phase wrote.
        cases: Its cases; those that the plan does not name are not used.
        plan: Its plan: tiles, variation, seed.
        steps: Optimiser steps of this phase.
        folder: Receives the checkpoint.

    Returns:
        Path of the checkpoint whose UPG has settled; subnets are those of `checkpoint`, bit for bit.

    Raises:
        TrainingError: A case of the plan is not there, or the loss is not finite.
    """
    loaded = load_checkpoint(checkpoint)
    net = loaded.net
    chosen = cases_of(plan, cases)
    _measure_statistics(net, chosen, plan)
    optimizer = torch.optim.AdamW(net.upg.parameters(), lr=_LEARNING_RATE, weight_decay=plan.weight_decay)
    losses = []
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = _LEARNING_RATE * 0.5 * (1.0 + math.cos(math.pi * step / steps))
        losses.append(_advance(net, optimizer, chosen, plan, step))
        if (step + 1) % 50 == 0:
            _LOG.info("settling, step %d: loss fused %.3f", step + 1, np.mean(losses[-50:]))
    path = folder / SETTLED_NAME
    save_checkpoint(path, net.state_dict(), net.config, loaded.step, loaded.model_spec)
    return path


def _measure_statistics(net: DualNet, cases: Sequence[Case], plan: TrainingPlan) -> None:
    """Mean and variance of every BatchNorm of the UPG, averaged over training tiles."""
    norms = [module for module in net.upg.modules() if isinstance(module, nn.BatchNorm2d | nn.BatchNorm3d)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a plain average over all tiles
        norm.train()
    for tile in range(_STATISTICS_TILES):
        logits_a, logits_b, _ = _subnets(net, cases, plan, (plan.seed, _STREAM, tile))
        with torch.no_grad():
            net.upg(logits_a, logits_b)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
        norm.eval()


def _advance(
    net: DualNet, optimizer: torch.optim.Optimizer, cases: Sequence[Case], plan: TrainingPlan, step: int
) -> float:
    logits_a, logits_b, target = _subnets(net, cases, plan, (plan.seed, _STREAM, _STATISTICS_TILES + step))
    loss = supervised_loss(net.upg(logits_a, logits_b), target, progress=1.0)
    if not torch.isfinite(loss):
        raise TrainingError(f"settling, step {step}: the loss of the fused output is not finite.")
    optimizer.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]  # torch's own
    nn.utils.clip_grad_norm_(net.upg.parameters(), plan.gradient_norm)
    optimizer.step()
    return float(loss.detach())


def _subnets(
    net: DualNet, cases: Sequence[Case], plan: TrainingPlan, seed: tuple[int, ...]
) -> tuple[Tensor, Tensor, PartialTarget]:
    """Logits of both subnets, without gradient, and the target of a tile that depends on `seed` alone."""
    image, target = draw_batch(cases, plan, np.random.default_rng(seed))
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=plan.autocast):
        fast = image.to(memory_format=torch.channels_last_3d)
        logits_a, logits_b = net.subnet_a(fast).logits, net.subnet_b(fast).logits
    return logits_a.float(), logits_b.float(), target
