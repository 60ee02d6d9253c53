"""What mutation starts from: made-up series in every transfer syntax, and the files that pydicom's packages bring.

Nothing is fetched. Patients' names in what is made up hold the word `CANARY`.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pydicom
from pydicom import uid
from pydicom.dataset import Dataset, FileDataset
from pydicom.encaps import encapsulate
from pydicom.errors import InvalidDicomError

from encoders import ENCODERS, encoded
from made_up import slice_image

CANARY = "CANARY"
_LARGEST_FILE = 200_000
_MOST_PIXELS = 512 * 512
_UNUSABLE = (InvalidDicomError, AttributeError, KeyError, ValueError, TypeError, NotImplementedError, OSError)
_SLICE_CLASSES = {"CT": uid.CTImageStorage, "MR": uid.MRImageStorage}
_MULTI_FRAME_MODALITIES = {uid.EnhancedCTImageStorage: "CT", uid.EnhancedMRImageStorage: "MR"}


@dataclass(frozen=True)
class Seed:
    """The files of one input.

    Attributes:
        name: Where they come from.
        syntax: Transfer syntax UID, empty where there is none.
        files: Contents; several ones are slices of one series.
    """

    name: str
    syntax: str
    files: tuple[bytes, ...]


def header_seeds() -> list[Seed]:
    """Small series and single files, of every kind that the packages have; series, which get further, more often."""
    made_up = [_made_up(syntax, signed=False, shape=(3, 12, 10)) for syntax in (uid.ExplicitVRLittleEndian, "implicit")]
    singles, series = list(_single_files()), [*_series_of_single_files(), *_multi_frame_files()]
    return [*made_up * len(series), *series * 2, *singles]


def pixel_seeds() -> dict[str, list[Seed]]:
    """Series of two slices by transfer syntax UID, every compressed one that is read."""
    seeds: dict[str, list[Seed]] = {}
    for syntax in ENCODERS:
        signs = (False,) if syntax in (uid.JPEGBaseline8Bit, uid.JPEGExtended12Bit) else (False, True)
        seeds[syntax] = [_made_up(syntax, signed=signed, shape=(2, 40, 36)) for signed in signs]
    for seed in (*_series_of_single_files(), *_multi_frame_files()):
        if seed.syntax in seeds:
            seeds[seed.syntax].append(seed)
    return seeds


def _made_up(syntax: str, *, signed: bool, shape: tuple[int, int, int]) -> Seed:
    target = uid.ImplicitVRLittleEndian if syntax == "implicit" else uid.UID(syntax)
    files = []
    for index in range(shape[0]):
        image = slice_image(index, _content(index, shape[1:]))
        image.PatientName, image.PatientID = f"{CANARY}^NAME", f"{CANARY}-ID"
        stored = np.frombuffer(image.PixelData, dtype="<u2").reshape(shape[1:])
        if target == uid.JPEGBaseline8Bit:
            stored = (stored >> 4).astype(np.uint8)
            image.BitsAllocated, image.BitsStored, image.HighBit, image.RescaleSlope = 8, 8, 7, 16
        if signed:
            stored = (stored.astype(np.int16) - 2048).astype("<i2")
            image.PixelRepresentation, image.RescaleIntercept = 1, 1024
        image.PixelData = stored.tobytes()
        if target.is_compressed:
            image.PixelData = encapsulate([encoded(stored, target, image.BitsStored)])
        image["PixelData"].VR = "OB" if target.is_compressed or stored.itemsize == 1 else "OW"
        image.file_meta.TransferSyntaxUID = target
        files.append(_bytes(image))
    return Seed(f"made up, {target.name}, {'signed' if signed else 'unsigned'}", target, tuple(files))


def _content(index: int, shape: tuple[int, int]) -> npt.NDArray[np.int16]:
    y, x = np.indices(shape)
    return (900 * np.sin(x / 9.0 + index) * np.cos(y / 7.0) - 50).astype(np.int16)


def _single_files() -> Iterator[Seed]:
    for path in _package_files():
        yield Seed(path.name, "", (path.read_bytes(),))


def _multi_frame_files() -> Iterator[Seed]:
    """Enhanced images, whole volumes in one file; the packages' own do not say where their frames lie."""
    for path in _package_files():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            content = _with_placed_frames(path)
        if content:
            yield Seed(f"{path.name}, frames placed", _syntax(content), (content,))


