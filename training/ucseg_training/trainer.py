"""The training loop: any source of batches, any form of the method; seeded, resumable, data-parallel."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ucseg_training.batches import Batch, BatchSource
from ucseg_training.checkpoint import (
    TrainingState,
    differences,
    load_training_state,
    optimizer_tensors,
    restore_optimizer,
    save_checkpoint,
    save_training_state,
)
from ucseg_training.distributed import Workers
from ucseg_training.errors import TrainingError
from ucseg_training.method.config import Mode
from ucseg_training.method.objective import UcSegObjective
from ucseg_training.method.targets import PartialTarget
from ucseg_training.nets import DualNet, TrioConfig, init_kaiming
from ucseg_training.observers import Observer, draw_panel
from ucseg_training.optimisation import make_optimizer
from ucseg_training.precision import require_sound_bfloat16
from ucseg_training.training_plan import TrainingPlan

STATE_NAME = "state.safetensors"
CHECKPOINT_NAME = "trio.safetensors"

Validate = Callable[[DualNet], float]
"""Mean Dice of a trio in eval mode over the validation cases, in [0, 1]."""

NOT_CHOSEN = "none: the weights of the last step"
"""What a checkpoint says of ``weights_chosen_on`` where there was no validation."""


def train(
    batches: BatchSource,
    plan: TrainingPlan,
    folder: Path,
    *,
    device: torch.device | None = None,
    workers: Workers | None = None,
    observers: Sequence[Observer] = (),
    validate: Validate | None = None,
) -> Path:
    """Train until the plan's last step, continuing from the state in `folder` if there is one.

    Args:
        batches: Where the batches come from; of a data-parallel run, those of this worker.
        plan: Everything else that fixes the run. The same plan and batches on the same machine and thread count give
            the same weights, interrupted or not.
        folder: Receives the state and the checkpoint.
        device: Where the networks run; the CPU when not given.
        workers: The processes of a data-parallel run; this one alone when not given.
        observers: Are told what happens.
        validate: Scores the trio; the best weights so far are kept and are what the checkpoint holds in the end.

    Returns:
        Path of the finished checkpoint: the best weights where there is a validation, else the running average where
        there is one, else the last weights.

    Raises:
        TrainingError: The state in `folder` does not fit the plan, or a loss or gradient is not finite.
        ModelError: The state in `folder` cannot be read.
        OutputError: State or checkpoint cannot be written.
    """
    workers = workers or Workers()
    folder.mkdir(parents=True, exist_ok=True)
    run = Run.start(plan, batches, folder, device or torch.device("cpu"), workers)
    while run.step < plan.last_step:
        terms, rate = run.advance()
        for observer in observers:
            observer.stepped(run.step, terms, rate)
        if validate is not None and plan.validate_every and run.step % plan.validate_every == 0:
            run.validate(validate, observers)
        if run.step % plan.checkpoint_every == 0 or run.step == plan.last_step:
            run.save(folder)
    return folder / CHECKPOINT_NAME


class Run:
    """Networks, optimiser, queues and running average in mid-training.

    Args:
        plan: What fixes the run.
        batches: Where batches come from.
        device: Where the networks run.
        workers: The processes of the run.
    """

    def __init__(self, plan: TrainingPlan, batches: BatchSource, device: torch.device, workers: Workers) -> None:
        if plan.precision == "bf16" and device.type == "cpu":
            require_sound_bfloat16(plan.trio)
        torch.manual_seed(plan.seed)
        self.plan = plan
        self.step = 0
        self._batches = batches
        self._device = device
        self._workers = workers
        self._digest = plan.digest(batches.describe())
        self.net = new_trio(plan.trio, plan.method.mode).to(device)
        self._net_format(self.net)
        self._objective = UcSegObjective(plan.trio, plan.method, torch.Generator().manual_seed(plan.seed)).to(device)
        self._stepper: nn.Module = _Forward(self.net, self._objective, plan.precision)
        if workers.count > 1:
            # The mixed batch skips the UPG and a term may be skipped, so not every weight has a gradient in every pass.
            self._stepper = DistributedDataParallel(self._stepper, find_unused_parameters=True)
        self._optimizer = make_optimizer(self.net.parameters(), plan.optimisation)
        self._average: DualNet | None = None
        if plan.optimisation.average_decay is not None:
            self._average = copy.deepcopy(self.net).requires_grad_(False)
        self._best: dict[str, Tensor] = {}
        self._best_score = math.nan

    @classmethod
    def start(
        cls, plan: TrainingPlan, batches: BatchSource, folder: Path, device: torch.device, workers: Workers
    ) -> Run:
        """A new run, or the one whose state lies in `folder`. Raises as `train` does."""
        run = cls(plan, batches, device, workers)
        path = folder / STATE_NAME
        if path.is_file():
            run._restore(load_training_state(path))
        return run

    def _net_format(self, net: DualNet) -> None:
        # Convolutions of a CPU take 20 to 40 % less time in this layout than in the default one, with the same result.
        self._format = torch.channels_last_3d if self.plan.trio.dim == 3 else torch.channels_last
        net.to(memory_format=self._format)  # type: ignore[call-overload]  # missing from torch's stubs

    def _restore(self, state: TrainingState) -> None:
        if state.step > self.plan.last_step:
            raise _other_run(f"it has done {state.step} steps; the plan ends after {self.plan.last_step}")
        if different := differences(state.weights, self.net.state_dict()):
            raise _other_run(f"its networks are others; tensors {different}")
        if state.plan_digest != self._digest:
            raise _other_run("it was made with other options or other data")
        self.step = state.step
        self.net.load_state_dict(state.weights)
        if self._average is not None:
            self._average.load_state_dict(state.average)
        self._objective.restore(state.objective)
        restore_optimizer(self._optimizer, state.optimizer)
        self._best, self._best_score = state.best, state.best_score

    def save(self, folder: Path) -> None:
        """The finished weights as a checkpoint, and the state to go on from; by the first worker alone.

        In this order: a run that is interrupted in between repeats its last steps, and never counts as finished without
        its last checkpoint.
        """
        if not self._workers.is_first:
            return
        plan = self.plan
        average = self._average.state_dict() if self._average is not None else {}
        chosen = self._best or average or self.net.state_dict()
        model_spec = plan.model_spec if self._best else _without_choice(plan.model_spec)
        save_checkpoint(folder / CHECKPOINT_NAME, _on_cpu(chosen), plan.trio, self.step, model_spec, self._digest)
        state = TrainingState(
            step=self.step,
            plan_digest=self._digest,
            weights=_on_cpu(self.net.state_dict()),
            average=_on_cpu(average),
            optimizer=_on_cpu(optimizer_tensors(self._optimizer)),
            objective=_on_cpu(self._objective.state()),
            best=self._best,
            best_score=self._best_score,
        )
        save_training_state(folder / STATE_NAME, state)

    def advance(self) -> tuple[dict[str, Tensor], float]:
        """One optimiser step.

        All randomness is derived from the seed, the step and the worker, so a continued run draws what an undisturbed
        one would.

        Returns:
            Every term of the loss, detached, mean over the accumulated batches; and the learning rate.

        Raises:
            TrainingError: A term of the loss or a gradient is not finite; nothing was learnt from this step.
        """
        plan = self.plan
        generator = torch.Generator().manual_seed(self._seed_of_step())
        torch.manual_seed(self._seed_of_step())
        rate = plan.optimisation.rate_at(self.step, plan.steps)
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        self._optimizer.zero_grad(set_to_none=True)
        self.net.train()
        count = plan.optimisation.accumulate
        passes = []
        for index in range(count):
            batch = self._batches.draw(self.step * count + index)
            with self._synchronised(index == count - 1), _out_of_memory_said(self.step):
                terms = self._stepper(self._placed(batch), self.step, generator, self._teacher)
                (terms["total"] / count).backward()
            passes.append({name: value.detach() for name, value in terms.items()})
        self._clip()
        self._optimizer.step()
        self._follow()
        self.step += 1
        return {name: torch.stack([found[name] for found in passes]).mean() for name in passes[0]}, rate

    def _seed_of_step(self) -> int:
        """Another one for every step and worker."""
        words = np.random.SeedSequence((self.plan.seed, self.step, self._workers.rank)).generate_state(1, np.uint64)
        return int(words[0] >> np.uint64(1))

    @property
    def _teacher(self) -> DualNet | None:
        return self._average if self.plan.method.pseudo_labels == "teacher" else None

    def validate(self, validate: Validate, observers: Sequence[Observer]) -> None:
        """Score the weights that would be shipped, and keep them if they are the best so far; first worker only."""
        if not self._workers.is_first:
            return
        candidate = (self._average or self.net).eval()
        score = validate(candidate)
        panel_batch = self._placed(self._batches.draw(self.step))
        panel = draw_panel(candidate, panel_batch.labelled, panel_batch.target.label_map)
        for observer in observers:
            observer.validated(self.step, score)
            observer.showed(self.step, panel)
        if not score <= self._best_score:  # also true of the first score, since nothing compares with NaN
            self._best_score = score
            self._best = {name: tensor.clone() for name, tensor in _on_cpu(candidate.state_dict()).items()}

    def _placed(self, batch: Batch) -> Batch:
        unlabelled = batch.unlabelled
        return Batch(
            labelled=batch.labelled.to(self._device, memory_format=self._format),
            target=_target_on(batch.target, self._device),
            unlabelled=None if unlabelled is None else unlabelled.to(self._device, memory_format=self._format),
        )

    def _synchronised(self, last: bool) -> AbstractContextManager[None]:
        """Workers exchange gradients once a step, with the last of its batches."""
        if isinstance(self._stepper, DistributedDataParallel) and not last:
            return _without_exchange(self._stepper)
        return nullcontext()

    def _clip(self) -> None:
        limit = self.plan.optimisation.gradient_norm or math.inf
        parts = {"subnet A": self.net.subnet_a, "subnet B": self.net.subnet_b, "the UPG": self.net.upg}
        for name, part in parts.items():
            norm = nn.utils.clip_grad_norm_(part.parameters(), limit)
            if not torch.isfinite(norm):
                raise TrainingError(
                    f"step {self.step}: the gradient of {name} is not finite ({norm:.4g}).",
                    hint="Lower the learning rate or lengthen the warm-up. The last state in the folder is from before "
                    "this step.",
                )

    def _follow(self) -> None:
        """Move the running average towards the weights."""
        if self._average is None:
            return
        decay = self.plan.optimisation.average_decay_at(self.step)
        for average, tensor in zip(self._average.state_dict().values(), self.net.state_dict().values(), strict=True):
            if tensor.is_floating_point():
                average.lerp_(tensor, 1.0 - decay)
            else:
                average.copy_(tensor)


class _Forward(nn.Module):
    """Networks and objective as one module, so that data-parallel workers exchange gradients once per pass."""

    def __init__(self, net: DualNet, objective: UcSegObjective, precision: str) -> None:
        super().__init__()
        self.net = net
        self._objective = [objective]  # in a list: its queues are each worker's own, no buffers of this module
        self._precision = precision

    def forward(
        self, batch: Batch, step: int, generator: torch.Generator, teacher: DualNet | None
    ) -> dict[str, Tensor]:
        with torch.autocast(batch.labelled.device.type, torch.bfloat16, enabled=self._precision == "bf16"):
            terms = self._objective[0](
                self.net, batch.labelled, batch.target, batch.unlabelled, step, generator, teacher
            )
        return {"total": terms.total, **terms.values}


def new_trio(config: TrioConfig, mode: Mode = "fixed") -> DualNet:
    """A trio with starting weights drawn from torch's global generator: upstream's in compat, else this project's."""
    net = DualNet(config)
    if mode == "compat":
        return net
    # As the library leaves it, the 3D V-Net lets the signal fade from block to block.
    init_kaiming(net.subnet_b)
    # The map that scales both subnets' logits starts at one instead of noise around zero, so that the head sees
    # logits from the first step on; with noise the fused output learnt nothing in the first 150 steps.
    nn.init.ones_(net.upg.cross_attn.to_out[0].get_parameter("bias"))
    return net


