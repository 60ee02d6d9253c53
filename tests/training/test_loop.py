"""Training learns, repeats itself bit for bit, goes on where it was interrupted, and stops where it makes no sense."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor

from tests.training_phantom import TINY, block_case, tiny_model_spec, tiny_spec
from ucseg_runtime.errors import ModelError, UcsegError
from ucseg_training import loop
from ucseg_training.checkpoint import load_checkpoint, load_training_state
from ucseg_training.data.augment import AugmentSpec
from ucseg_training.data.case import Case
from ucseg_training.errors import TrainingError
from ucseg_training.loop import CHECKPOINT_NAME, STATE_NAME, TrainingPlan, train
from ucseg_training.losses import PartialTarget, partial_cross_entropy, partial_dice_loss
from ucseg_training.nets import DualNet

SPEC = tiny_spec()
PLAN = TrainingPlan(
    trio=TINY,
    preprocessing=SPEC.preprocessing,
    tiling=SPEC.tiling,
    augment=AugmentSpec(enhancement_hu={1: (-50.0, 50.0)}),
    case_weights={"P": 1.0, "Q": 0.5},
    steps=4,
    warm_up=2,
    checkpoint_every=2,
    model_spec=tiny_model_spec(),
)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def cases() -> list[Case]:
    other = block_case("Q")
    return [block_case("P"), replace(other, voxels=np.flip(other.voxels).copy(), label_map=np.flip(other.label_map))]


@pytest.fixture(scope="module")
def finished(cases: list[Case], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of an undisturbed run of `PLAN`."""
    folder = tmp_path_factory.mktemp("undisturbed")
    torch.set_num_threads(1)
    train(cases, PLAN, folder)
    return folder


