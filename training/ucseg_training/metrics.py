"""How well one mask agrees with its reference: overlap, surface distances in mm, and volumes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ucseg_runtime.arrays import BoolArray, Float64Array
from ucseg_runtime.errors import InputError

_PERCENTILE = 95.0
_MM3_PER_ML = 1000.0


@dataclass(frozen=True)
class MaskScores:
    """Scores of one class in one case. NaN where a score is not defined; no score is ever made up.

    Attributes:
        dice: 2 |P ∩ T| / (|P| + |T|), in [0, 1]; NaN where both masks are empty.
        jaccard: |P ∩ T| / |P ∪ T|, in [0, 1]; NaN where both masks are empty.
        hd95_mm: The greater of the two directed 95th percentiles of the surface distances, in mm. NaN where a mask is
            empty, or where the class is not decided everywhere.
        assd_mm: *Average symmetric surface distance*: mean of the surface distances of both directions pooled, in mm.
            Not the one-way ASD of the paper. NaN where `hd95_mm` is.
        predicted_ml: Volume of the prediction in ml, over the decided voxels; NaN for a single image.
        truth_ml: The same of the reference.
    """

    dice: float
    jaccard: float
    hd95_mm: float
    assd_mm: float
    predicted_ml: float
    truth_ml: float


@dataclass(frozen=True, eq=False)
class SurfaceDistances:
    """Distances between two surfaces, in the unit of the spacing; both arrays hold at least one.

    Attributes:
        to_truth: float64, (voxels of the predicted surface,), distance of each to the nearest one of the reference.
        to_prediction: float64, (voxels of the reference's surface,), distance of each to the nearest predicted one.
    """

    to_truth: Float64Array
    to_prediction: Float64Array

    @property
    def pooled(self) -> Float64Array:
        """Both directions in one array."""
        return np.concatenate([self.to_truth, self.to_prediction])


def score_masks(
    predicted: BoolArray,
    truth: BoolArray,
    spacing_mm: Sequence[float],
    decided: BoolArray | None = None,
    *,
    surfaces: bool = True,
) -> MaskScores:
    """Compare one class of one case with its reference.

    A prediction of something that is absent scores a Dice of 0, and so does one that misses everything; both leave the
    surface distances undefined. HD95 is that of Metrics Reloaded and of MONAI. The percentile of the pooled distances,
    which medpy and the paper call by the same name, is in `paper_protocol`.

    Args:
        predicted: bool, shape (z, y, x) or (y, x).
        truth: bool, same shape.
        spacing_mm: Distance of neighbouring voxels along the same axes.
        decided: bool, same shape: where it is known whether the class is present. A voxel of `truth` is decided in any
            case. Predicted voxels elsewhere are ignored; then surfaces cannot be compared, since the true one may run
            through the undecided part. None: everywhere.
        surfaces: Whether surface distances are computed, which takes seconds for a large mask; else they are NaN.

    Raises:
        InputError: The arrays are not boolean, differ in shape, or do not fit the spacing.

    Source: L. Maier-Hein et al., Metrics reloaded, Nature Methods 21 (2024), for HD95 and ASSD.
    """
    require_masks(predicted, truth)
    _require_spacing(spacing_mm, predicted.ndim)
    complete = decided is None
    if decided is not None:
        require_masks(decided, truth)
        known = decided | truth
        complete = bool(known.all())
        predicted = predicted & known
    distances = surface_distances(predicted, truth, spacing_mm) if complete and surfaces else None
    voxel_ml = math.prod(spacing_mm) / _MM3_PER_ML if predicted.ndim == 3 else math.nan
    return MaskScores(
        dice=dice(predicted, truth),
        jaccard=jaccard(predicted, truth),
        hd95_mm=math.nan if distances is None else _directed_hd95(distances),
        assd_mm=math.nan if distances is None else float(distances.pooled.mean()),
        predicted_ml=int(predicted.sum()) * voxel_ml,
        truth_ml=int(truth.sum()) * voxel_ml,
    )


def dice(predicted: BoolArray, truth: BoolArray) -> float:
    """2 |P ∩ T| / (|P| + |T|), in [0, 1]; NaN where both are empty.

    Counted in integers: MONAI's Dice turns masks into float32, four times their size, and is then off by the rounding.
    """
    total = int(predicted.sum()) + int(truth.sum())
    return 2 * int((predicted & truth).sum()) / total if total else math.nan


def jaccard(predicted: BoolArray, truth: BoolArray) -> float:
    """|P ∩ T| / |P ∪ T|, in [0, 1]; NaN where both are empty."""
    union = int((predicted | truth).sum())
    return int((predicted & truth).sum()) / union if union else math.nan


def surface_distances(
    predicted: BoolArray, truth: BoolArray, spacing: Sequence[float] | None = None
) -> SurfaceDistances | None:
    """Euclidean distances between the surface voxels of two masks.

    The surface is the mask minus its erosion by the element of face neighbours; space outside the array counts as
    background. Distances are those of voxel centres, and every surface voxel counts alike, whatever area it stands for.

    Args:
        predicted: bool, shape (z, y, x) or (y, x).
        truth: bool, same shape.
        spacing: Distance of neighbouring voxels along the same axes; None: voxel units.

    Returns:
        Distances of both directions; None where a mask is empty.
    """
    # MONAI takes seconds to import, and Dice alone does not need it.
    from monai.metrics.utils import get_mask_edges, get_surface_distance

    if not (predicted.any() and truth.any()):
        return None
    box = bounding_box(predicted | truth)
    # MONAI's own crop goes through tensors with metadata and pads again.
    edges = get_mask_edges(predicted[box], truth[box], crop=False)
    surface, true_surface = (np.asarray(edge, dtype=np.bool_) for edge in edges)
    scale = None if spacing is None else [float(side) for side in spacing]
    return SurfaceDistances(
        to_truth=np.asarray(get_surface_distance(surface, true_surface, spacing=scale), dtype=np.float64),
        to_prediction=np.asarray(get_surface_distance(true_surface, surface, spacing=scale), dtype=np.float64),
    )


def bounding_box(mask: BoolArray) -> tuple[slice, ...]:
    """The smallest box that holds every voxel of a mask that is not empty.

    Args:
        mask: bool, any number of axes, at least one voxel set.
    """
    sides: list[slice] = []
    rest = mask
    for _ in range(mask.ndim):
        # The next axis is reduced over what the box holds so far: only the first pass reads the whole array.
        occupied = np.flatnonzero(rest.reshape(len(rest), -1).any(axis=1))
        side = slice(int(occupied[0]), int(occupied[-1]) + 1)
        sides.append(side)
        rest = np.asarray(rest[side].any(axis=0))
    return tuple(sides)


def require_masks(mask: BoolArray, truth: BoolArray) -> None:
    """Refuse what is not a pair of masks on one grid.

    Raises:
        InputError: Not boolean, not of two or three axes, or of different shapes.
    """
    if mask.dtype != np.bool_ or truth.dtype != np.bool_:
        raise InputError(
            f"masks of types {mask.dtype} and {truth.dtype} were to be compared; expected two of bool.",
            hint="Compare one label at a time: label_map == label.",
        )
    if mask.shape != truth.shape or mask.ndim not in (2, 3):
        raise InputError(
            f"masks of shapes {mask.shape} and {truth.shape} were to be compared; expected two of one shape with axes "
            "(z, y, x) or (y, x).",
            hint="Bring the prediction back to the grid of the reference first.",
        )


def _require_spacing(spacing_mm: Sequence[float], axes: int) -> None:
    if len(spacing_mm) != axes or not all(math.isfinite(side) and side > 0.0 for side in spacing_mm):
        raise InputError(
            f"the voxel spacing is {tuple(spacing_mm)} mm; expected {axes} positive numbers, one for each axis."
        )


def _directed_hd95(distances: SurfaceDistances) -> float:
    return max(float(np.percentile(side, _PERCENTILE)) for side in (distances.to_truth, distances.to_prediction))