def _without_choice(model_spec: dict[str, object]) -> dict[str, object]:
    """The same description of weights that no validation has chosen yet."""
    provenance = model_spec.get("provenance")
    if not isinstance(provenance, dict) or "weights_chosen_on" not in provenance:
        return model_spec
    return {**model_spec, "provenance": {**provenance, "weights_chosen_on": NOT_CHOSEN}}


@contextmanager
def _out_of_memory_said(step: int) -> Iterator[None]:
    """What torch raises where memory ends becomes an error that says what to do."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        # torch has a class of its own for GPUs alone.
        if not isinstance(error, torch.OutOfMemoryError | MemoryError) and "can't allocate memory" not in str(error):
            raise
        raise TrainingError(
            f"step {step}: the networks and a batch do not fit into the memory.",
            hint="Take a smaller --batch-size with --accumulate, --size slim, or --precision bf16.",
        ) from error


@contextmanager
def _without_exchange(module: DistributedDataParallel) -> Iterator[None]:
    with module.no_sync():
        yield


def _target_on(target: PartialTarget, device: torch.device) -> PartialTarget:
    present = target.present.to(device)
    return PartialTarget(present, present if target.complete else target.allowed.to(device))


def _on_cpu(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu() for name, tensor in tensors.items()}


def _other_run(reason: str) -> TrainingError:
    return TrainingError(f"the run in this folder is not one of this plan: {reason}.", hint="Use an empty folder.")
