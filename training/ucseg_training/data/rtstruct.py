"""Contours of an RT structure set to labels: a voxel belongs to a region where its centre lies inside the contours."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Set

import numpy as np
from pydicom.dataset import Dataset

from ucseg_runtime.arrays import Float64Array, UInt8Array
from ucseg_runtime.errors import GeometryError, InputError
from ucseg_runtime.polygons import fill_even_odd
from ucseg_training.data.source import SourceImage

_CLOSED = ("CLOSED_PLANAR", "CLOSEDPLANAR_XOR")
_TOLERANCE_SLICES = 0.25
"""How far a contour may lie from its slice; more would leave open which slice is meant."""


def labels_from_rtstruct(structures: Dataset, image: SourceImage, labels: Mapping[str, int]) -> UInt8Array:
    """Labels of the classes on the grid of the image.

    All contours of a region on one slice are taken together by the even-odd rule, so that one inside another is a hole.
    Where regions overlap, the class with the greater label has the voxel.

    Args:
        structures: An RT structure set.
        image: What it was drawn on.
        labels: Label by lower-case name of the region.

    Returns:
        uint8, shape (z, y, x).

    Raises:
        InputError: Another frame of reference, a class without a region, or contours that are not closed planar ones.
        GeometryError: A contour does not lie on a slice of the image.

    Source: DICOM PS3.3 C.8.8.5 and C.8.8.6.
    """
    label_of = _labels_of_regions(structures, image.frame_of_reference_uid, labels)
    label_map = np.zeros(image.geometry.shape, dtype=np.uint8)
    contours_of = {int(item.ReferencedROINumber): item for item in structures.get("ROIContourSequence") or ()}
    for number in sorted(label_of, key=lambda region: label_of[region]):
        for z, polygons in _polygons_by_slice(contours_of.get(number, Dataset()), image).items():
            label_map[z][fill_even_odd(polygons, label_map.shape[1:])] = label_of[number]
    return label_map


def require_every_class(found: Set[int], labels: Mapping[str, int]) -> None:
    """Check that a segmentation or structure set describes every class, be it as empty.

    Raises:
        InputError: It does not, and it stays open whether the class is absent or was not drawn.
    """
    missing = sorted({name for name, label in labels.items() if label not in found})
    if missing:
        raise InputError(
            f"its label describes nothing called {' or '.join(map(repr, missing))}.",
            hint="Name the segments or regions under `structures` in the data set's description.",
        )


def _labels_of_regions(structures: Dataset, frame_of_reference_uid: str, labels: Mapping[str, int]) -> dict[int, int]:
    label_of = {}
    for region in structures.get("StructureSetROISequence") or ():
        name = str(region.get("ROIName", "")).strip().lower()
        if name not in labels:
            continue
        if frame_of_reference_uid not in ("", str(region.get("ReferencedFrameOfReferenceUID", ""))):
            raise InputError("the structure set belongs to another frame of reference than the image.")
        label_of[int(region.ROINumber)] = labels[name]
    require_every_class(set(label_of.values()), labels)
    return label_of


def _polygons_by_slice(region: Dataset, image: SourceImage) -> dict[int, list[Float64Array]]:
    polygons: dict[int, list[Float64Array]] = {}
    for points in _contours(region):
        index = image.geometry.index_from_lps(points)  # (corners, 3) along (z, y, x)
        z = round(float(index[:, 0].mean()))
        if np.abs(index[:, 0] - z).max() > _TOLERANCE_SLICES or not 0 <= z < image.geometry.shape[0]:
            raise GeometryError(
                "the label lies on another grid than the image: a contour is not on one of the image's slices.",
                hint="Export the structure set together with the series that it was drawn on.",
            )
        polygons.setdefault(z, []).append(index[:, 1:])
    return polygons


def _contours(region: Dataset) -> Iterator[Float64Array]:
    """LPS coordinates in mm of the corners, shape (corners, 3), contour by contour."""
    for contour in region.get("ContourSequence") or ():
        kind = str(contour.get("ContourGeometricType", ""))
        if kind not in _CLOSED:
            raise InputError(f"a contour is of the kind {kind or 'unknown'}; expected {' or '.join(_CLOSED)}.")
        points = np.asarray([float(value) for value in contour.ContourData], dtype=np.float64).reshape(-1, 3)
        if not points.size or not np.isfinite(points).all():
            raise InputError("a contour has no corners, or some that are not finite.")
        yield points
