"""Weight-free fusion rules: what every one of them promises, and what tells them apart."""

from __future__ import annotations

import math
from typing import Literal, get_args

import hypothesis.extra.numpy as hnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ucseg_runtime.evidence import evidence_from_logits, probabilities_from_logits
from ucseg_runtime.fusion_names import WeightFreeRule
from ucseg_runtime.fusion_rules import Fused, cost_thresholds, fuse

RULES: tuple[WeightFreeRule, ...] = get_args(WeightFreeRule)
SEE_CONFLICT: tuple[WeightFreeRule, ...] = ("dempster", "entropy", "coranet", "dual", "burl")
Activation = Literal["sigmoid", "softmax"]

LOGITS = st.floats(-1e4, 1e4, width=32)
PAIRS = st.integers(2, 5).flatmap(lambda k: st.tuples(*[hnp.arrays(np.float32, (2, k, 1, 2, 2), elements=LOGITS)] * 2))
MODERATE = hnp.arrays(np.float32, (1, 4, 1, 1, 3), elements=st.floats(-8.0, 8.0, width=32))


def voxel(*logits: float) -> np.ndarray:
    return np.array(logits, dtype=np.float32).reshape(1, -1, 1, 1, 1)


def activations(logits: np.ndarray) -> tuple[Activation, ...]:
    return ("softmax", "sigmoid") if logits.shape[1] == 2 else ("softmax",)


def uncertainty(rule: WeightFreeRule, a: np.ndarray, b: np.ndarray, activation: Activation = "softmax") -> float:
    return fuse(rule, a, b, activation).uncertainty.item()


@pytest.mark.parametrize("rule", RULES)
@settings(max_examples=60, deadline=None)
@given(pair=PAIRS)
def test_results_are_finite_in_range_and_sum_to_one_for_logits_of_any_size(
    rule: WeightFreeRule, pair: tuple[np.ndarray, np.ndarray]
) -> None:
    for activation in activations(pair[0]):
        fused = fuse(rule, *pair, activation)
        for values in (fused.log_probabilities, fused.probabilities, fused.uncertainty):
            assert np.isfinite(values).all()
        np.testing.assert_allclose(np.exp(fused.log_probabilities).sum(axis=1), 1.0, atol=1e-9)
        assert fused.log_probabilities.shape == pair[0].shape
        assert fused.uncertainty.shape == (2, 1, 1, 2, 2)
        for values in (fused.probabilities, fused.uncertainty):
            assert values.min() >= 0.0
            assert values.max() <= 1.0 + 1e-12


@pytest.mark.parametrize("rule", RULES)
@settings(max_examples=60, deadline=None)
@given(pair=PAIRS)
def test_it_does_not_matter_which_subnet_is_called_a(rule: WeightFreeRule, pair: tuple[np.ndarray, np.ndarray]) -> None:
    for activation in activations(pair[0]):
        one, other = fuse(rule, *pair, activation), fuse(rule, *pair[::-1], activation)
        np.testing.assert_allclose(one.probabilities, other.probabilities, rtol=0, atol=1e-12)
        np.testing.assert_allclose(one.uncertainty, other.uncertainty, rtol=0, atol=1e-12)


@pytest.mark.parametrize("rule", SEE_CONFLICT)
@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
def test_uncertainty_is_low_where_subnets_agree_and_higher_where_they_contradict(
    rule: WeightFreeRule, activation: Activation
) -> None:
    sure, opposite = voxel(-10.0, 10.0), voxel(10.0, -10.0)
    assert uncertainty(rule, sure, sure, activation) < 0.03
    assert uncertainty(rule, sure, opposite, activation) > 3 * uncertainty(rule, sure, sure, activation)
    if rule != "dempster":
        assert uncertainty(rule, sure, opposite, activation) > 0.99


def test_mean_does_not_see_conflict() -> None:
    sure, opposite = voxel(-10.0, 10.0), voxel(10.0, -10.0)
    assert uncertainty("mean", sure, opposite) == pytest.approx(uncertainty("mean", sure, sure))