def _same(left: dict[str, Tensor], right: dict[str, Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def _assert_same_run(left: Path, right: Path) -> None:
    first, second = (load_training_state(folder / STATE_NAME) for folder in (left, right))
    assert first.step == second.step
    assert _same(first.weights, second.weights)
    assert _same(first.average, second.average)
    assert _same(first.optimizer, second.optimizer)
    # The files themselves may differ: safetensors writes the entries of its metadata in any order.
    checkpoints = [load_checkpoint(folder / CHECKPOINT_NAME).net.state_dict() for folder in (left, right)]
    assert _same(*checkpoints)


def test_interrupted_and_continued_run_gives_the_same_bits_as_an_undisturbed_one(
    cases: list[Case], finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw, drawn = loop.draw_batch, []

    def interrupt_in_the_fourth_step(*arguments: object) -> object:
        drawn.append(1)
        if len(drawn) == 4:
            raise KeyboardInterrupt
        return draw(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "draw_batch", interrupt_in_the_fourth_step)
        with pytest.raises(KeyboardInterrupt):
            train(cases, PLAN, tmp_path)
    assert load_training_state(tmp_path / STATE_NAME).step == 2, "the third step must be lost, to be done again"
    train(cases, PLAN, tmp_path)
    _assert_same_run(finished, tmp_path)


def test_another_seed_gives_other_weights(cases: list[Case], finished: Path, tmp_path: Path) -> None:
    train(cases, replace(PLAN, seed=43), tmp_path)
    found, other = (load_training_state(folder / STATE_NAME).weights for folder in (finished, tmp_path))
    assert not _same(found, other)


def test_checkpoint_holds_the_running_average_and_the_description(finished: Path) -> None:
    checkpoint, state = load_checkpoint(finished / CHECKPOINT_NAME), load_training_state(finished / STATE_NAME)
    assert checkpoint.step == state.step == PLAN.steps
    assert checkpoint.model_spec == tiny_model_spec()
    assert _same(checkpoint.net.state_dict(), state.average)
    assert not _same(checkpoint.net.state_dict(), state.weights)


def test_average_without_memory_is_the_weights_themselves(cases: list[Case], tmp_path: Path) -> None:
    train(cases, replace(PLAN, steps=1, average_decay=0.0), tmp_path)
    state = load_training_state(tmp_path / STATE_NAME)
    assert _same(state.average, state.weights)


def test_finished_run_is_left_alone(cases: list[Case], tmp_path: Path) -> None:
    path = train(cases, replace(PLAN, steps=1), tmp_path)
    before = path.read_bytes(), (tmp_path / STATE_NAME).stat().st_mtime_ns
    assert train(cases, replace(PLAN, steps=1), tmp_path) == path
    assert (path.read_bytes(), (tmp_path / STATE_NAME).stat().st_mtime_ns) == before


def test_checkpoint_is_on_disk_before_the_state_says_that_the_step_is_done(
    cases: list[Case], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(loop, "save_training_state", interrupt)
        with pytest.raises(KeyboardInterrupt):
            train(cases, replace(PLAN, steps=1), tmp_path)
    assert load_checkpoint(tmp_path / CHECKPOINT_NAME).step == 1
    assert not (tmp_path / STATE_NAME).exists()


def _losses(net: DualNet, image: Tensor, target: PartialTarget) -> npt.NDArray[np.float64]:
    """Cross-entropy + Dice of subnet A, subnet B and the fused output, which unlike the whole loss have no schedule."""
    with torch.no_grad():
        output = net.train()(image)
    logits = (output.logits_a, output.logits_b, output.fused_logits)
    return np.array([float(partial_cross_entropy(z, target) + partial_dice_loss(z.softmax(1), target)) for z in logits])


def test_all_three_outputs_learn_an_easy_task_in_thirty_steps(tmp_path: Path) -> None:
    still = AugmentSpec(
        enhancement_hu={}, rotation_deg=(0.0, 0.0, 0.0), scale=(1.0, 1.0), anisotropy=0.0, noise_hu=0.0, focus=1.0
    )
    plan = replace(
        PLAN,
        trio=replace(TINY, unet_width=4, vnet_width=4, head_widths=(4, 4, 4, 4, 4)),
        case_weights={"P": 1.0},
        augment=still,
        steps=30,
        warm_up=5,
        learning_rate=1e-2,
        checkpoint_every=30,
    )
    batch = loop.draw_batch([block_case()], replace(plan, tiles_per_step=4), np.random.default_rng(123))
    first = _losses(loop._Run(plan).net, *batch)
    train([block_case()], plan, tmp_path)
    net = DualNet(plan.trio)
    net.load_state_dict(load_training_state(tmp_path / STATE_NAME).weights)
    ratio = _losses(net, *batch) / first
    assert (ratio < (0.9, 0.7, 0.8)).all(), ratio  # seen: 0.81, 0.51, 0.68


def test_figures_of_the_run_are_logged(
    cases: list[Case], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(loop, "_STEPS_PER_LOG_LINE", 2)
    with caplog.at_level(logging.INFO, "ucseg_training.loop"):
        train(cases, replace(PLAN, steps=2), tmp_path)
    assert [record.message.split(":")[0] for record in caplog.records] == ["step 2"]
    assert "loss A" in caplog.text


def test_loss_that_is_not_finite_stops_the_run_and_names_the_step(cases: list[Case], tmp_path: Path) -> None:
    train(cases, replace(PLAN, steps=1), tmp_path)
    before = (tmp_path / STATE_NAME).read_bytes()
    broken = [replace(case, voxels=np.full_like(case.voxels, np.nan)) for case in cases]
    with pytest.raises(TrainingError, match=r"^step 1: the loss is not finite: subnet A nan") as caught:
        train(broken, PLAN, tmp_path)
    assert (tmp_path / STATE_NAME).read_bytes() == before
    assert isinstance(caught.value, UcsegError)
    assert (caught.value.code, caught.value.exit_code) == ("UCSEG-E160", 4)


def test_cases_without_a_weight_are_never_drawn(tmp_path: Path) -> None:
    poison = block_case("held out")
    poison = replace(poison, voxels=np.full_like(poison.voxels, np.nan))
    zero = replace(poison, name="zero")
    plan = replace(PLAN, case_weights={"P": 1.0, "zero": 0.0}, steps=3)
    train([poison, block_case("P"), zero], plan, tmp_path)
    assert load_training_state(tmp_path / STATE_NAME).step == 3


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        pytest.param({"P": 1.0, "R": 1.0}, "names 2 cases to train on; 1 of them are not there: R", id="case missing"),
        pytest.param({}, "names 0 cases", id="no cases"),
        pytest.param({"P": 0.0}, "names 0 cases", id="no weight"),
    ],
)
def test_plan_without_its_cases_is_refused_before_anything_is_written(
    cases: list[Case], tmp_path: Path, weights: dict[str, float], message: str
) -> None:
    with pytest.raises(TrainingError, match=message):
        train(cases, replace(PLAN, case_weights=weights), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_run_can_stop_before_its_schedule_and_is_then_finished(
    cases: list[Case], finished: Path, tmp_path: Path
) -> None:
    plan = replace(PLAN, stop_after=2)
    train(cases, plan, tmp_path)
    assert load_checkpoint(tmp_path / CHECKPOINT_NAME).step == 2
    train(cases, plan, tmp_path)
    assert load_training_state(tmp_path / STATE_NAME).step == 2
    train(cases, PLAN, tmp_path)
    _assert_same_run(finished, tmp_path)


def test_stop_beyond_the_schedule_changes_nothing(cases: list[Case], tmp_path: Path) -> None:
    train(cases, replace(PLAN, steps=1, stop_after=9), tmp_path)
    assert load_training_state(tmp_path / STATE_NAME).step == 1


@pytest.mark.parametrize("changes", [{"steps": 3}, {"stop_after": 3}], ids=str)
def test_longer_run_in_the_folder_is_not_taken_for_a_finished_one(
    cases: list[Case], finished: Path, changes: dict[str, int]
) -> None:
    with pytest.raises(TrainingError, match="it has done 4 steps; the plan ends after 3"):
        train(cases, replace(PLAN, **changes), finished)


def test_state_of_other_networks_is_refused(cases: list[Case], finished: Path) -> None:
    with pytest.raises(TrainingError, match=r"its networks are others; tensors \d+ of another shape"):
        train(cases, replace(PLAN, trio=replace(TINY, unet_width=3)), finished)


def test_damaged_state_is_refused(cases: list[Case], tmp_path: Path) -> None:
    (tmp_path / STATE_NAME).write_bytes(b"damaged")
    with pytest.raises(ModelError, match="the training state cannot be read"):
        train(cases, PLAN, tmp_path)


@pytest.mark.parametrize(
    ("step", "expected"),
    [
        pytest.param(0, 1 / 4, id="warm-up starts at its first part"),
        pytest.param(2, 3 / 4, id="warm-up is linear"),
        pytest.param(3, 1.0, id="warm-up ends at the largest"),
        pytest.param(4, 1.0, id="cosine starts at the largest"),
        pytest.param(54, 0.01 + 0.99 / 2, id="middle of the cosine"),
        pytest.param(104, 0.01, id="cosine ends at one percent"),
    ],
)
def test_learning_rate_warms_up_and_falls_along_half_a_cosine(step: int, expected: float) -> None:
    plan = replace(PLAN, steps=104, warm_up=4, learning_rate=2.0)
    assert loop._learning_rate(plan, step) == pytest.approx(2.0 * expected)


def test_tiles_of_a_step_are_one_batch(cases: list[Case]) -> None:
    image, target = loop.draw_batch(cases, replace(PLAN, tiles_per_step=3), np.random.default_rng(0))
    assert (image.shape, image.dtype) == ((3, 1, 32, 32, 32), torch.float32)
    assert target.label_map.shape == (3, 32, 32, 32)
    assert target.allowed.shape == (3, 3, 32, 32, 32)
    assert image.min() >= -1.0, "modality units must have gone through the intensity rule"
    assert image.max() <= 1.0


def test_cases_are_drawn_by_their_weights() -> None:
    cases = [
        replace(block_case(name), voxels=np.full((24, 40, 42), hu, np.float32)) for name, hu in (("P", 0), ("Q", 500))
    ]
    still = AugmentSpec(enhancement_hu={}, shift_hu=0.0, gain=0.0, noise_hu=0.0)
    plan = replace(PLAN, case_weights={"P": 3.0, "Q": 1.0}, augment=still, tiles_per_step=200)
    plan = replace(plan, tiling=plan.tiling.model_copy(update={"tile_shape": (4, 4, 4)}))
    image, _ = loop.draw_batch(cases, plan, np.random.default_rng(0))
    brightest = image.flatten(1).max(dim=1).values
    assert float((brightest > 0.25).float().mean()) == pytest.approx(0.25, abs=0.1)  # 200 draws: three deviations
