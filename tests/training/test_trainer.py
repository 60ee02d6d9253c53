"""Training learns, repeats itself bit for bit, goes on where it was interrupted, and stops where it makes no sense."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor

from tests.training_phantom import TINY, block_case, tiny_model_spec, tiny_spec
from ucseg_runtime.errors import ModelError, UcsegError
from ucseg_training import trainer
from ucseg_training.batches import Batch
from ucseg_training.checkpoint import load_checkpoint, load_training_state
from ucseg_training.data.augment import AugmentSpec
from ucseg_training.data.case import Case
from ucseg_training.data.case_batches import CaseBatches, CaseSampling
from ucseg_training.errors import TrainingError
from ucseg_training.method.config import MethodConfig
from ucseg_training.method.losses import Readout, hard_parts
from ucseg_training.method.targets import PartialTarget
from ucseg_training.nets import DualNet
from ucseg_training.observers import LogLines
from ucseg_training.optimisation import Optimisation
from ucseg_training.precision import require_sound_bfloat16
from ucseg_training.trainer import CHECKPOINT_NAME, STATE_NAME, new_trio, train
from ucseg_training.training_plan import TrainingPlan

SPEC = tiny_spec()
SUPERVISED = MethodConfig(total_steps=4, use_ccp=False, use_mixing=False, pseudo_labels="none", dice="batch")
WHOLE = MethodConfig(total_steps=4, dice="batch", largest_component=False, queue_length=4, mixing_start=0.5)
ADAMW = Optimisation(
    kind="adamw", learning_rate=1.5e-3, schedule="cosine", warm_up=2, gradient_norm=1.0, average_decay=0.99
)
PLAN = TrainingPlan(TINY, SUPERVISED, ADAMW, steps=4, checkpoint_every=2, model_spec=tiny_model_spec())
SAMPLING = CaseSampling(
    tile_shape=SPEC.tiling.tile_shape,
    num_classes=3,
    preprocessing=SPEC.preprocessing,
    augment=AugmentSpec(enhancement_hu={1: (-50.0, 50.0)}),
    labelled_weights={"P": 1.0, "Q": 0.5},
)
BOTH_STREAMS = replace(SAMPLING, unlabelled_weights={"Q": 1.0})


@pytest.fixture(scope="module")
def cases() -> list[Case]:
    other = block_case("Q")
    return [block_case("P"), replace(other, voxels=np.flip(other.voxels).copy(), label_map=np.flip(other.label_map))]


@pytest.fixture(scope="module")
def batches(cases: list[Case]) -> CaseBatches:
    return CaseBatches(cases, SAMPLING)


@pytest.fixture(scope="module")
def finished(batches: CaseBatches, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of an undisturbed run of `PLAN`."""
    folder = tmp_path_factory.mktemp("undisturbed")
    torch.set_num_threads(1)
    train(batches, PLAN, folder)
    return folder


class Interrupting:
    """Batches of another source until one is asked for that is not given."""

    def __init__(self, batches: CaseBatches, number: int) -> None:
        self._batches, self._number = batches, number

    def describe(self) -> dict[str, object]:
        return self._batches.describe()

    def draw(self, number: int) -> Batch:
        if number == self._number:
            raise KeyboardInterrupt
        return self._batches.draw(number)


class Recorder:
    """An observer that keeps what it is told."""

    def __init__(self) -> None:
        self.steps: list[int] = []
        self.terms: list[dict[str, float]] = []
        self.scores: list[float] = []
        self.panels: list[npt.NDArray[np.uint8]] = []

    def stepped(self, step: int, terms: dict[str, Tensor], learning_rate: float) -> None:
        self.steps.append(step)
        self.terms.append({"rate": learning_rate, **{name: float(value) for name, value in terms.items()}})

    def validated(self, step: int, score: float) -> None:
        self.scores.append(score)

    def showed(self, step: int, panel: npt.NDArray[np.uint8]) -> None:
        self.panels.append(panel)


