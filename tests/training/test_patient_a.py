"""The test patient's labels lie on its image: every axis runs the right way."""

from __future__ import annotations

import numpy as np
import pytest

from ucseg_training.data.case import Case
from ucseg_training.demo_model import LABELS

pytestmark = pytest.mark.real_data

FLIPS = {"z": 0, "y": 1, "x": 2}


@pytest.fixture(scope="module")
def patient() -> Case:
    from ucseg_training.data.patient_a import patient_a

    return patient_a()


def _mean_hu(patient: Case, organ: str, flipped: int | None = None) -> float:
    labels = patient.label_map if flipped is None else np.flip(patient.label_map, flipped)
    return float(patient.voxels[labels == LABELS[organ]].mean())


def test_labelled_lungs_hold_air(patient: Case) -> None:
    assert _mean_hu(patient, "lungs") < -600.0


def test_labelled_heart_is_tissue_with_contrast_agent(patient: Case) -> None:
    assert 250.0 < _mean_hu(patient, "heart") < 400.0


def test_labelled_liver_is_tissue_before_the_venous_phase(patient: Case) -> None:
    assert 40.0 < _mean_hu(patient, "liver") < 120.0


@pytest.mark.parametrize("axis", FLIPS)
def test_labels_turned_the_other_way_round_would_show(patient: Case, axis: str) -> None:
    assert _mean_hu(patient, "liver", FLIPS[axis]) < 0.0


def test_every_class_is_known_everywhere(patient: Case) -> None:
    assert (patient.known == 0b11111).all()
    assert patient.voxels.dtype == np.float32
