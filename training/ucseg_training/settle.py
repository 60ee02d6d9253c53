"""Second phase: the UPG learns to work with fixed normalisation statistics, as it is deployed.

With few tiles a step, the fusion head's BatchNorm sees the statistics of those tiles while it trains, and their running
average when it is deployed. The two differ so much from tile to tile that the fused output can lose whole classes. So
the statistics are measured over many training tiles with the finished subnets and held, and the UPG is trained on with
them while both subnets stay as they are.
"""

from __future__ import annotations

import logging
import math
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from ucseg_training.batches import BatchSource
from ucseg_training.checkpoint import load_checkpoint, save_checkpoint
from ucseg_training.errors import TrainingError
from ucseg_training.method.losses import Readout, supervised_parts
from ucseg_training.method.targets import PartialTarget
from ucseg_training.nets import DualNet

_LOG = logging.getLogger(__name__)

SETTLED_NAME = "settled.safetensors"
_STATISTICS_BATCHES = 30
_LEARNING_RATE = 1e-3
_WEIGHT_DECAY = 1e-4
_GRADIENT_NORM = 1.0


def settle(checkpoint: Path, batches: BatchSource, steps: int, folder: Path, *, autocast: bool = False) -> Path:
    """Measure the statistics, train the UPG on with them, and write the trio.

    Args:
        checkpoint: What the first phase wrote.
        batches: Labelled training tiles, other ones than those of the first phase.
        steps: Optimiser steps of this phase.
        folder: Receives the checkpoint.
        autocast: Whether the subnets run in bfloat16.

    Returns:
        Path of the checkpoint whose UPG has settled; subnets are those of `checkpoint`, bit for bit.

    Raises:
        TrainingError: The loss is not finite.
    """
    loaded = load_checkpoint(checkpoint)
    net = loaded.net
    _measure_statistics(net, batches, autocast)
    optimizer = torch.optim.AdamW(net.upg.parameters(), lr=_LEARNING_RATE, weight_decay=_WEIGHT_DECAY)
    losses = []
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = _LEARNING_RATE * 0.5 * (1.0 + math.cos(math.pi * step / steps))
        losses.append(_advance(net, optimizer, _subnets(net, batches, _STATISTICS_BATCHES + step, autocast), step))
        if (step + 1) % 50 == 0:
            _LOG.info("settling, step %d: loss fused %.3f", step + 1, np.mean(losses[-50:]))
    path = folder / SETTLED_NAME
    save_checkpoint(path, net.state_dict(), net.config, loaded.step, loaded.model_spec, loaded.plan)
    return path


def _measure_statistics(net: DualNet, batches: BatchSource, autocast: bool) -> None:
    """Mean and variance of every BatchNorm of the UPG, averaged over training tiles."""
    norms = [module for module in net.upg.modules() if isinstance(module, nn.BatchNorm2d | nn.BatchNorm3d)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a plain average over all tiles
        norm.train()
    for number in range(_STATISTICS_BATCHES):
        logits_a, logits_b, _ = _subnets(net, batches, number, autocast)
        with torch.no_grad():
            net.upg(logits_a, logits_b)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
        norm.eval()


def _advance(
    net: DualNet, optimizer: torch.optim.Optimizer, subnets: tuple[Tensor, Tensor, PartialTarget], step: int
) -> float:
    logits_a, logits_b, target = subnets
    loss = deployed_loss(net, logits_a, logits_b, target)
    if not torch.isfinite(loss):
        raise TrainingError(f"settling, step {step}: the loss of the fused output is not finite.")
    optimizer.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]  # torch's own
    nn.utils.clip_grad_norm_(net.upg.parameters(), _GRADIENT_NORM)
    optimizer.step()
    return float(loss.detach())


def deployed_loss(net: DualNet, logits_a: Tensor, logits_b: Tensor, target: PartialTarget) -> Tensor:
    """Supervised loss of the fused output, as it is at the end of a schedule."""
    readout = Readout.of(net.upg(logits_a, logits_b), net.config.activation)
    parts = supervised_parts(readout, target, weight=1.0, rule="batch", axis_order="zyx")
    return torch.stack(list(parts.values())).sum()


def _subnets(net: DualNet, batches: BatchSource, number: int, autocast: bool) -> tuple[Tensor, Tensor, PartialTarget]:
    """Logits of both subnets, without gradient, and the target of the batch with this number."""
    batch = batches.draw(number)
    image = batch.labelled.to(memory_format=torch.channels_last_3d if net.config.dim == 3 else torch.channels_last)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        logits_a, logits_b = net.subnet_a(image).logits, net.subnet_b(image).logits
    return logits_a.float(), logits_b.float(), batch.target
