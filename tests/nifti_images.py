"""NIfTI images for the tests: phantoms on any grid, and every kind that must be refused."""

from __future__ import annotations

import gzip
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
from nibabel.nifti1 import Nifti1Header
from nibabel.nifti2 import Nifti2Header

from tests.phantoms import CtPhantom
from ucseg_runtime.nifti import ras_affine

NAME = "canaryfile.nii.gz"
Header = Nifti1Header

HeaderEdit = Callable[[Header], object]


def write_image(
    path: Path,
    phantom: CtPhantom | None = None,
    *,
    edit: HeaderEdit | None = None,
    voxels: npt.NDArray[np.generic] | None = None,
    version: int = 1,
    endianness: str = "<",
) -> Path:
    """Write a phantom as NIfTI, compressed where the name says so.

    Args:
        path: File.
        phantom: What to write; the default phantom when not given.
        edit: Called with the header before it is written.
        voxels: Shape (z, y, x), in place of the phantom's CT numbers.
        version: Of NIfTI.
        endianness: ``<`` or ``>``.
    """
    phantom = phantom or CtPhantom()
    stored = phantom.hu if voxels is None else voxels
    header = (Nifti1Header if version == 1 else Nifti2Header)(endianness=endianness)
    header.set_data_shape(stored.shape[::-1])
    header.set_data_dtype(stored.dtype)
    header.set_xyzt_units("mm")
    affine = ras_affine(phantom.geometry)
    header.set_sform(affine, 1)
    header.set_qform(affine, 1)
    header.set_slope_inter(1.0, 0.0)
    header["magic"], header["vox_offset"] = header.single_magic, header.single_vox_offset
    if edit is not None:
        edit(header)
    content = bytes(header.binaryblock) + b"\0\0\0\0" + stored.astype(stored.dtype.newbyteorder(endianness)).tobytes()
    path.write_bytes(gzip.compress(content, 1, mtime=0) if path.name.lower().endswith(".gz") else content)
    return path


def image_with(
    edit: HeaderEdit | None = None, voxels: npt.NDArray[np.generic] | None = None, name: str = NAME
) -> Callable[[Path], Path]:
    """A writer of an image of the default phantom with a changed header or other voxels."""
    return lambda folder: write_image(folder / name, edit=edit, voxels=voxels)


def fields(**values: object) -> HeaderEdit:
    """A change that sets header fields."""

    def change(header: Header) -> None:
        for name, value in values.items():
            header[name] = value

    return change


def dims(*sides: int) -> HeaderEdit:
    """A change of the declared dimensions, whatever the file holds."""
    return fields(dim=[len(sides), *sides, *[1] * (7 - len(sides))])


def sheared(header: Header) -> None:
    """A gantry tilt as an affine says it."""
    affine = header.get_sform()
    affine[1, 2] += 0.3 * affine[2, 2]
    header.set_sform(affine, 1)
    header["qform_code"] = 0


def moved_qform(header: Header) -> None:
    """A qform 20 mm beside the sform."""
    header["qoffset_x"] = float(header["qoffset_x"]) + 20.0


def mirrored_qform(header: Header) -> None:
    """A qform that swaps left and right, as some converters write it."""
    affine = header.get_sform()
    affine[0] *= -1
    header.set_qform(affine, 1)


def image_bytes(change: Callable[[bytes], bytes], name: str = NAME) -> Callable[[Path], Path]:
    """A writer of the default image whose uncompressed bytes are changed."""

    def write(folder: Path) -> Path:
        content = change(write_image(folder / "plain.nii").read_bytes())
        (folder / "plain.nii").unlink()
        (folder / name).write_bytes(gzip.compress(content, 1) if name.endswith(".gz") else content)
        return folder / name

    return write


def compressed_bytes(change: Callable[[bytes], bytes]) -> Callable[[Path], Path]:
    """A writer of the default image whose compressed bytes are changed."""

    def write(folder: Path) -> Path:
        path = write_image(folder / NAME)
        path.write_bytes(change(path.read_bytes()))
        return path

    return write


def header_alone(content: bytes) -> bytes:
    """Say that the voxels lie in another file."""
    return content[:344] + b"ni1\0" + content[348:352]


def wrong_gzip_checksum(content: bytes) -> bytes:
    """Change the checksum at the end of a gzip file."""
    return content[:-8] + struct.pack("<L", 0xA5A5A5A5) + content[-4:]
