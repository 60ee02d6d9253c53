"""NIfTI images as input: one file is one volume, if its header leaves no doubt about where it lies.

NIfTI says neither which kind of device made an image nor whose it is. The modality is taken to be the model's, and the
values of a CT are checked; results are written on the image's own grid, and no DICOM objects, which need a study.
"""

from __future__ import annotations

import gzip
import hashlib
import math
import os
import zlib
from dataclasses import dataclass, field
from io import BufferedReader
from pathlib import Path
from typing import BinaryIO, cast

import numpy as np
import numpy.typing as npt

from ucseg_runtime.arrays import Float32Array, Float64Array, Int16Array
from ucseg_runtime.errors import GeometryError, InputError
from ucseg_runtime.geometry import VolumeGeometry
from ucseg_runtime.hounsfield import require_hounsfield_units
from ucseg_runtime.nifti import NiftiGrid, geometry_from_ras, require_nibabel
from ucseg_runtime.regular_files import open_regular
from ucseg_runtime.volume import Volume

MAX_VOLUME_BYTES = 4 * 1024**3

_CODE = "UCSEG-E124"
_GZIP = b"\x1f\x8b"
_LOOKED_AT = 4096
_LONGEST_HEADER = 16 * 1024**2  # with all extensions
_CHUNK_BYTES = 1024**2
_MILLIMETRES_OR_UNKNOWN = (2, 0)  # the low three bits of xyzt_units; the others hold the unit of time
_TYPES = {2: "u1", 256: "i1", 4: "i2", 512: "u2", 8: "i4", 768: "u4", 16: "f4", 64: "f8"}
_UNREADABLE = (OSError, EOFError, zlib.error)
_NOTE = "A NIfTI image belongs to no DICOM study: NIfTI files are written, and no DICOM objects."


@dataclass(frozen=True, eq=False)
class NiftiImage:
    """The header of an image that can be segmented; its voxels are not read yet.

    Attributes:
        path: Where it lies; never shown.
        size: Bytes of the file.
        modified_ns: Time of the last change.
        sha256: Digest of the file.
        modality: That the voxels are taken to have.
        grid: Its place as the header says it.
        geometry: The same as the pipeline needs it; the axes (z, y, x) are the file's third, second and first.
        dtype: Of the stored values, with their byte order.
        offset: Bytes of the file, uncompressed, before the voxels.
        slope: Of the stored values; 1 where the header has none.
        intercept: Of the stored values.
    """

    path: Path = field(repr=False)
    size: int
    modified_ns: int
    sha256: str
    modality: str
    grid: NiftiGrid
    geometry: VolumeGeometry
    dtype: np.dtype[np.generic]
    offset: int
    slope: float
    intercept: float

    @property
    def name(self) -> str:
        """How messages name it."""
        return f"NIfTI image ({self.modality}, {' x '.join(map(str, self.geometry.shape))} voxels)"

    @property
    def notes(self) -> tuple[str, ...]:
        """What the reader of the results should know."""
        return (_NOTE,)

    def left_out(self) -> list[str]:
        """What the input holds beside it: nothing."""
        return []

    def as_json(self) -> dict[str, object]:
        """What machines are told of it."""
        return {"image_sha256": self.sha256, "notes": list(self.notes)}


def is_nifti(input: Path) -> bool:
    """Whether an input is one file that is NIfTI by its content, or called so without being DICOM."""
    try:
        with open_regular(input.resolve(strict=True)) as stream:
            start = stream.read(_LOOKED_AT)
    except (OSError, RuntimeError):
        return False
    if start[128:132] == b"DICM" or start.startswith(b"PK\3\4"):
        return False
    if input.name.lower().endswith((".nii", ".nii.gz")):
        return True
    return _kind_of(_inflated(start)) is not None


def nifti_image(input: Path, modality: str, max_volume_bytes: int = MAX_VOLUME_BYTES) -> NiftiImage:
    """The checked header of an image.

    Args:
        input: File.
        modality: Of the model.
        max_volume_bytes: Budget for the voxels, stored or as the pipeline holds them.

    Raises:
        InputError: The image cannot be read, or not be placed beyond doubt.
        BackendUnavailableError: nibabel is not installed.
    """
    require_nibabel()
    try:
        with open_regular(input.resolve(strict=True)) as stream:
            status = os.fstat(stream.fileno())
            start = stream.read(_LOOKED_AT)
            if input.name.lower().endswith(".gz") and not start.startswith(_GZIP):
                raise _refused("its name ends in .gz, but it is not compressed by gzip")
            grid = _grid(_inflated(start))
            geometry, dtype, offset = _layout(grid, max_volume_bytes)
            stream.seek(0)
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
    except (OSError, RuntimeError) as error:
        raise _refused(f"it cannot be read ({type(error).__name__})") from error
    slope, intercept = _scaling(grid)
    return NiftiImage(
        path=input.resolve(),
        size=status.st_size,
        modified_ns=status.st_mtime_ns,
        sha256=digest,
        modality=modality,
        grid=grid,
        geometry=geometry,
        dtype=dtype,
        offset=offset,
        slope=slope,
        intercept=intercept,
    )


