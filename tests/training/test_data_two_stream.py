"""Batches of labelled and unlabelled cases: every case in its turn, the same after a restart, shared among workers."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest

from ucseg_training.data.two_stream import TwoStreamSampler
from ucseg_training.errors import TrainingError

SAMPLER = TwoStreamSampler(labelled=8, unlabelled=21, batch_size=4, seed=42)


def test_every_labelled_case_comes_once_in_an_epoch() -> None:
    assert SAMPLER.steps_per_epoch == 4
    orders = []
    for epoch in range(3):
        drawn = [index for step in range(4) for index in SAMPLER.draw(4 * epoch + step).labelled]
        assert sorted(drawn) == list(range(8))
        orders.append(drawn)
    assert orders[0] != orders[1] != orders[2], "each epoch is shuffled anew"


def test_what_does_not_fill_a_batch_is_left_out_of_its_epoch() -> None:
    sampler = TwoStreamSampler(labelled=7, unlabelled=5, batch_size=4, seed=0)
    assert sampler.steps_per_epoch == 3
    left_out = set()
    for epoch in range(20):
        drawn = [index for step in range(3) for index in sampler.draw(3 * epoch + step).labelled]
        assert len(set(drawn)) == 6
        left_out |= set(range(7)) - set(drawn)
    assert len(left_out) > 3, "not always the same"


def test_unlabelled_cases_come_from_endless_shuffles() -> None:
    drawn = [index for step in range(42) for index in SAMPLER.draw(step).unlabelled]
    for shuffle in range(4):
        assert sorted(drawn[21 * shuffle : 21 * (shuffle + 1)]) == list(range(21))
    assert drawn[:21] != drawn[21:42]


def test_halves_are_equal_and_in_range() -> None:
    for step in range(50):
        batch = SAMPLER.draw(step)
        assert len(batch.labelled) == len(batch.unlabelled) == 2
        assert max(batch.labelled) < 8
        assert max(batch.unlabelled) < 21


def test_a_step_draws_the_same_whenever_it_is_asked_for() -> None:
    forwards = [SAMPLER.draw(step) for step in range(30)]
    again = TwoStreamSampler(labelled=8, unlabelled=21, batch_size=4, seed=42)
    assert [again.draw(step) for step in reversed(range(30))][::-1] == forwards
    assert [replace(SAMPLER, seed=43).draw(step) for step in range(30)] != forwards


def test_workers_share_a_step_without_overlap_and_draw_what_one_would() -> None:
    shared, alone = replace(SAMPLER, world_size=2), replace(SAMPLER, batch_size=8)
    assert shared.steps_per_epoch == alone.steps_per_epoch == 2
    for step in range(12):
        parts = [shared.draw(step, rank) for rank in range(2)]
        whole = alone.draw(step)
        assert parts[0].labelled + parts[1].labelled == whole.labelled
        assert parts[0].unlabelled + parts[1].unlabelled == whole.unlabelled
        assert len(set(whole.labelled)) == 4


def test_few_unlabelled_cases_are_used_again_within_a_batch() -> None:
    sampler = TwoStreamSampler(labelled=8, unlabelled=1, batch_size=4, seed=0)
    assert sampler.draw(0).unlabelled == (0, 0)
    counts = Counter(i for s in range(30) for i in replace(sampler, unlabelled=3).draw(s).unlabelled)
    assert set(counts.values()) == {20}


@pytest.mark.parametrize("batch_size", [0, 1, 3, 5])
def test_batch_that_cannot_be_halved_is_refused(batch_size: int) -> None:
    with pytest.raises(TrainingError, match=f"the batch has {batch_size} cases; expected an even number"):
        TwoStreamSampler(labelled=8, unlabelled=8, batch_size=batch_size, seed=0)


def test_too_few_cases_are_refused() -> None:
    with pytest.raises(TrainingError, match="there are 1 labelled cases; a step takes 2 for each of 1"):
        TwoStreamSampler(labelled=1, unlabelled=8, batch_size=4, seed=0)
    with pytest.raises(TrainingError, match="there are 8 labelled cases; a step takes 2 for each of 5"):
        TwoStreamSampler(labelled=8, unlabelled=8, batch_size=4, seed=0, world_size=5)
    with pytest.raises(TrainingError, match="no unlabelled cases"):
        TwoStreamSampler(labelled=8, unlabelled=0, batch_size=4, seed=0)


@pytest.mark.parametrize("rank", [-1, 2])
def test_unknown_worker_is_refused(rank: int) -> None:
    with pytest.raises(TrainingError, match=f"no worker {rank} among 2"):
        replace(SAMPLER, world_size=2).draw(0, rank)
