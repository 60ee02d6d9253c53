"""A volume as the bytes of a compressed NIfTI-1 file, for viewers that read nothing else. Needs no nibabel."""

from __future__ import annotations

import gzip
import struct

import numpy as np

from ucseg_runtime.arrays import Float64Array, Int16Array, UInt8Array
from ucseg_runtime.geometry import VolumeGeometry
from ucseg_runtime.nifti import ras_affine

_HEADER = struct.Struct("<i10s18sihcB8h3fhhhh8f3fhBB4f2i80s24shh6f12f16s4s")
_HEADER_BYTES = 348
_VOXELS_AT = 352.0
_TYPE_CODES = {"uint8": 2, "int16": 4}
_MM = 2
_SCANNER_ANATOMICAL = 1
_COMPRESSION = 6


def nifti_bytes(
    voxels: UInt8Array | Int16Array, geometry: VolumeGeometry, slope: float = 1.0, intercept: float = 0.0
) -> bytes:
    """A whole ``.nii.gz``; equal arrays give equal bytes.

    Args:
        voxels: Stored values, shape (z, y, x). Axes in the file are (x, y, z).
        geometry: Grid of the voxels.
        slope: The value of a voxel is slope × stored + intercept.
        intercept: See `slope`.

    Source: NIfTI-1, nifti1.h: sform in RAS+ with code 1, no qform.
    """
    content = [_header(voxels, geometry, slope, intercept), np.ascontiguousarray(voxels).tobytes()]
    return gzip.compress(b"".join(content), _COMPRESSION, mtime=0)


def _header(voxels: UInt8Array | Int16Array, geometry: VolumeGeometry, slope: float, intercept: float) -> bytes:
    """348 bytes, and four that say that no extension follows."""
    z, y, x = voxels.shape
    dz, dy, dx = geometry.spacing_mm
    affine: Float64Array = ras_affine(geometry)
    fields = (
        *(_HEADER_BYTES, b"", b"", 0, 0, b"r", 0),
        *(3, x, y, z, 1, 1, 1, 1),
        *(0.0, 0.0, 0.0, 0, _TYPE_CODES[voxels.dtype.name], 8 * voxels.dtype.itemsize, 0),
        *(1.0, dx, dy, dz, 1.0, 1.0, 1.0, 1.0),
        *(_VOXELS_AT, slope, intercept, 0, 0, _MM),
        *(0.0, 0.0, 0.0, 0.0, 0, 0, b"", b""),
        *(0, _SCANNER_ANATOMICAL),
        *(0.0, 0.0, 0.0, 0.0, 0.0, 0.0),
        *affine[:3].ravel().tolist(),
        *(b"", b"n+1\0"),
    )
    return _HEADER.pack(*fields) + b"\0\0\0\0"
