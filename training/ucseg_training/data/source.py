"""What the files of a case hold, before any preparation."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ucseg_runtime.arrays import Float32Array, UInt8Array
from ucseg_runtime.errors import InputError
from ucseg_runtime.geometry import VolumeGeometry


@dataclass(frozen=True, eq=False)
class SourceImage:
    """An image as it is stored.

    Attributes:
        voxels: float32, shape (channels, z, y, x), as stored; colours in the order red, green, blue.
        geometry: Grid of the voxels; along the patient's axes where the file says nothing.
        frame_of_reference_uid: (0020,0052) of a DICOM series, else empty.
    """

    voxels: Float32Array
    geometry: VolumeGeometry
    frame_of_reference_uid: str = ""


@dataclass(frozen=True, eq=False)
class StoredLabel:
    """A label as it is stored.

    Attributes:
        values: Any type, shape (z, y, x).
        geometry: Grid of the values.
    """

    values: npt.NDArray[np.generic]
    geometry: VolumeGeometry


@dataclass(frozen=True, eq=False)
class SourceCase:
    """Image and label of a case on one grid.

    Attributes:
        image: The image.
        label_map: uint8, shape (z, y, x), labels of the classes; None for a case without.
        from_hdf5: Whether the stored values mean what the data set says of HDF5 files.
    """

    image: SourceImage
    label_map: UInt8Array | None
    from_hdf5: bool


@contextmanager
def reading(what: str, *exceptions: type[Exception]) -> Iterator[None]:
    """Turn what a library raises on a damaged or missing file into an `InputError` that quotes nothing of it."""
    try:
        yield
    except InputError:
        raise
    except exceptions as error:
        raise InputError(
            f"{what} cannot be read ({type(error).__name__}).", hint="Check the file, or leave the case out."
        ) from error