@pytest.mark.parametrize("rule", RULES)
@settings(max_examples=100, deadline=None)
@given(logits=MODERATE, factor=st.floats(1.0, 4.0))
def test_agreeing_subnets_are_never_less_sure_with_larger_logits(
    rule: WeightFreeRule, logits: np.ndarray, factor: float
) -> None:
    """For logits whose sum is 0: evidence of one network grows with their scale only if they are not all negative."""
    centred = logits.astype(np.float64) - logits.mean(axis=1, keepdims=True, dtype=np.float64)
    before, after = (fuse(rule, scaled, scaled, "softmax").uncertainty for scaled in (centred, factor * centred))
    assert (after <= before + 1e-9).all()


def test_larger_logits_of_contradicting_subnets_make_the_divergence_larger() -> None:
    """So the uncertainty of dual grows with the scale where subnets disagree, and is 0 where they agree."""
    a, b = voxel(0.5, -0.5), voxel(-0.5, 0.5)
    assert uncertainty("dual", 3 * a, 3 * b) > uncertainty("dual", a, b)
    assert uncertainty("dual", a, a) == 0.0


def test_negative_logits_of_a_larger_scale_are_less_evidence() -> None:
    one, four = voxel(-1.0, -2.0), voxel(-4.0, -8.0)
    for rule in ("mean", "dempster"):
        assert uncertainty(rule, four, four) > uncertainty(rule, one, one)


@settings(max_examples=50, deadline=None)
@given(logits=MODERATE)
def test_every_mixture_of_equal_subnets_is_that_subnet(logits: np.ndarray) -> None:
    expected = probabilities_from_logits(logits, "softmax")
    for rule in ("mean", "entropy", "coranet", "dual", "burl"):
        np.testing.assert_allclose(fuse(rule, logits, logits, "softmax").probabilities, expected, atol=1e-6)


def test_mean_averages_probabilities_and_evidential_uncertainties() -> None:
    a, b = voxel(1.0, 3.0, -2.0), voxel(0.0, -1.0, 4.0)
    fused = fuse("mean", a, b, "softmax")
    p_a, p_b = (probabilities_from_logits(logits, "softmax") for logits in (a, b))
    u_a, u_b = (evidence_from_logits(logits).uncertainty for logits in (a, b))
    np.testing.assert_allclose(fused.probabilities, (p_a + p_b) / 2, atol=1e-6)
    np.testing.assert_allclose(fused.uncertainty, (u_a + u_b) / 2, atol=1e-6)


def test_dempster_is_the_combination_as_written_with_its_conflict() -> None:
    a, b = voxel(1.0, 3.0, -2.0), voxel(0.0, -1.0, 4.0)
    one, other = evidence_from_logits(a), evidence_from_logits(b)
    b_a, b_b, u_a, u_b = (
        x.ravel().astype(np.float64) for x in (one.belief, other.belief, one.uncertainty, other.uncertainty)
    )
    conflict = sum(b_a[i] * b_b[j] for i in range(3) for j in range(3) if i != j)
    belief = (b_a * b_b + b_a * u_b + b_b * u_a) / (1 - conflict)
    u = u_a * u_b / (1 - conflict)
    strength = 3 / u
    fused = fuse("dempster", a, b, "softmax")
    np.testing.assert_allclose(fused.probabilities.ravel(), (belief * strength + 1) / strength, atol=1e-6)
    np.testing.assert_allclose(fused.uncertainty.ravel(), u, atol=1e-6)


def test_two_agreeing_subnets_reinforce_each_other_under_dempster() -> None:
    a = voxel(-3.0, 5.0)
    assert uncertainty("dempster", a, a) < evidence_from_logits(a).uncertainty.item()


def test_entropy_listens_to_the_subnet_that_is_surer() -> None:
    sure, unsure = voxel(0.0, 6.0), voxel(0.2, 0.0)
    weighted = fuse("entropy", sure, unsure, "softmax").probabilities[0, 1].item()
    assert weighted > 0.95 > fuse("mean", sure, unsure, "softmax").probabilities[0, 1].item()


