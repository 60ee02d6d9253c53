"""Multi-frame objects are read back before they are published: every frame's values and place are compared.

Where a frame lies is asked twice: its own attributes must put three of its pixels where the source image has them, to a
thousandth of a millimetre, by equation C.7.6.2.1-1 of PS3.3 alone; and its four corners must lie on a slice of the grid
of the volume, to half a voxel.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import cv2
import numpy as np
import numpy.typing as npt
import pydicom
from pydicom.dataset import Dataset, FileDataset
from pydicom.pixels.utils import iter_pixels

from ucseg_runtime.arrays import Float64Array
from ucseg_runtime.dicom.derived_object import read_header, reading_back, segment_of
from ucseg_runtime.dicom.source_study import SourceStudy
from ucseg_runtime.errors import SegWriteError
from ucseg_runtime.slice_stack import AcquiredGrid

StoredPlane: TypeAlias = npt.NDArray[np.uint8] | npt.NDArray[np.uint16]

_TOLERANCE_VOXELS = 0.5
_TOLERANCE_MM = 1e-3
_TOLERANCE_SPACING = 0.01


@dataclass(frozen=True)
class PlacedFrame:
    """A frame of a multi-frame object on the source grid.

    Attributes:
        segment: Referenced segment number; 0 for objects whose frames belong to no single segment.
        z: Slice of the source grid that the frame lies on.
    """

    segment: int
    z: int


@dataclass(frozen=True, eq=False)
class FrameSteps:
    """Where the pixels of the frames of an object lie, by its own attributes.

    Attributes:
        origins_mm: LPS of the first pixel of each frame, float64, shape (frames, 3).
        down_mm: LPS from one row to the next, float64, shape (3,).
        right_mm: LPS from one column to the next, float64, shape (3,).
    """

    origins_mm: Float64Array
    down_mm: Float64Array
    right_mm: Float64Array

    def lps(self, rows_columns: npt.ArrayLike) -> Float64Array:
        """LPS in mm of pixels (row, column), shape (pixels, 2), of every frame: shape (frames, pixels, 3)."""
        rows, columns = np.asarray(rows_columns, dtype=np.float64).T[:, :, None]
        points: Float64Array = self.origins_mm[:, None, :] + rows * self.down_mm + columns * self.right_mm
        return points


@dataclass(frozen=True, eq=False)
class ReadObject:
    """The header of a written object, once it lies where it should.

    Attributes:
        path: The file.
        header: All but the pixels.
        frames: What every frame is of.
        steps: Where its pixels lie.
    """

    path: Path
    header: FileDataset
    frames: tuple[PlacedFrame, ...]
    steps: FrameSteps


def read_placed(path: Path, geometry: AcquiredGrid, study: SourceStudy) -> ReadObject:
    """Read the header of an object back and check where its frames lie.

    Raises:
        SegWriteError: Another frame of reference or size than the source images, a frame that is misplaced, mirrored or
            there twice, or a file that cannot be read.
    """
    with reading_back():
        header = read_header(path)
        steps = _frame_steps(header)
        _check_frame_of_reference(header, geometry, study)
        slices = _slices_of(header, steps, geometry)
        _check_markers(header, steps, [study.frames[z] for z in slices])
        groups = header.PerFrameFunctionalGroupsSequence
        frames = tuple(PlacedFrame(segment_of(header, group), z) for group, z in zip(groups, slices, strict=True))
    if len(set(frames)) != len(frames):
        raise SegWriteError("the object that was read back has two frames for the same segment and slice.")
    return ReadObject(path, header, frames, steps)


def compared_planes(
    read: ReadObject, expected: Callable[[PlacedFrame], StoredPlane]
) -> Iterator[tuple[PlacedFrame, StoredPlane]]:
    """Every frame with its stored values, shape (rows, columns), once they are those that were to be written.

    Args:
        read: The object.
        expected: Stored values of a frame.

    Raises:
        SegWriteError: A frame holds other values, or cannot be decoded.
    """
    with reading_back():
        planes = zip(read.frames, stored_planes(read.path, read.header), strict=True)
        for number, (frame, stored) in enumerate(planes, start=1):
            if not np.array_equal(stored, expected(frame)):
                raise SegWriteError(
                    f"frame {number} of {len(read.frames)} (segment {frame.segment}, slice {frame.z + 1}) "
                    "was read back with other values than were written."
                )
            yield frame, stored


class SegmentFigures:
    """Adds up voxels and centroids of the segments of an object while its frames are read back.

    Args:
        read: The object, whose own attributes say where its pixels are.
        geometry: Source grid, which says where they should be.
    """

    def __init__(self, read: ReadObject, geometry: AcquiredGrid) -> None:
        self._read = read
        self._geometry = geometry
        self._number = {frame: number for number, frame in enumerate(read.frames)}
        self._found: dict[int, list[tuple[int, int, float, float]]] = {}

    def add(self, frame: PlacedFrame, segment: int, mask: npt.NDArray[np.uint8]) -> None:
        """Count the voxels of a segment in a frame: `mask` is zero everywhere else."""
        moments = cv2.moments(mask, binaryImage=True)
        if moments["m00"]:
            row, column = moments["m01"] / moments["m00"], moments["m10"] / moments["m00"]
            self._found.setdefault(segment, []).append((self._number[frame], round(moments["m00"]), row, column))

    def check(self, voxels: Sequence[int]) -> None:
        """Compare with the array.

        Args:
            voxels: How many voxels of segment 1, 2, … were to be written.

        Raises:
            SegWriteError: A segment has another number of voxels, or its centroid by the object's own attributes lies
                more than half a voxel from the one on the grid.
        """
        for segment, expected in enumerate(voxels, start=1):
            parts = np.array(self._found.get(segment, [])).reshape(-1, 4)
            found = int(parts[:, 1].sum())
            if found != expected:
                raise SegWriteError(
                    f"segment {segment} was read back with {found} voxels; {expected} were to be written."
                )
            if found:
                self._check_centroid(segment, parts)

    def _check_centroid(self, segment: int, parts: Float64Array) -> None:
        numbers, weights = parts[:, 0].astype(np.intp), parts[:, 1]
        steps = self._read.steps
        points = steps.origins_mm[numbers] + parts[:, 2:3] * steps.down_mm + parts[:, 3:] * steps.right_mm
        z = np.array([self._read.frames[number].z for number in numbers], dtype=np.float64)
        on_grid = self._geometry.lps_from_index(np.column_stack([z, parts[:, 2:]]))
        off_mm = np.linalg.norm(np.average(points - on_grid, axis=0, weights=weights))
        if off_mm > _TOLERANCE_VOXELS * min(self._geometry.spacing_mm):
            raise SegWriteError(f"the centroid of segment {segment} was read back more than half a voxel away.")


def _frame_steps(header: Dataset) -> FrameSteps:
    shared = header.SharedFunctionalGroupsSequence[0]
    positions = [
        group.PlanePositionSequence[0].ImagePositionPatient for group in header.PerFrameFunctionalGroupsSequence
    ]
    orientation = shared.PlaneOrientationSequence[0].ImageOrientationPatient
    return _steps(positions, orientation, shared.PixelMeasuresSequence[0].PixelSpacing)


def _steps(positions: Sequence[Sequence[float]], orientation: Sequence[float], spacing: Sequence[float]) -> FrameSteps:
    """Steps between pixels.

    Source: DICOM PS3.3 C.7.6.2.1.1: the first cosines run along a row, Pixel Spacing names the row spacing first.
    """
    along_row, along_column = np.reshape(orientation, (2, 3)).astype(np.float64)
    row_spacing, column_spacing = (float(value) for value in spacing)
    return FrameSteps(np.array(positions, dtype=np.float64), along_column * row_spacing, along_row * column_spacing)


def _check_frame_of_reference(header: Dataset, geometry: AcquiredGrid, study: SourceStudy) -> None:
    if header.FrameOfReferenceUID != study.frames[0].FrameOfReferenceUID:
        raise SegWriteError("the object that was read back belongs to another frame of reference than its source.")
    if (header.Rows, header.Columns) != geometry.shape[1:]:
        raise SegWriteError("the frames that were read back have another size than the source images.")
    measures = header.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0]
    between, expected = measures.get("SpacingBetweenSlices"), geometry.spacing_mm[0]
    if between is not None and abs(float(between) - expected) > _TOLERANCE_SPACING * expected:
        raise SegWriteError("the object that was read back names another distance between slices than the source has.")


def _slices_of(header: Dataset, steps: FrameSteps, geometry: AcquiredGrid) -> list[int]:
    """The z index of every frame, all corners of which must lie on the grid."""
    y, x = header.Rows - 1, header.Columns - 1
    corners = np.array([(0, 0), (0, x), (y, 0), (y, x)])
    index = geometry.index_from_lps(steps.lps(corners))  # (frames, corners, 3)
    z = np.rint(index[:, 0, 0])
    wanted = np.insert(corners, 0, 0, axis=1) + z[:, None, None] * (1.0, 0.0, 0.0)
    if np.abs(index - wanted).max() > _TOLERANCE_VOXELS or z.min() < 0 or z.max() >= geometry.shape[0]:
        raise SegWriteError("a frame that was read back lies more than half a voxel away from the source grid.")
    return [int(value) for value in z]


def _check_markers(header: Dataset, steps: FrameSteps, sources: Sequence[Dataset]) -> None:
    """Three pixels that no mirror, turn or exchange of axes leaves in place must be where the source has them."""
    markers = [(0, 0), (0, header.Columns - 1), (header.Rows - 1, 0)]
    first = sources[0]  # orientation and spacing are the same in all frames of a study
    positions = [source.ImagePositionPatient for source in sources]
    expected = _steps(positions, first.ImageOrientationPatient, first.PixelSpacing).lps(markers)
    if np.abs(steps.lps(markers) - expected).max() > _TOLERANCE_MM:
        raise SegWriteError("a frame that was read back does not lie where its source image lies in the patient.")


def stored_planes(path: Path, header: Dataset) -> Iterator[StoredPlane]:
    """The frames one after the other, shape (rows, columns), bits as 0 and 1."""
    if header.BitsAllocated == 1 and not header.file_meta.TransferSyntaxUID.is_compressed:
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
