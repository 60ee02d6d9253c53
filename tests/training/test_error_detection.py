"""Detecting errors by uncertainty, against definitions written out."""

from __future__ import annotations

import math

import numpy as np
import pytest

from ucseg_training.error_detection import error_detection


def test_area_under_the_roc_is_the_chance_that_an_error_ranks_higher() -> None:
    rng = np.random.default_rng(2)
    uncertainty = rng.integers(0, 12, 300).astype(np.float32) / 16  # with ties
    wrong = rng.random(300) < uncertainty
    pairs = [(u > v) + 0.5 * (u == v) for u in uncertainty[wrong] for v in uncertainty[~wrong]]

    assert error_detection(uncertainty, wrong).auroc == pytest.approx(np.mean(pairs), abs=1e-12)


def test_area_under_the_risk_coverage_curve_is_the_mean_risk_of_the_surest_voxels() -> None:
    rng = np.random.default_rng(3)
    uncertainty = rng.permutation(4000).astype(np.float32) / 4000
    wrong = rng.random(4000) < uncertainty / 2
    ordered = wrong[np.argsort(uncertainty)]
    risks = np.cumsum(ordered) / np.arange(1, 4001)

    # A sum of 4000 steps against its integral.
    assert error_detection(uncertainty, wrong).aurc == pytest.approx(risks.mean(), abs=2e-3)


def test_uncertainty_that_says_nothing_has_the_error_as_its_area() -> None:
    wrong = np.arange(100) < 7
    found = error_detection(np.full(100, 0.25, np.float32), wrong)
    assert (found.auroc, found.aurc, found.error) == pytest.approx((0.5, 0.07, 0.07))


def test_perfect_ranking_beats_the_opposite_one() -> None:
    wrong = np.arange(1000) >= 900
    up = np.linspace(0, 1, 1000, dtype=np.float32)
    good, bad = error_detection(up, wrong), error_detection(1 - up, wrong)
    assert (good.auroc, bad.auroc) == (1.0, 0.0)
    assert good.aurc < good.error < bad.aurc


def test_what_is_not_defined_is_not_a_number() -> None:
    nothing = error_detection(np.zeros(0, np.float32), np.zeros(0, bool))
    flawless = error_detection(np.zeros(5, np.float32), np.zeros(5, bool))
    assert math.isnan(nothing.aurc)
    assert math.isnan(flawless.auroc)
    assert flawless.aurc == 0.0