def read_image(image: NiftiImage) -> Volume:
    """The voxels of an image in modality units.

    Returns:
        int16 where scaling yields integers that fit, else float32.

    Raises:
        InputError: The file changed since its header was read, is cut off or damaged, has more voxels than its header
            says, or values that are not finite.
        PixelDataError: The values cannot be those of a CT.
    """
    stored = np.empty(image.geometry.shape, dtype=image.dtype)
    try:
        with open_regular(image.path) as stream:
            status = os.fstat(stream.fileno())
            if (status.st_size, status.st_mtime_ns) != (image.size, image.modified_ns):
                raise _refused("it changed since its header was read", hint="Keep the input unchanged.")
            _fill(stored, stream, image.offset)
    except _UNREADABLE as error:
        raise _refused(f"its voxels are damaged or cut off ({type(error).__name__})") from error
    voxels = _modality_values(stored, image.slope, image.intercept)
    if image.modality == "CT":
        require_hounsfield_units(voxels)
    return Volume(voxels, image.geometry, image.modality)


def _inflated(start: bytes) -> bytes:
    """The first bytes of what gzip compressed; what is not compressed stays as it is."""
    if not start.startswith(_GZIP):
        return start
    try:
        return zlib.decompressobj(wbits=31).decompress(start, _LOOKED_AT)
    except zlib.error:
        return b""


def _kind_of(header: bytes) -> str | None:
    """``n+1`` or ``n+2`` for an image in one file, ``pair`` for a header alone, None for anything else."""
    length = {int.from_bytes(header[:4], "little"), int.from_bytes(header[:4], "big")}
    if 348 in length and header[344:348] in {b"n+1\0", b"ni1\0"}:
        return "n+1" if header[344:348] == b"n+1\0" else "pair"
    if 540 in length and header[4:12] in {b"n+2\0\r\n\x1a\n", b"ni2\0\r\n\x1a\n"}:
        return "n+2" if header[4:7] == b"n+2" else "pair"
    return None


def _grid(header: bytes) -> NiftiGrid:
    kind = _kind_of(header)
    if kind is None:
        raise _refused("it has no NIfTI header")
    if kind == "pair":
        raise _refused("it is the header of a pair of files without voxels", hint="Convert it to one .nii.gz file.")
    version, length = (1, 348) if kind == "n+1" else (2, 540)
    if len(header) < length:
        raise _refused("it ends in the middle of its header")
    return NiftiGrid(version, header[:length])


def _layout(grid: NiftiGrid, max_volume_bytes: int) -> tuple[VolumeGeometry, np.dtype[np.generic], int]:
    """Place of the voxels in the patient, their type, and where they begin in the file."""
    header = grid.header()
    dims = [int(side) for side in header["dim"]]
    if not 3 <= dims[0] <= 7 or min(dims[1:4]) < 1:
        raise _refused(f"it has {dims[0]} dimensions of {dims[1:4]} voxels (expected 3, of at least 1)")
    if any(side > 1 for side in dims[4 : dims[0] + 1]):
        raise _refused(f"it has {dims[0]} dimensions, {dims[4]} volumes (expected 1)", hint="Give one volume of it.")
    if min(dims[1:4]) < 2:
        raise _refused(f"it has {dims[1]} x {dims[2]} x {dims[3]} voxels (expected at least 2 along each axis)")
    code = int(header["datatype"])
    if code not in _TYPES:
        raise _refused(
            f"its voxels are of NIfTI type {code} (integers of 8, 16 or 32 bits, or floats of 32 or 64, are read)",
            hint="Store the image as int16 or float32.",
        )
    dtype = np.dtype(_TYPES[code]).newbyteorder("<" if header.endianness == "<" else ">")
    voxels = math.prod(dims[1:4])
    if voxels * max(dtype.itemsize, 4) > max_volume_bytes:
        raise _refused(f"its header declares {voxels} voxels ({max_volume_bytes // 4} at most)")
    offset = float(header["vox_offset"])
    if not len(grid.raw) <= offset <= _LONGEST_HEADER or not offset.is_integer():
        raise _refused(f"its voxels begin at byte {offset:g} (expected {len(grid.raw)} to {_LONGEST_HEADER})")
    return _geometry(grid, (dims[1], dims[2], dims[3])), dtype, int(offset)


