"""Labelled cases on which the right temperature is known, and a made-up `calibration.json`.

Labels are drawn voxel by voxel, each as often as the others; a voxel shows the centre of its class in `ModelPhantom`
and Gaussian noise. The true log-odds are then those of the model with a sharpness of 1 / σ², whatever its own one is.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from tests.model_phantom import HU_PER_UNIT, ModelPhantom
from ucseg_runtime.calibration import (
    Calibration,
    CaseFigures,
    CasePoint,
    ClassCalibration,
    ClassInterval,
    Estimate,
    Resampling,
    ScoreLimits,
    Temperature,
    VolumeIntervals,
    VoxelFigures,
)
from ucseg_runtime.geometry import VolumeGeometry
from ucseg_training.data.case import Case, save_case

_PREPROCESSING = {
    "spacing_mm": (2.0, 2.0, 2.0),
    # Noise beyond the outermost centres must reach the network as it is.
    "intensity": {"kind": "piecewise_linear", "knots": [(-10 * HU_PER_UNIT, -10.0), (10 * HU_PER_UNIT, 10.0)]},
    "padding_value": -1000.0,
}


def model_phantom(sharpness: float) -> ModelPhantom:
    """A model that takes every intensity."""
    changes = {"preprocessing": _PREPROCESSING}
    return ModelPhantom(tile_shape=(8, 16, 16), overlap=0.0, sharpness=sharpness, changes=changes)


MODEL = model_phantom(40.0)
SIGMA = 0.4
"""In network input units."""
TEMPERATURE = MODEL.sharpness * SIGMA**2
"""Of `MODEL` on cases with that noise: 6.4."""

SHAPE = (8, 24, 24)


def noisy_case(name: str, seed: int, sigma: float = SIGMA, known: int = 0b11) -> Case:
    """A case of that patient on the model grid."""
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, len(MODEL.centres), SHAPE).astype(np.uint8)
    centres = np.array(MODEL.centres, dtype=np.float32)
    voxels = HU_PER_UNIT * (centres[labels] + generator.normal(0.0, sigma, SHAPE))
    geometry = VolumeGeometry(_affine(), SHAPE)
    return Case(name, voxels.astype(np.float32), labels, np.full(SHAPE, known, dtype=np.uint8), geometry)


def write_cases(folder: Path, *cases: Case) -> Path:
    """Save cases under numbers."""
    folder.mkdir(parents=True)
    for number, case in enumerate(cases):
        save_case(case, folder / f"{number:03}.npz")
    return folder


def calibration(digest: str, labels: int = 2, factor: float | None = None, limits: bool = False) -> Calibration:
    """A calibration of made-up figures for a model with that many classes."""
    figure = Estimate(value=0.5, low=0.25, high=0.75)
    names = [(f"class {label}", label) for label in range(1, labels + 1)]
    return Calibration(
        model_digest=digest,
        ucseg_version="0",
        engine="made up",
        cases=1,
        patients=1,
        too_few="1 patient.",
        region="made up",
        resampling=Resampling(resamples=1, seed=0, level=0.95),
        all_voxels=VoxelFigures(
            voxels=1,
            error_rate=figure,
            calibration_error=figure,
            error_auroc=figure,
            error_aupr=figure,
            aurc=figure,
            sparsification=(0.5,),
            left_out=(0.0,),
        ),
        classes=tuple(
            ClassCalibration(
                name=name, label=label, calibration_error=figure, error_auroc=figure, error_aupr=figure, dice=figure
            )
            for name, label in names
        ),
        case_scores=CaseFigures(
            points=(CasePoint(case="case 1 of 1", patient=1, score=0.5, dice=0.5),), spearman=figure, risk_coverage=()
        ),
        temperature=Temperature(
            value=None,
            helps=False,
            patients=1,
            voxels=1,
            calibration_error=figure,
            calibration_error_after=figure,
            nll=figure,
            nll_after=figure,
        ),
        volume_intervals=VolumeIntervals(
            method="made up",
            level=0.9,
            classes=tuple(
                ClassInterval(
                    name=name, label=label, factor=factor, cases=1, patients=1, covered_with_factor_1=1, covered=None
                )
                for name, label in names
            ),
        ),
        score_limits=ScoreLimits(review=0.3, reject=0.6) if limits else None,
        score_limits_reason="" if limits else "1 patient.",
    )


def _affine() -> np.ndarray:
    """2 mm along x, y, z for the indices z, y, x."""
    affine = np.zeros((4, 4))
    affine[[2, 1, 0], [0, 1, 2]] = 2.0
    affine[3, 3] = 1.0
    return affine
