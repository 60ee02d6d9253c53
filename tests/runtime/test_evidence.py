"""Evidential read-out: golden values and the identities that tie uncertainty, belief and probability together."""

from __future__ import annotations

import math

import numpy as np
import pytest

from ucseg_runtime.evidence import evidence_from_logits, probabilities_from_logits


def one_voxel(*logits: float) -> np.ndarray:
    return np.array(logits, dtype=np.float32).reshape(1, -1, 1, 1, 1)


@pytest.fixture
def logits() -> np.ndarray:
    return np.random.default_rng(0).normal(scale=8.0, size=(2, 4, 3, 3, 3)).astype(np.float32)


@pytest.mark.parametrize("classes", [2, 4])
def test_logits_of_zero_leave_the_same_uncertainty_for_any_number_of_classes(classes: int) -> None:
    evidence = evidence_from_logits(one_voxel(*[0.0] * classes))
    np.testing.assert_allclose(evidence.per_class, math.log(2), atol=1e-6)
    assert evidence.strength.item() == pytest.approx(classes * (1 + math.log(2)), abs=1e-5)
    assert evidence.uncertainty.item() == pytest.approx(0.5906, abs=5e-5)


def test_confident_voxel_of_two_classes_has_uncertainty_one_sixth() -> None:
    assert evidence_from_logits(one_voxel(10.0, -10.0)).uncertainty.item() == pytest.approx(2 / 12, abs=1e-5)


def test_no_evidence_at_all_is_uncertainty_one() -> None:
    assert evidence_from_logits(one_voxel(-1e4, -1e4, -1e4)).uncertainty.item() == 1.0


def test_uncertainty_and_belief_sum_to_one(logits: np.ndarray) -> None:
    evidence = evidence_from_logits(logits)
    total = evidence.uncertainty + evidence.belief.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(total, 1.0, atol=1e-6)


def test_expected_probability_sums_to_one_and_ranks_as_the_logits_do(logits: np.ndarray) -> None:
    expected = evidence_from_logits(logits).expected_probability
    np.testing.assert_allclose(expected.sum(axis=1), 1.0, atol=1e-6)
    np.testing.assert_array_equal(expected.argmax(axis=1), logits.argmax(axis=1))


def test_more_evidence_for_any_class_means_less_uncertainty(logits: np.ndarray) -> None:
    moderate = logits.clip(-5, 5)  # beyond, float32 cannot tell the evidence apart
    more = moderate + np.eye(4, dtype=np.float32)[2].reshape(1, 4, 1, 1, 1)
    assert (evidence_from_logits(more).uncertainty < evidence_from_logits(moderate).uncertainty).all()


def test_read_out_stays_finite_in_float32_for_logits_of_any_size() -> None:
    extreme = one_voxel(1e4, -1e4)
    evidence = evidence_from_logits(extreme)
    for values in (evidence.uncertainty, evidence.belief, probabilities_from_logits(extreme, "softmax")):
        assert values.dtype == np.float32
        assert np.isfinite(values).all()
    assert probabilities_from_logits(extreme, "sigmoid").item() == 0.0
    assert probabilities_from_logits(-extreme, "sigmoid").item() == 1.0


def test_softmax_probabilities_are_invariant_to_a_common_offset(logits: np.ndarray) -> None:
    probabilities = probabilities_from_logits(logits, "softmax")
    np.testing.assert_allclose(probabilities.sum(axis=1), 1.0, atol=1e-6)
    np.testing.assert_allclose(probabilities_from_logits(logits + 5, "softmax"), probabilities, atol=1e-5)


def test_sigmoid_reads_the_foreground_channel_alone() -> None:
    foreground = probabilities_from_logits(one_voxel(7.0, math.log(3)), "sigmoid")
    assert foreground.shape == (1, 1, 1, 1, 1)
    assert foreground.item() == pytest.approx(0.75, abs=1e-6)