@pytest.mark.parametrize(
    ("p_a", "p_b", "expected"),
    [
        (0.9, 0.9, 0.0),
        (0.1, 0.1, 0.0),
        (0.5, 0.5, 1.0),
        (0.9, 0.5, 0.5),
        (0.1, 0.5, 0.5),
        (0.9, 0.1, 1.0),
    ],
)
def test_coranet_counts_the_masks_in_the_minority(p_a: float, p_b: float, expected: float) -> None:
    a, b = (voxel(0.0, math.log(p / (1 - p))) for p in (p_a, p_b))
    for activation in ("softmax", "sigmoid"):
        assert uncertainty("coranet", a, b, activation) == expected


def test_coranet_is_uncertain_where_no_class_is_possible_for_a_subnet() -> None:
    nothing = voxel(*[0.0] * 8)  # each class at 1/8, below 1/6
    assert uncertainty("coranet", nothing, nothing) == 1.0


def test_costs_move_the_thresholds_of_coranet() -> None:
    assert cost_thresholds(5.0) == pytest.approx((1 / 6, 5 / 6))
    a = voxel(0.0, math.log(3))  # 0.75
    assert fuse("coranet", a, a, "sigmoid").uncertainty.item() == 1.0
    assert fuse("coranet", a, a, "sigmoid", {"cost": 2.0}).uncertainty.item() == 0.0


def test_dual_falls_back_on_the_subnet_with_more_evidence_where_they_diverge() -> None:
    strong, weak = voxel(-2.0, 9.0), voxel(3.0, -2.0)
    np.testing.assert_allclose(
        fuse("dual", strong, weak, "softmax").probabilities, probabilities_from_logits(strong, "softmax"), atol=0.01
    )


def test_burl_looks_at_the_surer_subnet_in_the_high_region_only() -> None:
    sure, unsure = voxel(0.0, 3.0), voxel(0.5, 0.0)
    mean = fuse("mean", sure, unsure, "softmax").probabilities
    high, low = (fuse("burl", sure, unsure, "softmax", {"tau": tau}) for tau in (0.5, 0.95))
    assert 0.5 < high.uncertainty.item() < 0.95
    np.testing.assert_allclose(high.probabilities, probabilities_from_logits(sure, "softmax"), atol=1e-6)
    np.testing.assert_allclose(low.probabilities, mean, atol=1e-12)


@pytest.mark.parametrize("rule", RULES)
@settings(max_examples=60, deadline=None)
@given(a=MODERATE, b=MODERATE, seed=st.integers(0, 2**16))
def test_no_rounding_decides_a_voxel(rule: WeightFreeRule, a: np.ndarray, b: np.ndarray, seed: int) -> None:
    """Logits that are off by 1e-4 move nothing by more than 0.01: the steepest ramp of a rule is 1 / 0.04."""
    noise = np.random.default_rng(seed).uniform(-1e-4, 1e-4, size=(2, *a.shape)).astype(np.float32)
    one, other = fuse(rule, a, b, "softmax"), fuse(rule, a + noise[0], b + noise[1], "softmax")
    np.testing.assert_allclose(one.probabilities, other.probabilities, rtol=0, atol=0.01)
    np.testing.assert_allclose(one.uncertainty, other.uncertainty, rtol=0, atol=0.01)


@pytest.mark.parametrize("rule", RULES)
def test_background_channel_of_a_sigmoid_model_is_no_probability(rule: WeightFreeRule) -> None:
    """It is evidence, though: mean, dempster and dual look at it for that."""
    fused: Fused = fuse(rule, voxel(7.0, 1.0), voxel(7.0, 1.0), "sigmoid")
    assert fused.probabilities.shape == (1, 1, 1, 1, 1)
    if rule != "dempster":
        assert fused.probabilities.item() == pytest.approx(1 / (1 + math.exp(-1.0)))


@pytest.mark.parametrize(
    ("rule", "parameters"),
    [("mean", {"cost": 5.0}), ("coranet", {"cost": 1.0}), ("burl", {"tau": 1.0}), ("burl", {"tau": math.nan})],
)
def test_parameters_that_a_rule_has_not_or_cannot_have_are_refused(
    rule: WeightFreeRule, parameters: dict[str, float]
) -> None:
    with pytest.raises(ValueError, match="parameter"):
        fuse(rule, voxel(0.0, 1.0), voxel(0.0, 1.0), "softmax", parameters)
