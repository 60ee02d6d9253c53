"""HDF5 files with an image and a label in each, as the projects around SSL4MIS keep them."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import numpy.typing as npt

from ucseg_runtime.errors import InputError
from ucseg_training.data.dataset_spec import DatasetSpec, Hdf5Rule
from ucseg_training.data.label_grid import straight_geometry
from ucseg_training.data.source import SourceImage, StoredLabel, reading

_UNREADABLE = (OSError, KeyError, ValueError, TypeError, AttributeError, RuntimeError, MemoryError)


def read_hdf5_image(path: Path, spec: DatasetSpec) -> SourceImage:
    """One channel, as stored, on a grid along the patient's axes.

    Raises:
        InputError: Not a readable HDF5 file, without the image, or the description does not say what it means.
    """
    rule = _rule_of(spec)
    values = _read(path, rule.image, "its image", rule)
    return SourceImage(values.astype(np.float32)[None], straight_geometry(_shape(values), rule.spacing_mm))


def read_hdf5_label(path: Path, spec: DatasetSpec) -> StoredLabel:
    """The stored values; raises as `read_hdf5_image`."""
    rule = _rule_of(spec)
    values = _read(path, rule.label, "its label", rule)
    return StoredLabel(values, straight_geometry(_shape(values), rule.spacing_mm))


def _rule_of(spec: DatasetSpec) -> Hdf5Rule:
    if spec.hdf5 is None:
        raise InputError(
            "it is an HDF5 file, and the description of the data set has no section hdf5.",
            hint="Say there which arrays are image and label, in which order of axes and with which spacing.",
        )
    return spec.hdf5


def _read(path: Path, key: str, what: str, rule: Hdf5Rule) -> npt.NDArray[np.generic]:
    """Shape (z, y, x)."""
    with reading(what, *_UNREADABLE), h5py.File(path, "r") as file:
        values: npt.NDArray[np.generic] = np.asarray(file[key][()])
    if values.dtype.kind not in "biuf" or values.ndim not in (2, 3) or not values.size:
        raise InputError(
            f"{what} has shape {values.shape} and holds {values.dtype}; expected a plane or a volume of numbers."
        )
    if values.ndim == 2:
        return values[None]
    return values.transpose(2, 1, 0) if rule.axis_order == "xyz" else values


def _shape(values: npt.NDArray[np.generic]) -> tuple[int, int, int]:
    z, y, x = values.shape
    return z, y, x
