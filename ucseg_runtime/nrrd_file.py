"""Label map and uncertainty as NRRD, for research tools; coordinates are LPS, as everywhere but in NIfTI."""

from __future__ import annotations

import importlib
import io
import warnings
import zlib
from pathlib import Path

import numpy as np

from ucseg_runtime.arrays import UInt8Array, UInt16Array
from ucseg_runtime.errors import BackendUnavailableError, SegWriteError
from ucseg_runtime.geometry import VolumeGeometry
from ucseg_runtime.safe_files import write_checked

_COMPRESSION = 1  # as for NIfTI
_END_OF_HEADER = b"\n\n"
_TOLERANCE_MM = 1e-6


def write_nrrd(path: Path, voxels: UInt8Array | UInt16Array, geometry: VolumeGeometry) -> None:
    """Write an array with its place in the patient, gzipped, and read it back; equal arrays give equal bytes.

    Args:
        path: File to write.
        voxels: Shape (z, y, x), stored as they are. Axes in the file are (x, y, z). NRRD knows no scale that readers
            heed: an uncertainty is 65535 times what it says.
        geometry: Grid of the voxels.

    Raises:
        BackendUnavailableError: pynrrd is not installed.
        OSError: The file cannot be written.
        SegWriteError: The file differs when read back.

    Source: NRRD 0005; ``space directions`` has one vector per axis of the file, fastest first.
    """
    require_pynrrd()
    import nrrd

    header = {
        "space": "left-posterior-superior",
        "space directions": geometry.affine[:3, 2::-1].T,
        "space origin": geometry.origin_mm,
        "kinds": ["domain"] * 3,
        "encoding": "gzip",
    }
    stream = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # pynrrd 1.1 asks for the time in a deprecated way
        nrrd.write(stream, voxels, header, index_order="C", compression_level=_COMPRESSION)
    write_checked(path, _without_comments(stream.getvalue()))
    _read_back(path, voxels, geometry)


def require_pynrrd() -> None:
    """Check that NRRD can be written, so that a run can fail before it starts and not at its end.

    Raises:
        BackendUnavailableError: pynrrd is not installed.
    """
    try:
        importlib.import_module("nrrd")
    except ImportError as error:
        raise BackendUnavailableError(
            "Writing NRRD needs the 'nifti' extra:", hint="pip install 'ucseg[nifti]'."
        ) from error


def _without_comments(content: bytes) -> bytes:
    """The same without what pynrrd says of itself and of the time."""
    header, _, voxels = content.partition(_END_OF_HEADER)
    lines = [line for line in header.split(b"\n") if not line.startswith(b"#")]
    return b"\n".join(lines) + _END_OF_HEADER + voxels


def _read_back(path: Path, voxels: UInt8Array | UInt16Array, geometry: VolumeGeometry) -> None:
    import nrrd

    try:
        found, header = nrrd.read(str(path), index_order="C")
    except (nrrd.NRRDError, OSError, ValueError, EOFError, StopIteration, zlib.error) as error:
        raise SegWriteError("the NRRD file that was written cannot be read back.", hint="Check the disk.") from error
    affine = np.column_stack([header["space directions"][::-1].T, header["space origin"]])
    if found.dtype != voxels.dtype or not np.array_equal(found, voxels):
        raise SegWriteError("the NRRD file was read back with other values than were written.")
    if header["space"] != "left-posterior-superior" or np.abs(affine - geometry.affine[:3]).max() > _TOLERANCE_MM:
        raise SegWriteError("the NRRD file was read back with another place in the patient than was written.")
