"""Label map and uncertainty as NIfTI, for research tools. The only place where coordinates are RAS."""

from __future__ import annotations

import gzip
import importlib
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ucseg_runtime.arrays import Float32Array, Float64Array, UInt8Array, UInt16Array
from ucseg_runtime.errors import BackendUnavailableError, OutputError
from ucseg_runtime.geometry import VolumeGeometry

_SCALE = 65535
_SCANNER_ANATOMICAL = 1
_COMPRESSION = 1  # twice as fast as 6 on label maps, and a third larger


def write_nifti(path: Path, voxels: UInt8Array | UInt16Array | Float32Array, geometry: VolumeGeometry) -> None:
    """Write an array with its place in the patient as ``.nii.gz``; the same array always gives the same bytes.

    Args:
        path: File to write.
        voxels: Shape (z, y, x). uint8 labels are stored as they are; float32 in [0, 1] is stored as 16-bit integers
            with slope 1 / 65535, so that the error is at most 1 / 131070; uint16 is what was so stored before. Axes in
            the file are (x, y, z).
        geometry: Grid of the voxels.

    Raises:
        BackendUnavailableError: nibabel is not installed.
        OSError: The file cannot be written.
        OutputError: The array has another type, or floats outside [0, 1].

    Source: NIfTI-1, nifti1.h: RAS+ world coordinates in sform and qform, value = scl_slope × stored + scl_inter.
    """
    stored, slope = _stored(voxels)
    header = _header(stored, geometry, slope)
    with path.open("wb") as file, gzip.GzipFile("", "wb", _COMPRESSION, file, mtime=0) as stream:
        stream.write(header)
        # The third axis of the file is z, so slices follow each other as they lie in memory.
        for plane in stored:
            stream.write(np.ascontiguousarray(plane).data)


def ras_affine(geometry: VolumeGeometry) -> Float64Array:
    """Matrix from the index (x, y, z, 1) of the file to RAS coordinates in mm, float64, shape (4, 4)."""
    reversed_index = np.eye(4)[[2, 1, 0, 3]]
    affine: Float64Array = np.diag([-1.0, -1.0, 1.0, 1.0]) @ geometry.affine @ reversed_index
    return affine


def require_nibabel() -> None:
    """Check that NIfTI can be written, so that a run can fail before it starts and not at its end.

    Raises:
        BackendUnavailableError: nibabel is not installed.
    """
    try:
        importlib.import_module("nibabel")
    except ImportError as error:
        raise BackendUnavailableError(
            "Writing NIfTI needs the 'nifti' extra:", hint="pip install 'ucseg[nifti]'."
        ) from error


def _stored(voxels: UInt8Array | UInt16Array | Float32Array) -> tuple[UInt8Array | UInt16Array, float]:
    if voxels.dtype == np.uint8:
        return voxels.astype(np.uint8, copy=False), 1.0
    if voxels.dtype == np.uint16:
        return voxels.astype(np.uint16, copy=False), 1.0 / _SCALE
    # The comparison is false for NaN, so one test covers both.
    if voxels.dtype != np.float32 or not (voxels.min() >= 0.0 and voxels.max() <= 1.0):
        raise OutputError(
            f"NIfTI is written from uint8 labels or float32 values in [0, 1]; found {voxels.dtype} or values outside.",
            code="UCSEG-E151",
        )
    return np.rint(voxels * np.float32(_SCALE)).astype(np.uint16), 1.0 / _SCALE


def _header(stored: npt.NDArray[np.generic], geometry: VolumeGeometry, slope: float) -> bytes:
    """The 352 bytes before the voxels, little endian."""
    require_nibabel()
    from nibabel.nifti1 import Nifti1Header

    affine = ras_affine(geometry)
    header = Nifti1Header(endianness="<")
    header.set_data_shape(stored.shape[::-1])
    header.set_data_dtype(stored.dtype)
    header.set_xyzt_units("mm")
    header.set_sform(affine, _SCANNER_ANATOMICAL)
    header.set_qform(affine, _SCANNER_ANATOMICAL)
    header.set_slope_inter(slope, 0.0)
    header["magic"], header["vox_offset"] = b"n+1", 352
    return bytes(header.binaryblock) + b"\0\0\0\0"