def _with_placed_frames(path: Path) -> bytes:
    """An enhanced image with functional groups; empty for other files."""
    try:
        image = pydicom.dcmread(path)
        if image.get("SOPClassUID") not in (uid.EnhancedCTImageStorage, uid.EnhancedMRImageStorage):
            return b""
        orientation, measures = Dataset(), Dataset()
        orientation.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
        measures.PixelSpacing, measures.SliceThickness = [1, 1], 2
        shared = Dataset()
        shared.PlaneOrientationSequence, shared.PixelMeasuresSequence = [orientation], [measures]
        image.SharedFunctionalGroupsSequence = [shared]
        image.PerFrameFunctionalGroupsSequence = [_placed(z) for z in range(int(image.NumberOfFrames))]
        image.Modality, image.FrameOfReferenceUID = _MULTI_FRAME_MODALITIES[image.SOPClassUID], "1.2.6"
        return _bytes(image)
    except _UNUSABLE:
        return b""


def _placed(z: int) -> Dataset:
    position, content, frame = Dataset(), Dataset(), Dataset()
    position.ImagePositionPatient = [0, 0, 2 * z]
    content.StackID, content.InStackPositionNumber = "1", z + 1
    frame.PlanePositionSequence, frame.FrameContentSequence = [position], [content]
    return frame


def _series_of_single_files() -> Iterator[Seed]:
    """Grey images of the packages, each laid on two positions, so that a series can be read to its pixels."""
    for path in _package_files():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            files = _two_slices(path)
        if files:
            yield Seed(f"{path.name} twice", _syntax(files[0]), files)


def _two_slices(path: Path) -> tuple[bytes, ...]:
    """The image at two positions; nothing where the file is no single grey image, or pydicom cannot write it again."""
    try:
        image = pydicom.dcmread(path)
        if image.get("SamplesPerPixel") != 1 or int(image.get("NumberOfFrames") or 1) != 1:
            return ()
        if image.Rows * image.Columns > _MOST_PIXELS:
            return ()
        return tuple(_at_height(image, z) for z in range(2))
    except _UNUSABLE:
        return ()


def _at_height(image: FileDataset, z: int) -> bytes:
    if image.get("Modality") not in _SLICE_CLASSES:
        image.Modality = "MR"
    image.SOPClassUID = _SLICE_CLASSES[image.Modality]
    image.SOPInstanceUID = image.file_meta.MediaStorageSOPInstanceUID = f"1.2.3.{z + 1}"
    image.StudyInstanceUID, image.SeriesInstanceUID, image.FrameOfReferenceUID = "1.2.4", "1.2.5", "1.2.6"
    image.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    image.ImagePositionPatient, image.ImageOrientationPatient = [0, 0, z], [1, 0, 0, 0, 1, 0]
    image.PixelSpacing, image.HighBit = [1, 1], image.BitsStored - 1
    return _bytes(image)


def _package_files() -> list[Path]:
    folders = [Path(pydicom.__file__).parent / "data" / name for name in ("test_files", "charset_files")]
    spec = find_spec("data_store")
    if spec is not None and spec.origin:
        folders.append(Path(spec.origin).parent / "data")
    files = (path for folder in folders for path in sorted(folder.glob("*")) if path.is_file())
    return [path for path in files if 0 < path.stat().st_size <= _LARGEST_FILE]


def _syntax(content: bytes) -> str:
    return str(pydicom.dcmread(io.BytesIO(content), stop_before_pixels=True).file_meta.TransferSyntaxUID)


def _bytes(image: FileDataset) -> bytes:
    stream = io.BytesIO()
    image.save_as(stream, enforce_file_format=True)
    return stream.getvalue()
