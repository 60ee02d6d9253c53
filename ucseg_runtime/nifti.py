"""NIfTI files of label map and uncertainty, and their grids. The only place where coordinates are RAS."""

from __future__ import annotations

import gzip
import importlib
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from ucseg_runtime.arrays import Float32Array, Float64Array, UInt8Array, UInt16Array
from ucseg_runtime.errors import BackendUnavailableError, OutputError, SegWriteError
from ucseg_runtime.geometry import VolumeGeometry
from ucseg_runtime.safe_files import checked_file

if TYPE_CHECKING:
    from nibabel.nifti1 import Nifti1Header

_SCALE = 65535
_SCANNER_ANATOMICAL = 1
_TOLERANCE_MM = 1e-3  # the header holds float32
_COMPRESSION = 1  # twice as fast as 6 on label maps, and a third larger
_PLACING_FIELDS = (
    *("xyzt_units", "qform_code", "sform_code", "quatern_b", "quatern_c", "quatern_d"),
    *("qoffset_x", "qoffset_y", "qoffset_z", "srow_x", "srow_y", "srow_z"),
)


@dataclass(frozen=True)
class NiftiGrid:
    """The grid of an image as its own header says it, to be written again bit for bit.

    Attributes:
        version: 1 or 2.
        raw: The header, 348 or 540 bytes.
    """

    version: int
    raw: bytes = field(repr=False)

    def header(self) -> Nifti1Header:
        """The header, parsed by nibabel; nothing in it is checked."""
        return _header_class(self.version)(self.raw, check=False)


def write_nifti(
    path: Path, voxels: UInt8Array | UInt16Array | Float32Array, geometry: VolumeGeometry | NiftiGrid
) -> None:
    """Write an array with its place in the patient as ``.nii.gz`` and read it back; equal arrays give equal bytes.

    Args:
        path: File to write.
        voxels: Shape (z, y, x). uint8 labels are stored as they are; float32 in [0, 1] is stored as 16-bit integers
            with slope 1 / 65535, so that the error is at most 1 / 131070; uint16 is what was so stored before. Axes in
            the file are (x, y, z).
        geometry: Grid of the voxels; that of another image is taken over as it is, with its NIfTI version.

    Raises:
        BackendUnavailableError: nibabel is not installed.
        OSError: The file cannot be written.
        OutputError: The array has another type, or floats outside [0, 1].
        SegWriteError: The file differs when read back.

    Source: NIfTI-1, nifti1.h: RAS+ world coordinates in sform and qform, value = scl_slope × stored + scl_inter.
    """
    stored, slope = _stored(voxels)
    header = _header(stored, geometry, slope)
    with checked_file(path) as file, gzip.GzipFile("", "wb", _COMPRESSION, file, mtime=0) as stream:
        stream.write(header)
        # The third axis of the file is z, so slices follow each other as they lie in memory.
        for plane in stored:
            stream.write(np.ascontiguousarray(plane).data)
    _read_back(path, stored, geometry, slope)


def ras_affine(geometry: VolumeGeometry) -> Float64Array:
    """Matrix from the index (x, y, z, 1) of the file to RAS coordinates in mm, float64, shape (4, 4)."""
    reversed_index = np.eye(4)[[2, 1, 0, 3]]
    affine: Float64Array = np.diag([-1.0, -1.0, 1.0, 1.0]) @ geometry.affine @ reversed_index
    return affine


def geometry_from_ras(affine: Float64Array, shape_xyz: tuple[int, int, int]) -> VolumeGeometry:
    """The grid of a file: the inverse of `ras_affine`.

    Args:
        affine: From the index (x, y, z, 1) of the file to RAS coordinates in mm, shape (4, 4).
        shape_xyz: Voxels along the axes of the file.

    Raises:
        GeometryError: The affine is not finite or not that of a grid with perpendicular axes.
    """
    reversed_index = np.eye(4)[[2, 1, 0, 3]]
    x, y, z = shape_xyz
    return VolumeGeometry(np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine @ reversed_index, (z, y, x))