def _same(left: dict[str, Tensor], right: dict[str, Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def _assert_same_run(left: Path, right: Path) -> None:
    first, second = (load_training_state(folder / STATE_NAME) for folder in (left, right))
    assert first.step == second.step
    for part in ("weights", "average", "optimizer", "objective", "best"):
        assert _same(getattr(first, part), getattr(second, part)), part
    # The files themselves may differ: safetensors writes the entries of its metadata in any order.
    checkpoints = [load_checkpoint(folder / CHECKPOINT_NAME).net.state_dict() for folder in (left, right)]
    assert _same(*checkpoints)


def test_interrupted_and_continued_run_gives_the_same_bits_as_an_undisturbed_one(
    batches: CaseBatches, finished: Path, tmp_path: Path
) -> None:
    with pytest.raises(KeyboardInterrupt):
        train(Interrupting(batches, 3), PLAN, tmp_path)
    assert load_training_state(tmp_path / STATE_NAME).step == 2, "the third step must be lost, to be done again"
    train(batches, PLAN, tmp_path)
    _assert_same_run(finished, tmp_path)


def test_whole_method_continues_with_its_queues_average_and_best_weights(cases: list[Case], tmp_path: Path) -> None:
    plan = replace(PLAN, method=WHOLE, steps=4, validate_every=1)
    batches = CaseBatches(cases, BOTH_STREAMS)
    scores = {1: 0.3, 2: 0.9, 3: 0.5, 4: 0.1}

    def run(source: CaseBatches | Interrupting, folder: Path) -> None:
        done = load_training_state(folder / STATE_NAME).step if (folder / STATE_NAME).is_file() else 0
        answers = iter([scores[step] for step in range(done + 1, 5)])
        train(source, plan, folder, validate=lambda net: next(answers))

    run(batches, tmp_path / "undisturbed")
    with pytest.raises(KeyboardInterrupt):
        run(Interrupting(batches, 3), tmp_path / "interrupted")
    run(batches, tmp_path / "interrupted")
    _assert_same_run(tmp_path / "undisturbed", tmp_path / "interrupted")
    state = load_training_state(tmp_path / "interrupted" / STATE_NAME)
    assert state.objective, "the queues must be part of the state"
    assert state.best_score == 0.9
    chosen = load_checkpoint(tmp_path / "interrupted" / CHECKPOINT_NAME).net.state_dict()
    assert _same(chosen, state.best)
    assert not _same(chosen, state.average)


def test_another_seed_gives_other_weights(batches: CaseBatches, finished: Path, tmp_path: Path) -> None:
    train(batches, replace(PLAN, seed=43), tmp_path)
    found, other = (load_training_state(folder / STATE_NAME).weights for folder in (finished, tmp_path))
    assert not _same(found, other)


def test_checkpoint_holds_the_running_average_and_the_description(finished: Path) -> None:
    checkpoint, state = load_checkpoint(finished / CHECKPOINT_NAME), load_training_state(finished / STATE_NAME)
    assert checkpoint.step == state.step == PLAN.steps
    assert checkpoint.model_spec == tiny_model_spec()
    assert _same(checkpoint.net.state_dict(), state.average)
    assert not _same(checkpoint.net.state_dict(), state.weights)


def test_without_an_average_the_checkpoint_holds_the_weights(batches: CaseBatches, tmp_path: Path) -> None:
    train(batches, replace(PLAN, optimisation=replace(ADAMW, average_decay=None), stop_after=1), tmp_path)
    state = load_training_state(tmp_path / STATE_NAME)
    assert state.average == {}
    assert _same(load_checkpoint(tmp_path / CHECKPOINT_NAME).net.state_dict(), state.weights)


def test_finished_run_is_left_alone(batches: CaseBatches, tmp_path: Path) -> None:
    plan = replace(PLAN, stop_after=1)
    path = train(batches, plan, tmp_path)
    before = path.read_bytes(), (tmp_path / STATE_NAME).stat().st_mtime_ns
    assert train(batches, plan, tmp_path) == path
    assert (path.read_bytes(), (tmp_path / STATE_NAME).stat().st_mtime_ns) == before


def test_checkpoint_is_on_disk_before_the_state_says_that_the_step_is_done(
    batches: CaseBatches, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(trainer, "save_training_state", interrupt)
        with pytest.raises(KeyboardInterrupt):
            train(batches, replace(PLAN, stop_after=1), tmp_path)
    assert load_checkpoint(tmp_path / CHECKPOINT_NAME).step == 1
    assert not (tmp_path / STATE_NAME).exists()


def test_accumulated_batches_are_averaged(batches: CaseBatches, tmp_path: Path) -> None:
    recorder = Recorder()
    plan = replace(PLAN, optimisation=replace(ADAMW, accumulate=2), stop_after=1)
    train(batches, plan, tmp_path, observers=[recorder])
    single = Recorder()
    first = replace(PLAN, stop_after=1)
    train(batches, first, tmp_path / "first", observers=[single])
    assert recorder.terms[0]["total"] != single.terms[0]["total"], "the second batch must count too"


def _losses(net: DualNet, image: Tensor, target: PartialTarget) -> npt.NDArray[np.float64]:
    """Cross-entropy + Dice of subnet A, subnet B and the fused output, which unlike the whole loss have no schedule."""
    with torch.no_grad():
        output = net.train()(image)
    logits = (output.logits_a, output.logits_b, output.fused_logits)
    readouts = [Readout.of(z, "softmax") for z in logits]
    return np.array([sum(map(float, hard_parts(readout, target, "batch", "zyx").values())) for readout in readouts])


def test_all_three_outputs_learn_an_easy_task_in_thirty_steps(tmp_path: Path) -> None:
    still = AugmentSpec(
        enhancement_hu={},
        rotation_deg=(0.0, 0.0, 0.0),
        scale=(1.0, 1.0),
        anisotropy=0.0,
        noise_hu=0.0,
        focus=1.0,
        round_field=0.0,
    )
    sampling = replace(SAMPLING, labelled_weights={"P": 1.0}, augment=still)
    plan = replace(
        PLAN,
        trio=replace(TINY, unet_width=4, vnet_width=4, head_widths=(4, 4, 4, 4, 4)),
        method=replace(SUPERVISED, total_steps=30),
        optimisation=replace(ADAMW, warm_up=5, learning_rate=1e-2),
        steps=30,
        checkpoint_every=30,
    )
    batch = CaseBatches([block_case()], replace(sampling, labelled_tiles=4, stream=1)).draw(0)
    torch.manual_seed(plan.seed)
    first = _losses(new_trio(plan.trio), batch.labelled, batch.target)
    train(CaseBatches([block_case()], sampling), plan, tmp_path)
    net = DualNet(plan.trio)
    net.load_state_dict(load_training_state(tmp_path / STATE_NAME).weights)
    ratio = _losses(net, batch.labelled, batch.target) / first
    assert (ratio < (0.9, 0.7, 0.8)).all(), ratio


@pytest.mark.parametrize("mode", ["compat", "fixed"])
def test_compat_starts_from_upstreams_weights_and_fixed_from_those_that_let_the_signal_through(mode: Any) -> None:
    torch.manual_seed(7)
    upstream = DualNet(TINY).state_dict()
    torch.manual_seed(7)
    started = new_trio(TINY, mode).state_dict()
    differ = {name for name, tensor in started.items() if not torch.equal(tensor, upstream[name])}
    if mode == "compat":
        assert not differ
        return
    scale = "generate_pseudo_simple.cross_attn.to_out.0.bias"
    assert differ == {scale} | {n for n in upstream if n.startswith("net_2") and n.endswith("weight")}
    assert (started[scale] == 1.0).all()


def test_run_in_compat_starts_from_upstreams_weights(batches: CaseBatches, tmp_path: Path) -> None:
    still = replace(PLAN, method=replace(SUPERVISED, mode="compat"), optimisation=Optimisation(learning_rate=1e-30))
    train(batches, replace(still, stop_after=1), tmp_path)
    torch.manual_seed(PLAN.seed)
    upstream = DualNet(TINY).net_2.state_dict()
    weights = load_training_state(tmp_path / STATE_NAME).weights
    for name, tensor in upstream.items():
        torch.testing.assert_close(weights[f"net_2.{name}"], tensor, rtol=0, atol=1e-7)


def test_figures_of_the_run_are_logged(batches: CaseBatches, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "ucseg_training.observers"):
        train(batches, replace(PLAN, stop_after=2), tmp_path, observers=[LogLines(every=2)])
    assert [record.message.split(":")[0] for record in caplog.records] == ["step 2"]
    assert "total " in caplog.text


def test_validation_is_observed_with_a_panel(batches: CaseBatches, tmp_path: Path) -> None:
    recorder = Recorder()
    plan = replace(PLAN, stop_after=2, validate_every=2)
    train(batches, plan, tmp_path, observers=[recorder], validate=lambda net: 0.25 if not net.training else 0.0)
    assert (recorder.steps, recorder.scores) == ([1, 2], [0.25])
    (panel,) = recorder.panels
    assert (panel.shape, panel.dtype) == ((32, 4 * 32, 3), np.uint8)
    assert panel.std() > 0


class Poisoned(Interrupting):
    """Batches of which one has voxels that are not numbers."""

    def draw(self, number: int) -> Batch:
        batch = self._batches.draw(number)
        if number == self._number:
            batch.labelled[...] = torch.nan
        return batch


def test_loss_that_is_not_finite_stops_the_run_and_names_step_and_term(batches: CaseBatches, tmp_path: Path) -> None:
    train(batches, replace(PLAN, stop_after=1), tmp_path)
    before = (tmp_path / STATE_NAME).read_bytes()
    with pytest.raises(TrainingError, match=r"step 1: .*not finite") as caught:
        train(Poisoned(batches, 1), PLAN, tmp_path)
    assert (tmp_path / STATE_NAME).read_bytes() == before
    assert isinstance(caught.value, UcsegError)
    assert (caught.value.code, caught.value.exit_code) == ("UCSEG-E160", 4)


def test_gradient_that_is_not_finite_stops_the_run(
    batches: CaseBatches, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class InfiniteSlope(torch.autograd.Function):
        @staticmethod
        def forward(ctx: object, value: Tensor) -> Tensor:
            return value.clone()

        @staticmethod
        def backward(ctx: object, gradient: Tensor) -> Tensor:
            return gradient * torch.inf

    monkeypatch.setattr(
        trainer,
        "new_trio",
        lambda config, mode, make=new_trio: _with_hook(make(config, mode), lambda out: InfiniteSlope.apply(out)),
    )
    with pytest.raises(TrainingError, match="step 0: the gradient of subnet B is not finite"):
        train(batches, PLAN, tmp_path)


@pytest.mark.parametrize(
    "raised",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes."),
        MemoryError(),
    ],
)
def test_run_that_does_not_fit_into_memory_says_what_to_do(
    batches: CaseBatches, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, raised: Exception
) -> None:
    def fail(_: object) -> None:
        raise raised

    monkeypatch.setattr(trainer, "new_trio", lambda config, mode, make=new_trio: _with_hook(make(config, mode), fail))
    with pytest.raises(TrainingError, match=r"step 0: .* do not fit into the memory") as caught:
        train(batches, PLAN, tmp_path)
    assert "--batch-size" in caught.value.hint


def test_other_failures_of_torch_stay_what_they_are(
    batches: CaseBatches, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: object) -> None:
        raise RuntimeError("something else")

    monkeypatch.setattr(trainer, "new_trio", lambda config, mode, make=new_trio: _with_hook(make(config, mode), fail))
    with pytest.raises(RuntimeError, match="something else"):
        train(batches, PLAN, tmp_path)


def _with_hook(net: DualNet, change: object) -> DualNet:
    net.subnet_b.out_conv.register_forward_hook(lambda module, inputs, output: change(output))
    return net


def test_run_can_stop_before_its_schedule_and_is_then_finished(
    batches: CaseBatches, finished: Path, tmp_path: Path
) -> None:
    plan = replace(PLAN, stop_after=2)
    train(batches, plan, tmp_path)
    assert load_checkpoint(tmp_path / CHECKPOINT_NAME).step == 2
    train(batches, plan, tmp_path)
    assert load_training_state(tmp_path / STATE_NAME).step == 2
    train(batches, PLAN, tmp_path)
    _assert_same_run(finished, tmp_path)


def test_stop_beyond_the_schedule_changes_nothing(batches: CaseBatches, tmp_path: Path) -> None:
    train(batches, replace(PLAN, steps=1, stop_after=9), tmp_path)
    assert load_training_state(tmp_path / STATE_NAME).step == 1


def test_longer_run_in_the_folder_is_not_taken_for_a_finished_one(batches: CaseBatches, finished: Path) -> None:
    with pytest.raises(TrainingError, match="it has done 4 steps; the plan ends after 3"):
        train(batches, replace(PLAN, stop_after=3), finished)


@pytest.mark.parametrize(
    "changes",
    [
        {"seed": 7},
        {"steps": 5},
        {"optimisation": replace(ADAMW, learning_rate=1e-3)},
        {"method": replace(SUPERVISED, mode="compat")},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_state_of_another_plan_is_refused(batches: CaseBatches, finished: Path, changes: dict[str, object]) -> None:
    with pytest.raises(TrainingError, match="made with other options or other data"):
        train(batches, replace(PLAN, **changes), finished)


def test_state_of_other_data_is_refused(cases: list[Case], finished: Path) -> None:
    other = replace(SAMPLING, labelled_weights={"P": 1.0})
    with pytest.raises(TrainingError, match="made with other options or other data"):
        train(CaseBatches(cases, other), PLAN, finished)


def test_state_of_other_networks_is_refused(batches: CaseBatches, finished: Path) -> None:
    with pytest.raises(TrainingError, match=r"its networks are others; tensors \d+ of another shape"):
        train(batches, replace(PLAN, trio=replace(TINY, unet_width=3)), finished)


def test_damaged_state_is_refused(batches: CaseBatches, tmp_path: Path) -> None:
    (tmp_path / STATE_NAME).write_bytes(b"damaged")
    with pytest.raises(ModelError, match="the training state cannot be read"):
        train(batches, PLAN, tmp_path)


def test_mean_teacher_without_a_running_average_is_refused_before_the_first_step() -> None:
    method = replace(PLAN.method, pseudo_labels="teacher", use_ccp=False, use_mixing=False)
    with pytest.raises(TrainingError, match="no running average"):
        replace(PLAN, method=method, optimisation=replace(PLAN.optimisation, average_decay=None))


@pytest.mark.parametrize(("depth", "sound"), [(16, False), (32, False), (48, True), (64, True), (96, True)])
def test_tiles_whose_bfloat16_gradients_torch_gets_wrong_are_refused(depth: int, sound: bool) -> None:
    trio = replace(TINY, tile_shape=(depth, 32, 32))
    if sound:
        require_sound_bfloat16(trio)
    else:
        with pytest.raises(TrainingError, match=f"{depth} voxels deep"):
            require_sound_bfloat16(trio)


def test_run_in_bfloat16_on_tiles_of_two_slices_stops_before_the_first_step(
    tmp_path: Path, batches: CaseBatches
) -> None:
    assert TINY.tile_shape[0] == 32
    with pytest.raises(TrainingError, match="cannot be trained in bfloat16"):
        train(batches, replace(PLAN, precision="bf16"), tmp_path)
    assert list(tmp_path.iterdir()) == []
