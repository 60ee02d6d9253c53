"""NIfTI files. Their axes are (x, y, z) and their world is RAS; both end here."""

from __future__ import annotations

import zlib
from pathlib import Path

import nibabel
import numpy as np
import numpy.typing as npt
from nibabel.filebasedimages import ImageFileError

from ucseg_runtime.errors import InputError
from ucseg_runtime.geometry import VolumeGeometry
from ucseg_training.data.source import SourceImage, StoredLabel, reading

_RAS_TO_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
_UNREADABLE = (ImageFileError, OSError, EOFError, zlib.error, ValueError, ArithmeticError, MemoryError)


def read_nifti_image(path: Path) -> SourceImage:
    """One channel, scaled as the header says.

    Raises:
        InputError: Not a readable NIfTI file of one real-valued volume.
        GeometryError: Its axes are not perpendicular.
    """
    values, geometry = _read(path, "its image")
    return SourceImage(values.astype(np.float32)[None], geometry)


def read_nifti_label(path: Path) -> StoredLabel:
    """The stored values; raises as `read_nifti_image`."""
    return StoredLabel(*_read(path, "its label"))


def _read(path: Path, what: str) -> tuple[npt.NDArray[np.generic], VolumeGeometry]:
    with reading(what, *_UNREADABLE):
        image = nibabel.load(path)
        values = np.asarray(image.dataobj)
        affine = np.asarray(image.affine, dtype=np.float64)
    while values.ndim > 3 and values.shape[-1] == 1:
        values = values[..., 0]
    if values.ndim == 2:
        values = values[..., None]
    if values.ndim != 3 or values.dtype.kind not in "biuf":
        raise InputError(f"{what} has shape {values.shape} and holds {values.dtype}; expected one volume of numbers.")
    x, y, z = values.shape
    geometry = VolumeGeometry((_RAS_TO_LPS @ affine)[:, [2, 1, 0, 3]], (z, y, x))
    return values.transpose(2, 1, 0), geometry