def require_nibabel() -> None:
    """Check that NIfTI can be read and written, so that a run can fail before it starts and not at its end.

    Raises:
        BackendUnavailableError: nibabel is not installed.
    """
    try:
        importlib.import_module("nibabel")
    except ImportError as error:
        raise BackendUnavailableError("NIfTI needs the 'nifti' extra:", hint="pip install 'ucseg[nifti]'.") from error


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


def _header(stored: npt.NDArray[np.generic], geometry: VolumeGeometry | NiftiGrid, slope: float) -> bytes:
    """Everything before the voxels, little endian: the header and four bytes that say that no extension follows."""
    require_nibabel()
    header = _header_class(geometry.version if isinstance(geometry, NiftiGrid) else 1)(endianness="<")
    header.set_data_shape(stored.shape[::-1])
    header.set_data_dtype(stored.dtype)
    if isinstance(geometry, NiftiGrid):
        _place_like(header, geometry.header())
    else:
        affine = ras_affine(geometry)
        header.set_xyzt_units("mm")
        header.set_sform(affine, _SCANNER_ANATOMICAL)
        header.set_qform(affine, _SCANNER_ANATOMICAL)
    header.set_slope_inter(slope, 0.0)
    header["magic"], header["vox_offset"] = header.single_magic, header.single_vox_offset
    return bytes(header.binaryblock) + b"\0\0\0\0"


def _place_like(header: Nifti1Header, other: Nifti1Header) -> None:
    header["pixdim"][:4] = other["pixdim"][:4]
    for name in _PLACING_FIELDS:
        header[name] = other[name]


def _header_class(version: int) -> type[Nifti1Header]:
    from nibabel.nifti1 import Nifti1Header
    from nibabel.nifti2 import Nifti2Header

    header_class: type[Nifti1Header] = Nifti1Header if version == 1 else Nifti2Header
    return header_class


def _read_back(
    path: Path, stored: UInt8Array | UInt16Array, geometry: VolumeGeometry | NiftiGrid, slope: float
) -> None:
    """Compare what nibabel understands of the header, and the voxels slice by slice."""
    from nibabel.spatialimages import HeaderDataError
    from nibabel.wrapstruct import WrapStructError

    header_class = _header_class(geometry.version if isinstance(geometry, NiftiGrid) else 1)
    try:
        with gzip.open(path, "rb") as stream:
            header = header_class(stream.read(header_class.single_vox_offset)[:-4])
            same = all(stream.read(plane.nbytes) == plane.tobytes() for plane in stored) and not stream.read(1)
    except (OSError, EOFError, zlib.error, ValueError, HeaderDataError, WrapStructError) as error:
        raise SegWriteError("the NIfTI file that was written cannot be read back.", hint="Check the disk.") from error
    if not same or header.get_data_shape() != stored.shape[::-1] or header.get_data_dtype() != stored.dtype:
        raise SegWriteError("the NIfTI file was read back with other values than were written.")
    if not np.allclose(header.get_slope_inter(), (slope, 0.0), rtol=1e-6):
        raise SegWriteError("the NIfTI file was read back with another scale of its values than was written.")
    if not _lies_on(header, geometry):
        raise SegWriteError("the NIfTI file was read back with another place in the patient than was written.")


def _lies_on(header: Nifti1Header, geometry: VolumeGeometry | NiftiGrid) -> bool:
    if isinstance(geometry, NiftiGrid):
        return all(np.array_equal(header[name], geometry.header()[name]) for name in _PLACING_FIELDS)
    expected = _corners(ras_affine(geometry), geometry)
    half_a_voxel = 0.5 * min(geometry.spacing_mm)  # near half a turn a quaternion in float32 says little of the angle
    return all(
        np.abs(_corners(affine, geometry) - expected).max() <= tolerance_mm
        for affine, tolerance_mm in ((header.get_sform(), _TOLERANCE_MM), (header.get_qform(), half_a_voxel))
    )


def _corners(affine: Float64Array, geometry: VolumeGeometry) -> Float64Array:
    """RAS in mm of the last voxel along each axis and of the first voxel, as columns, float64, shape (3, 4)."""
    ends = np.diag([*(side - 1.0 for side in geometry.shape[::-1]), 1.0])
    ends[3] = 1.0
    corners: Float64Array = (affine @ ends)[:3]
    return corners
