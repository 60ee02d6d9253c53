"""Boxes that training volumes are cut to; dataset preparation only, since some need a label."""

from __future__ import annotations

import hashlib

import numpy as np
import numpy.typing as npt

from ucseg_runtime.arrays import BoolArray, UInt8Array
from ucseg_training.data.dataset_spec import ImageCrop, LabelCrop
from ucseg_training.data.sample import Sample

Box = tuple[slice, ...]


def cropped(sample: Sample, crop: LabelCrop | ImageCrop | None, seed: int) -> Sample:
    """A volume cut to its box, a copy; the sample itself where there is nothing to cut to.

    Args:
        sample: A volume, shape (channels, z, y, x).
        crop: What to cut.
        seed: Of the margins, together with the sample's name.
    """
    if crop is None:
        return sample
    if isinstance(crop, ImageCrop):
        box = _image_box(sample)
    elif sample.label_map is None or not sample.label_map.any():
        return sample
    else:
        box = label_box(sample.label_map, crop, _generator(seed, sample.name))
    return Sample(
        name=sample.name,
        patient=sample.patient,
        image=np.ascontiguousarray(sample.image[(slice(None), *box)]),
        label_map=_cut(sample.label_map, box),
        known=_cut(sample.known, box),
        padding=sample.padding,
    )


def label_box(label_map: UInt8Array, crop: LabelCrop, rng: np.random.Generator) -> Box:
    """The box around all labels, grown to the least side and then by a margin on every side, inside the volume.

    Args:
        label_map: uint8, shape (z, y, x), not all 0.
        crop: Axes, least side and margins.
        rng: Of the margins: low and high side of z, y, x in turn, as far as these axes are cut.
    """
    box = []
    low_margin, high_margin = crop.margin_voxels
    for axis, (first, stop) in zip("zyx", _extents(label_map != 0), strict=True):
        side = label_map.shape["zyx".index(axis)]
        if axis not in crop.axes:
            box.append(slice(0, side))
            continue
        missing = max(crop.least_voxels - (stop - first), 0)
        below, above = (int(margin) for margin in rng.integers(low_margin, high_margin, size=2, endpoint=True))
        low, high = first - missing // 2 - below, stop + (missing - missing // 2) + above
        box.append(slice(max(low, 0), min(high, side)))
    return tuple(box)


def _image_box(sample: Sample) -> Box:
    shape = (-1,) + (1,) * len(sample.spatial_shape)
    content: BoolArray = np.any(sample.image != sample.padding.reshape(shape), axis=0)
    if not content.any():
        return tuple(slice(0, side) for side in sample.spatial_shape)
    return tuple(slice(first, stop) for first, stop in _extents(content))


def _extents(marked: npt.NDArray[np.bool_]) -> list[tuple[int, int]]:
    """First and one beyond the last marked index of every axis."""
    extents = []
    for axis in range(marked.ndim):
        used = np.flatnonzero(marked.any(axis=tuple(other for other in range(marked.ndim) if other != axis)))
        extents.append((int(used[0]), int(used[-1]) + 1))
    return extents


def _cut(array: UInt8Array | None, box: Box) -> UInt8Array | None:
    return None if array is None else np.ascontiguousarray(array[box])


def _generator(seed: int, name: str) -> np.random.Generator:
    """The same for a case wherever it stands in its list."""
    return np.random.default_rng((seed, int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "little")))
