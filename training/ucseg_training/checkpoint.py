"""Checkpoints as safetensors: weights with what the model is, and beside them what is needed to go on training."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ucseg_runtime.errors import ModelError, OutputError
from ucseg_training.nets import DualNet, TrioConfig

_GIVE_A_CHECKPOINT = "Give a checkpoint that ucseg-train wrote."
_GIVE_A_STATE = "Use the folder of a run that ucseg-train started, or an empty one."
UPG_PREFIX = "generate_pseudo_simple."
_PARTS = ("weights", "average", "optimizer", "objective", "best")


@dataclass(frozen=True)
class TrioCheckpoint:
    """What `load_checkpoint` finds.

    Attributes:
        net: The trio in eval mode, float32.
        step: Training steps that made it.
        model_spec: What the model is besides its weights: classes, preprocessing, tiling … as the export needs it.
        plan: SHA-256 of the plan and the data that the weights come from, see `TrainingPlan.digest`; empty for weights
            that no run of ucseg-train made.
        has_upg: Whether the UPG was trained too; without, that part of `net` holds random values, and only the subnets
            may be used.
    """

    net: DualNet
    step: int
    model_spec: dict[str, object]
    plan: str = ""
    has_upg: bool = True


def save_checkpoint(
    path: Path,
    state: Mapping[str, Tensor],
    trio: TrioConfig,
    step: int,
    model_spec: Mapping[str, object],
    plan: str = "",
) -> None:
    """Write a trio's weights, all float32 but for counters, with its configuration in the metadata.

    Args:
        path: Target; appears complete or not at all.
        state: As `DualNet.state_dict()` gives it.
        trio: Sizes of the networks.
        step: Training steps that made the weights.
        model_spec: JSON-able description of the model, kept as it is.
        plan: SHA-256 of the plan and the data of the run that made the weights.

    Raises:
        OutputError: The file cannot be written.
    """
    metadata = {
        "trio": json.dumps(trio.to_dict(), sort_keys=True),
        "step": str(step),
        "model_spec": json.dumps(model_spec, sort_keys=True),
        **({"plan": plan} if plan else {}),
    }
    _write(path, state, metadata)


def load_checkpoint(path: Path, *, needs_upg: bool = True) -> TrioCheckpoint:
    """Read a trio, strictly: every tensor must be there and fit, and none besides.

    Args:
        path: What `save_checkpoint` wrote.
        needs_upg: Whether a checkpoint of two subnets alone is refused, as every use but weight-free fusion needs.

    Raises:
        ModelError: Not a safetensors file, no configuration in it, or tensors that do not fit the configuration; or
            the UPG is needed and missing.
    """
    state, metadata = _read(path, "the checkpoint", _GIVE_A_CHECKPOINT)
    try:
        config = TrioConfig.from_dict(json.loads(metadata["trio"]))
        step, model_spec = int(metadata["step"]), json.loads(metadata["model_spec"])
    except (KeyError, TypeError, ValueError) as error:
        raise ModelError(
            f"the checkpoint does not say which trio it holds: {error}.", hint=_GIVE_A_CHECKPOINT
        ) from error
    net = DualNet(config)
    expected = net.state_dict()
    subnets = {name: tensor for name, tensor in expected.items() if not name.startswith(UPG_PREFIX)}
    has_upg = state.keys() != subnets.keys()
    if not has_upg and needs_upg:
        raise ModelError(
            "the checkpoint holds two subnets without a UPG.",
            hint="Fuse them by a rule without weights: ucseg-export fusion CHECKPOINT --rule mean --out DIR.",
        )
    if different := differences(state, expected if has_upg else subnets):
        raise ModelError(f"the checkpoint does not fit its networks; tensors {different}.", hint=_GIVE_A_CHECKPOINT)
    net.load_state_dict(state, strict=has_upg)
    return TrioCheckpoint(net.eval(), step, model_spec, metadata.get("plan", ""), has_upg)


@dataclass(frozen=True)
class TrainingState:
    """Everything that the next step depends on, besides plan and data.

    Attributes:
        step: Steps done.
        plan_digest: Of the plan that made it; another plan does not continue it.
        weights: State of the trio being trained.
        average: Running average of that state; empty where the plan has none.
        optimizer: State tensors of the optimiser by "parameter index/name".
        objective: What the objective remembers between steps, its queues of prototypes.
        best: Weights with the best validation score so far; empty before the first validation.
        best_score: That score; NaN before the first validation.
    """

    step: int
    plan_digest: str
    weights: dict[str, Tensor]
    average: dict[str, Tensor]
    optimizer: dict[str, Tensor]
    objective: dict[str, Tensor] = field(default_factory=dict)
    best: dict[str, Tensor] = field(default_factory=dict)
    best_score: float = math.nan


def save_training_state(path: Path, state: TrainingState) -> None:
    """Write what `load_training_state` needs to continue bit for bit.

    Raises:
        OutputError: The file cannot be written.
    """
    tensors = {f"{part}/{name}": tensor for part in _PARTS for name, tensor in getattr(state, part).items()}
    figures = {"step": str(state.step), "plan": state.plan_digest, "best_score": repr(state.best_score)}
    _write(path, tensors, figures)


def load_training_state(path: Path) -> TrainingState:
    """Read what `save_training_state` wrote.

    Raises:
        ModelError: Not a file of that kind.
    """
    tensors, metadata = _read(path, "the training state", _GIVE_A_STATE)
    parts: dict[str, dict[str, Tensor]] = {part: {} for part in _PARTS}
    try:
        for name, tensor in tensors.items():
            part, _, rest = name.partition("/")
            parts[part][rest] = tensor
        return TrainingState(int(metadata["step"]), metadata["plan"], best_score=float(metadata["best_score"]), **parts)
    except (KeyError, ValueError) as error:
        raise ModelError(f"the training state is not one of ucseg-train: {error}.", hint=_GIVE_A_STATE) from error


def differences(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> str:
    """In which names, shapes and types two states differ, in words; empty where they agree. Values do not matter.

    Returns:
        The number of differences of each kind, with the name of the first.
    """
    kinds = {
        "missing": expected.keys() - found.keys(),
        "unknown": found.keys() - expected.keys(),
        "of another shape or type": {
            name
            for name in found.keys() & expected.keys()
            if (found[name].shape, found[name].dtype) != (expected[name].shape, expected[name].dtype)
        },
    }
    return "; ".join(f"{len(names)} {kind} ({min(names)} …)" for kind, names in kinds.items() if names)


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """State of an optimiser as flat tensors, by index of the parameter and name."""
    states = optimizer.state_dict()["state"]
    return {
        f"{index}/{name}": torch.as_tensor(value) for index, state in states.items() for name, value in state.items()
    }


def restore_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Put back what `optimizer_tensors` took."""
    states: dict[int, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        index, _, name = key.partition("/")
        states.setdefault(int(index), {})[name] = tensor
    optimizer.load_state_dict({"state": states, "param_groups": optimizer.state_dict()["param_groups"]})


def _write(path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str]) -> None:
    temporary = path.with_name(f".{path.name}.part")
    try:
        save_file({name: tensor.detach().contiguous() for name, tensor in tensors.items()}, str(temporary), metadata)
        os.replace(temporary, path)
    except (SafetensorError, OSError) as error:
        raise OutputError(
            f"the weights cannot be written ({type(error).__name__}).",
            hint="Check that the folder exists, is writable and has space left.",
        ) from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def _read(path: Path, what: str, hint: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    try:
        with safe_open(str(path), framework="pt") as stored:
            return {name: stored.get_tensor(name) for name in stored.keys()}, stored.metadata() or {}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        # The text of an OSError holds the path.
        raise ModelError(f"{what} cannot be read as safetensors ({type(error).__name__}).", hint=hint) from error
