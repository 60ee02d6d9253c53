"""Checkpoints come back exactly, appear complete or not at all, and nothing that does not fit is taken."""

from __future__ import annotations

import json
import math
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.training_phantom import TINY, tiny_model_spec
from ucseg_runtime.errors import ModelError, OutputError
from ucseg_training import checkpoint
from ucseg_training.checkpoint import (
    TrainingState,
    load_checkpoint,
    load_training_state,
    optimizer_tensors,
    restore_optimizer,
    save_checkpoint,
    save_training_state,
)
from ucseg_training.nets import DualNet

State = dict[str, Tensor]
Metadata = dict[str, str]


def _trio() -> DualNet:
    torch.manual_seed(0)
    return DualNet(TINY)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A good checkpoint; its folder and name must not turn up in messages."""
    folder = tmp_path / "canary"
    folder.mkdir()
    save_checkpoint(folder / "canary.safetensors", _trio().state_dict(), TINY, 17, tiny_model_spec())
    return folder / "canary.safetensors"


def _change(path: Path, change: Callable[[State, Metadata], None]) -> None:
    with safe_open(str(path), framework="pt") as stored:
        metadata = dict(stored.metadata())
    state = load_file(path)
    change(state, metadata)
    save_file(state, path, metadata)


def _same(left: State, right: State) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def test_checkpoint_comes_back_as_it_was_saved(path: Path) -> None:
    found = load_checkpoint(path)
    assert _same(found.net.state_dict(), _trio().state_dict())
    assert found.net.config == TINY
    assert found.step == 17
    assert found.model_spec == tiny_model_spec()


def test_loaded_trio_is_ready_for_inference(path: Path) -> None:
    assert not load_checkpoint(path).net.training
    assert _same(load_checkpoint(path).net.state_dict(), _trio().state_dict())


def test_weights_in_another_memory_layout_come_back_with_the_same_values(path: Path) -> None:
    net = _trio().to(memory_format=torch.channels_last_3d)
    save_checkpoint(path, net.state_dict(), TINY, 1, {})
    assert _same(load_checkpoint(path).net.state_dict(), _trio().state_dict())


def _first_weight(state: State) -> str:
    return next(name for name, tensor in state.items() if tensor.dim() == 5)


def _drop(state: State, _: Metadata) -> None:
    del state[_first_weight(state)]


def _add(state: State, _: Metadata) -> None:
    state["stray"] = torch.zeros(1)


def _reshape(state: State, _: Metadata) -> None:
    name = _first_weight(state)
    state[name] = state[name][:1].clone()


def _halve(state: State, _: Metadata) -> None:
    name = _first_weight(state)
    state[name] = state[name].half()


def _widen(_: State, metadata: Metadata) -> None:
    metadata["trio"] = json.dumps({**json.loads(metadata["trio"]), "unet_width": 4})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        pytest.param(_drop, "tensors 1 missing", id="missing tensor"),
        pytest.param(_add, "tensors 1 unknown", id="unknown tensor"),
        pytest.param(_reshape, "tensors 1 of another shape or type", id="another shape"),
        pytest.param(_halve, "tensors 1 of another shape or type", id="another type"),
        pytest.param(_widen, r"tensors \d\d of another shape", id="another configuration"),
        pytest.param(lambda _, m: m.pop("trio"), "does not say which trio", id="no configuration"),
        pytest.param(lambda _, m: m.pop("step"), "does not say which trio", id="no step"),
        pytest.param(lambda _, m: m.update(trio="{"), "does not say which trio", id="configuration is not JSON"),
        pytest.param(lambda _, m: m.update(trio="{}"), "does not say which trio", id="configuration is empty"),
        pytest.param(lambda _, m: m.update(trio="7"), "does not say which trio", id="configuration is a number"),
        pytest.param(lambda _, m: m.update(step="many"), "does not say which trio", id="step is no number"),
        pytest.param(lambda _, m: m.clear(), "does not say which trio", id="another safetensors file"),
    ],
)
def test_checkpoint_that_does_not_fit_is_a_model_error_of_one_line(
    path: Path, change: Callable[[State, Metadata], None], message: str
) -> None:
    _change(path, change)
    with pytest.raises(ModelError, match=message) as caught:
        load_checkpoint(path)
    assert caught.value.exit_code == 4
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("load", [load_checkpoint, load_training_state])
@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(lambda path: path.write_bytes(path.read_bytes()[:-1]), id="a byte short"),
        pytest.param(lambda path: path.write_bytes(path.read_bytes()[:100]), id="truncated in the header"),
        pytest.param(lambda path: path.write_bytes(b""), id="empty"),
        pytest.param(lambda path: path.write_bytes(b"PK\x03\x04 another format"), id="another format"),
        pytest.param(lambda path: path.unlink(), id="missing"),
        pytest.param(lambda path: (path.unlink(), path.mkdir()), id="folder"),
    ],
)
def test_unreadable_file_is_a_model_error_without_its_path(
    path: Path, damage: Callable[[Path], object], load: Callable[[Path], object]
) -> None:
    damage(path)
    with pytest.raises(ModelError, match="cannot be read as safetensors") as caught:
        load(path)
    assert caught.value.exit_code == 4
    assert "canary" not in str(caught.value)


class _Payload:
    """Creates a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("load", [load_checkpoint, load_training_state])
