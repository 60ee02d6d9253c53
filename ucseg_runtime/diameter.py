"""Largest distance between two points of a segment's surface, exact for the surface of its mesh."""

from __future__ import annotations

import cv2
import numpy as np
import numpy.typing as npt
from scipy.spatial import ConvexHull
from scipy.spatial.distance import pdist

from ucseg_runtime.arrays import Float64Array, UInt8Array
from ucseg_runtime.geometry import VolumeGeometry

_HALF_STEPS = 0.5 * np.concatenate([np.eye(3), -np.eye(3)])
"""From the centre of a voxel to where the mesh crosses the way to its six neighbours, in voxels (z, y, x)."""


def largest_diameter_mm(label_map: UInt8Array, label: int, geometry: VolumeGeometry) -> float:
    """Maximum 3D diameter of a segment in mm; 0 where the segment is empty.

    The surface is the mesh halfway between voxels inside and outside, so that a single voxel is as long as its longest
    side. Of each slice only the convex hull is kept.

    Args:
        label_map: uint8, shape (z, y, x).
        label: Which segment.
        geometry: Grid of the label map.

    Source: Image Biomarker Standardisation Initiative, reference manual, L0JK: largest distance of two vertices of the
    ROI's mesh. Two points that are furthest apart are corners of the convex hull. Its corners are corners of the hulls
    of the slices, half a step along an axis further out.
    """
    corners = [_hull_of_slice(z, plane, label) for z, plane in enumerate(label_map)]
    centres = np.concatenate(corners)
    if not len(centres):
        return 0.0
    vertices = (centres[:, None, :] + _HALF_STEPS).reshape(-1, 3)
    points_mm = vertices @ geometry.affine[:3, :3].T
    outermost: Float64Array = points_mm[ConvexHull(points_mm).vertices]
    return float(pdist(outermost).max())


def _hull_of_slice(z: int, plane: UInt8Array, label: int) -> npt.NDArray[np.int32]:
    """Corners (z, y, x) of the convex hull of a segment in one slice, int32, shape (corners, 3)."""
    points = cv2.findNonZero(np.equal(plane, label).view(np.uint8))
    if points is None:
        return np.empty((0, 3), dtype=np.int32)
    hull = np.asarray(cv2.convexHull(points), dtype=np.int32).reshape(-1, 2)
    return np.column_stack([np.full(len(hull), z, dtype=np.int32), hull[:, ::-1]])
