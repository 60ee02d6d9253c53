"""What the three kinds of output share: building inside one error seam, finishing, saving, reading back."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import pydicom
from pydicom.dataset import Dataset, FileDataset
from pydicom.pixels.utils import iter_pixels

from ucseg_runtime.arrays import Float64Array
from ucseg_runtime.dicom.elements import UNREADABLE
from ucseg_runtime.dicom.equipment import scanner
from ucseg_runtime.dicom.frame_references import refer_to_frames
from ucseg_runtime.dicom.headers import quiet_pydicom
from ucseg_runtime.dicom.source_study import UNUSABLE, SourceStudy, copy_patient_and_study
from ucseg_runtime.errors import SegWriteError
from ucseg_runtime.slice_stack import AcquiredGrid

StoredPlane: TypeAlias = npt.NDArray[np.uint8] | npt.NDArray[np.uint16]

_TOLERANCE_VOXELS = 0.5


@dataclass(frozen=True)
class PlacedFrame:
    """A frame of a multi-frame object on the source grid.

    Attributes:
        segment: Referenced segment number; 0 for objects whose frames belong to no single segment.
        z: Slice of the source grid that the frame lies on.
    """

    segment: int
    z: int


@contextmanager
def building(what: str) -> Iterator[None]:
    """Turn what highdicom or pydicom raise while `what` is built into a `SegWriteError`; warnings are dropped."""
    try:
        with quiet_pydicom():
            yield
    except UNUSABLE as error:
        raise SegWriteError(
            f"{what} could not be built from the source headers ({type(error).__name__}).",
            hint="A header holds a value that DICOM does not allow; the cause is chained to this error.",
        ) from error


@contextmanager
def reading_back() -> Iterator[None]:
    """Turn what pydicom raises for a damaged file into a `SegWriteError`; warnings are dropped."""
    try:
        with quiet_pydicom():
            yield
    except (*UNREADABLE, RuntimeError) as error:  # pydicom's decoders raise RuntimeError
        raise SegWriteError(
            f"the file that was written cannot be read back ({type(error).__name__}).", hint="Check the disk."
        ) from error


def finish(dataset: Dataset, study: SourceStudy, kind: str) -> None:
    """Put in what must not depend on the moment of writing, and what belongs to patient and study.

    Args:
        dataset: An object that highdicom built from `study.frames`; changed in place.
        study: Where patient, study, dates and UIDs come from.
        kind: Distinguishes the derived UIDs of the objects of one run.
    """
    refer_to_frames(dataset, study.references)
    copy_patient_and_study(dataset, study.header)
    dataset.ContributingEquipmentSequence = scanner(study.header)
    if not dataset.ContributingEquipmentSequence:
        del dataset.ContributingEquipmentSequence
    for moment in ("InstanceCreation", "Content"):
        setattr(dataset, f"{moment}Date", study.date)
        setattr(dataset, f"{moment}Time", study.time)
    if "ContentLabel" in dataset:
        dataset.ContentCreatorName = ""  # type 2, which highdicom 0.28 leaves out
    organisation = study.uids.of_output(f"{kind} dimensions")
    for item in (*dataset.get("DimensionOrganizationSequence", ()), *dataset.get("DimensionIndexSequence", ())):
        item.DimensionOrganizationUID = organisation


def save(dataset: Dataset, path: Path) -> None:
    """Write the object as a DICOM file.

    Raises:
        OSError: The file cannot be written.
        SegWriteError: An element cannot be encoded.
    """
    with building("the DICOM file"):
        dataset.save_as(path, enforce_file_format=True)


def read_header(path: Path) -> FileDataset:
    """The object at `path` without its pixel data."""
    return pydicom.dcmread(path, stop_before_pixels=True)


def check_frames(
    path: Path, geometry: AcquiredGrid, expected: Callable[[PlacedFrame], StoredPlane]
) -> set[PlacedFrame]:
    """Read an object back and compare every frame with what was to be written.

    Each frame must lie on a slice of the grid, all four corners within half a voxel, and hold the expected values. So
    voxel counts are equal and centroids agree within half a voxel, however the frames are ordered.

    Args:
        path: The written file.
        geometry: Source grid.
        expected: Stored values of a frame, shape (rows, columns).

    Returns:
        The frames that the object has; those that were omitted are not among them.

    Raises:
        SegWriteError: A frame is misplaced, appears twice, or holds other values.
    """
    with reading_back():
        header = read_header(path)
        frames = _placed_frames(header, geometry)
        for number, (frame, stored) in enumerate(zip(frames, _stored_planes(path, header), strict=True), start=1):
            if not np.array_equal(stored, expected(frame)):
                raise SegWriteError(
                    f"frame {number} of {len(frames)} (segment {frame.segment}, slice {frame.z + 1}) "
                    "was read back with other values than were written."
                )
    if len(set(frames)) != len(frames):
        raise SegWriteError("the object that was read back has two frames for the same segment and slice.")
    return set(frames)


def _stored_planes(path: Path, header: Dataset) -> Iterator[StoredPlane]:
    """The frames one after the other, shape (rows, columns), bits as 0 and 1."""
    if header.BitsAllocated == 1:
        return _bit_planes(path, header)
    return iter_pixels(path, raw=True)


def _bit_planes(path: Path, header: Dataset) -> Iterator[StoredPlane]:
    """Frames of single bits; pydicom 3.0 cannot iterate over them where a frame is no whole number of bytes.

    Source: DICOM PS3.5 8.1.1 and Annex D: frames follow each other without padding, the first pixel in the lowest bit.
    """
    packed = np.frombuffer(pydicom.dcmread(path, specific_tags=["PixelData"]).PixelData, dtype=np.uint8)
    size = header.Rows * header.Columns
    for first_bit in range(0, header.NumberOfFrames * size, size):
        first_byte, skipped = divmod(first_bit, 8)
        bits = np.unpackbits(packed[first_byte : -(-(first_bit + size) // 8)], bitorder="little")
        yield bits[skipped : skipped + size].reshape(header.Rows, header.Columns)


def _placed_frames(header: Dataset, geometry: AcquiredGrid) -> list[PlacedFrame]:
    groups = header.PerFrameFunctionalGroupsSequence
    slices = _slices_of(header, groups, geometry)
    return [PlacedFrame(_segment_of(header, group), int(z)) for group, z in zip(groups, slices, strict=True)]


def _segment_of(header: Dataset, group: Dataset) -> int:
    for item in (group, header.SharedFunctionalGroupsSequence[0]):
        if "SegmentIdentificationSequence" in item:
            return int(item.SegmentIdentificationSequence[0].ReferencedSegmentNumber)
    return 0


def _slices_of(header: Dataset, groups: Iterable[Dataset], geometry: AcquiredGrid) -> npt.NDArray[np.intp]:
    """The z index of every frame, from its own position, orientation and spacing."""
    shared = header.SharedFunctionalGroupsSequence[0]
    origins = np.array([group.PlanePositionSequence[0].ImagePositionPatient for group in groups], dtype=np.float64)
    index = geometry.index_from_lps(origins[:, None, :] + _corner_offsets_mm(shared, header))  # (frames, corners, 3)
    z = np.rint(index[:, 0, 0])
    y, x = header.Rows - 1, header.Columns - 1
    wanted = np.array([(0, 0, 0), (0, 0, x), (0, y, 0), (0, y, x)]) + z[:, None, None] * (1.0, 0.0, 0.0)
    if np.abs(index - wanted).max() > _TOLERANCE_VOXELS or z.min() < 0 or z.max() >= geometry.shape[0]:
        raise SegWriteError("a frame that was read back lies more than half a voxel away from the source grid.")
    return z.astype(np.intp)


def _corner_offsets_mm(shared: Dataset, header: Dataset) -> Float64Array:
    """From the first pixel of a frame to its corner pixels, float64, shape (4, 3), in LPS mm.

    Source: DICOM PS3.3 C.7.6.2.1.1: the first cosines run along a row, PixelSpacing names the row spacing first.
    """
    along_row, along_column = np.reshape(shared.PlaneOrientationSequence[0].ImageOrientationPatient, (2, 3)).astype(
        np.float64
    )
    row_spacing, column_spacing = (float(value) for value in shared.PixelMeasuresSequence[0].PixelSpacing)
    right = along_row * column_spacing * (header.Columns - 1)
    down = along_column * row_spacing * (header.Rows - 1)
    return np.array([np.zeros(3), right, down, right + down])