def test_pickles_are_refused_and_not_run(tmp_path: Path, load: Callable[[Path], object]) -> None:
    path, ran = tmp_path / "model.safetensors", tmp_path / "ran"
    torch.save(_Payload(ran), path)
    with pytest.raises(ModelError, match="cannot be read as safetensors"):
        load(path)
    assert not ran.exists()
    pickle.loads(pickle.dumps(_Payload(ran)))  # noqa: S301  (the test's own bytes: the payload must be a live one)
    assert ran.exists()


def test_saving_leaves_nothing_but_the_file(path: Path) -> None:
    assert [item.name for item in path.parent.iterdir()] == ["canary.safetensors"]


def test_failed_save_keeps_the_old_file_and_leaves_nothing_half_written(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail_half_way(_: object, target: str, __: object) -> None:
        Path(target).write_bytes(b"half")
        raise OSError(28, "No space left on device", target)

    before = path.read_bytes()
    monkeypatch.setattr(checkpoint, "save_file", fail_half_way)
    with pytest.raises(OutputError, match="cannot be written") as caught:
        save_checkpoint(path, _trio().state_dict(), TINY, 18, {})
    assert caught.value.exit_code == 6
    assert "canary" not in str(caught.value)
    assert path.read_bytes() == before
    assert [item.name for item in path.parent.iterdir()] == ["canary.safetensors"]


def test_saving_into_a_missing_folder_is_an_output_error(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="Check that the folder exists"):
        save_checkpoint(tmp_path / "missing" / "trio.safetensors", {}, TINY, 0, {})


def _state() -> TrainingState:
    weights = _trio().state_dict()
    average = {name: tensor / 2 for name, tensor in weights.items()}
    return TrainingState(
        step=23,
        plan_digest="abc",
        weights=weights,
        average=average,
        optimizer={"0/exp_avg": torch.ones(2, 3), "0/step": torch.tensor(23.0)},
        objective={"queue/0": torch.arange(6.0).reshape(2, 3), "pointer": torch.tensor(4)},
        best={"weight": torch.tensor([1.5])},
        best_score=0.1 + 0.2,
    )


def test_training_state_comes_back_as_it_was_saved(tmp_path: Path) -> None:
    state = _state()
    save_training_state(tmp_path / "state.safetensors", state)
    found = load_training_state(tmp_path / "state.safetensors")
    assert (found.step, found.plan_digest, found.best_score) == (23, "abc", state.best_score)
    for part in ("weights", "average", "optimizer", "objective", "best"):
        assert _same(getattr(found, part), getattr(state, part)), part


def test_training_state_without_queues_average_and_score_comes_back(tmp_path: Path) -> None:
    state = TrainingState(0, "abc", {"w": torch.ones(1)}, {}, {})
    save_training_state(tmp_path / "state.safetensors", state)
    found = load_training_state(tmp_path / "state.safetensors")
    assert (found.average, found.optimizer, found.objective, found.best) == ({}, {}, {}, {})
    assert math.isnan(found.best_score)


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda _, m: m.pop("step"), id="no step"),
        pytest.param(lambda _, m: m.update(step="many"), id="step is no number"),
        pytest.param(lambda _, m: m.pop("plan"), id="no digest of the plan"),
        pytest.param(_add, id="tensor of no part"),
    ],
)
def test_other_safetensors_are_no_training_state(tmp_path: Path, change: Callable[[State, Metadata], None]) -> None:
    path = tmp_path / "state.safetensors"
    save_training_state(path, _state())
    _change(path, change)
    with pytest.raises(ModelError, match="is not one of ucseg-train"):
        load_training_state(path)


def test_checkpoint_is_no_training_state_and_the_other_way_round(path: Path) -> None:
    with pytest.raises(ModelError, match="is not one of ucseg-train"):
        load_training_state(path)
    save_training_state(path, _state())
    with pytest.raises(ModelError, match="does not say which trio"):
        load_checkpoint(path)


def _optimizer_after(steps: int, restored: State | None = None) -> tuple[Tensor, torch.optim.Optimizer]:
    parameter = torch.nn.Parameter(torch.tensor([1.0, -2.0]))
    untouched = torch.nn.Parameter(torch.tensor([5.0]))
    optimizer = torch.optim.AdamW([untouched, parameter], lr=0.1)
    if restored is not None:
        restore_optimizer(optimizer, restored)
    for _ in range(steps):
        optimizer.zero_grad()
        (parameter**2).sum().backward()
        optimizer.step()
    return parameter.detach(), optimizer


def test_restored_optimizer_remembers_its_moments() -> None:
    _, optimizer = _optimizer_after(3)
    tensors = optimizer_tensors(optimizer)
    assert {name.partition("/")[0] for name in tensors} == {"1"}, "only the parameter that was updated has a state"
    fresh, _ = _optimizer_after(1)
    remembering, again = _optimizer_after(1, restored=tensors)
    assert not torch.equal(fresh, remembering)
    assert float(optimizer_tensors(again)["1/step"]) == 4.0