def _geometry(grid: NiftiGrid, shape_xyz: tuple[int, int, int]) -> VolumeGeometry:
    if int(grid.header()["xyzt_units"]) % 8 not in _MILLIMETRES_OR_UNKNOWN:
        raise _refused("its lengths are in another unit than mm", hint="Convert its header to mm.")
    forms = _forms(grid)
    if not forms:
        raise _refused("it has neither a qform nor an sform, so its place in the patient is not known")
    try:
        placed = [geometry_from_ras(affine, shape_xyz) for affine in forms]
    except GeometryError as error:
        raise _refused(
            f"it cannot be placed: {error.message}", hint="Resample it to a grid with perpendicular axes."
        ) from error
    if len(placed) == 2 and not placed[0].matches(placed[1], tolerance_mm=0.5 * min(placed[0].spacing_mm)):
        raise _refused(
            "its qform and its sform place it differently, by more than half a voxel",
            hint="Find out which is true, and set the code of the other to 0.",
        )
    return placed[0]


def _forms(grid: NiftiGrid) -> list[Float64Array]:
    """The sform, then the qform, each if it is there."""
    from nibabel.spatialimages import HeaderDataError

    header = grid.header()
    readers = (("sform_code", header.get_sform), ("qform_code", header.get_qform))
    try:
        with np.errstate(all="ignore"):  # what is not a number is refused with the grid
            affines = [read() for code, read in readers if int(header[code]) > 0]
    except (HeaderDataError, ValueError) as error:
        raise _refused("its qform is not a rotation") from error
    return [np.asarray(affine, dtype=np.float64) for affine in affines]


def _scaling(grid: NiftiGrid) -> tuple[float, float]:
    """Slope and intercept. A slope of 0 means none; so does NaN, which some writers put there.

    Source: NIfTI-1, nifti1.h, scl_slope; nibabel's get_slope_inter.
    """
    header = grid.header()
    slope, intercept = float(header["scl_slope"]), float(header["scl_inter"])
    if slope == 0.0 or math.isnan(slope):
        return 1.0, 0.0
    if not math.isfinite(slope) or not math.isfinite(intercept):
        raise _refused("its scale or offset of voxels is not finite")
    return slope, intercept


def _fill(stored: npt.NDArray[np.generic], stream: BufferedReader, offset: int) -> None:
    """Read the voxels and see that the file ends with them, which also lets gzip compare its checksum."""
    compressed = stream.peek(2).startswith(_GZIP)
    source = cast(BinaryIO, gzip.GzipFile(fileobj=stream)) if compressed else stream
    if len(source.read(offset)) != offset:
        raise EOFError
    target = stored.data.cast("B")
    place = 0
    while place < len(target):
        chunk = source.read(min(_CHUNK_BYTES, len(target) - place))
        if not chunk:
            raise EOFError
        target[place : place + len(chunk)] = chunk
        place += len(chunk)
    if source.read(1):
        raise _refused("it holds more bytes than the voxels that its header declares")


def _modality_values(stored: npt.NDArray[np.generic], slope: float, intercept: float) -> Int16Array | Float32Array:
    if not all(np.isfinite(plane).all() for plane in stored):
        raise _refused("it has voxels that are not finite", hint="Replace them, for air by -1000 in a CT.")
    ends = (float(stored.min()) * slope + intercept, float(stored.max()) * slope + intercept)
    if max(map(abs, ends)) > float(np.finfo(np.float32).max):
        raise _refused("it has voxels that are too large for 32 bits")
    whole = np.issubdtype(stored.dtype, np.integer) and slope.is_integer() and intercept.is_integer()
    fits = whole and min(ends) >= np.iinfo(np.int16).min and max(ends) <= np.iinfo(np.int16).max
    voxels = np.empty(stored.shape, dtype=np.int16 if fits else np.float32)
    for scaled, plane in zip(voxels, stored, strict=True):  # plane by plane, or float64 would take the most memory
        scaled[...] = plane.astype(np.float64) * slope + intercept
    return voxels


def _refused(reason: str, hint: str = "Convert the image again from its source.") -> InputError:
    return InputError(f"the NIfTI image is refused: {reason}.", hint=hint, code=_CODE)
