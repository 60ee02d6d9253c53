"""Label maps of pictures and clips to a DICOM Segmentation without a frame of reference.

Each frame of it refers to the frame that it was derived from, and is counted along Temporal Position Index; there is
nothing else that could say where it belongs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pydicom
from highdicom.frame import encode_frame
from pydicom.dataset import Dataset, FileDataset
from pydicom.encaps import encapsulate
from pydicom.tag import Tag
from pydicom.uid import RLELossless

from ucseg_runtime.arrays import BoolArray, UInt8Array
from ucseg_runtime.config import SegEncoding, SegType
from ucseg_runtime.dicom.derived_object import building, finish, read_header, reading_back, save, segment_of
from ucseg_runtime.dicom.read_back import stored_planes
from ucseg_runtime.dicom.seg_writer import BINARY, SERIES_NUMBER, segment_description
from ucseg_runtime.dicom.segmentation_object import ObjectName, segmentation_object
from ucseg_runtime.dicom.source_study import SourceStudy, source_key, source_study
from ucseg_runtime.errors import SegWriteError
from ucseg_runtime.geometry import frame_grid
from ucseg_runtime.identity import RunIdentity
from ucseg_runtime.label_frames import LabelFrames
from ucseg_runtime.manifest import SegmentClass

_OF_PLACE = ("FrameOfReferenceUID", "PositionReferenceIndicator", "DimensionOrganizationType")
_SHARED_OF_PLACE = ("PlaneOrientationSequence", "PixelMeasuresSequence")


def write_frame_seg(
    path: Path,
    labels: LabelFrames,
    classes: Sequence[SegmentClass],
    sources: Sequence[Dataset],
    identity: RunIdentity,
    encoding: SegEncoding = BINARY,
) -> FileDataset:
    """Write a DICOM Segmentation and return it without its pixel data, after it was read back and compared.

    Args:
        path: File to write.
        labels: Of every frame.
        classes: Of the model.
        sources: Of every frame, see `frame_sources`.
        identity: What computed the result.
        encoding: ``binary``: one bit per pixel and segment, uncompressed. ``labelmap``: one value per pixel, RLE.

    Raises:
        OSError: The file cannot be written.
        SegWriteError: Headers and frames do not fit together, or the object differs when read back.

    Source: DICOM PS3.3 A.51: without a frame of reference, planes are named by the Derivation Image macro alone.
    """
    occupied = _occupied(labels, classes)
    seg_type = encoding.seg_type
    name = ObjectName(f"segmentation {seg_type}", SERIES_NUMBER, "segmentation")
    with building("the segmentation object"):
        study = source_study(sources, frame_grid(len(labels), *labels.frame_shape), identity)
        dataset = _described(occupied, classes, study.with_frames_of_one_pixel(), identity, encoding, name)
        dataset.Rows, dataset.Columns = labels.frame_shape
        placed = [(segment_of(dataset, group), study.slice_of(group)) for group in _groups(dataset)]
        _put_frames(dataset, labels, placed, seg_type)
        _take_places_away(dataset, [z for _, z in placed])
        finish(dataset, study, name.kind)
    save(dataset, path)
    del dataset  # or there would be two of it while it is read back
    _check_read_back(path, labels, occupied, sources, seg_type)
    return read_header(path)


def _occupied(labels: LabelFrames, classes: Sequence[SegmentClass]) -> BoolArray:
    """Which segment is in which frame: bool, shape (frames, classes)."""
    known = len(classes)
    rows = [np.bincount(labels[z].reshape(-1), minlength=known + 1)[1:] > 0 for z in range(len(labels))]
    if any(len(row) > known for row in rows):
        raise SegWriteError(f"a label map holds labels above {known}, the last one of the model.")
    return np.array(rows)


def _described(
    occupied: BoolArray,
    classes: Sequence[SegmentClass],
    study: SourceStudy,
    identity: RunIdentity,
    encoding: SegEncoding,
    name: ObjectName,
) -> Dataset:
    """Let highdicom describe frames of one pixel, each set where the real one holds anything."""
    anywhere: BoolArray = np.any(occupied, axis=1)
    pixels = occupied[:, None, None, :] if encoding.seg_type == "binary" else anywhere[:, None, None]
    segments = [segment_description(item, study, identity) for item in classes]
    native = replace(encoding, compression="none")
    dataset = segmentation_object(pixels.astype(np.uint8), segments, study, identity, native, name)
    if encoding.seg_type == "labelmap":
        # As in seg_writer: OHIF 3.13 takes the colour of label n from item n of the sequence.
        background, *segments = dataset.SegmentSequence
        dataset.SegmentSequence = [*segments, background]
    dataset.SegmentsOverlap = "NO"
    return dataset


def _put_frames(dataset: Dataset, labels: LabelFrames, placed: Sequence[tuple[int, int]], seg_type: SegType) -> None:
    if seg_type == "labelmap":
        dataset.PixelData = encapsulate([encode_frame(labels[z], RLELossless, 8, 8, "MONOCHROME2") for _, z in placed])
        dataset.file_meta.TransferSyntaxUID = RLELossless
    else:
        dataset.PixelData = _packed(np.equal(labels[z], segment) for segment, z in placed)


def _packed(masks: Iterator[BoolArray]) -> bytes:
    """Bits of all frames, one after the other without padding, the first pixel in the lowest bit; whole words.

    Source: DICOM PS3.5 8.1.1 and Annex D.
    """
    packed, rest = bytearray(), np.zeros(0, dtype=bool)
    for mask in masks:
        bits = np.concatenate([rest, mask.reshape(-1)])
        whole = len(bits) // 8 * 8
        packed += np.packbits(bits[:whole], bitorder="little").tobytes()
        rest = bits[whole:]
    packed += np.packbits(rest, bitorder="little").tobytes()
    return bytes(packed + b"\0" * (len(packed) % 2))


def _take_places_away(dataset: Dataset, frames: Sequence[int]) -> None:
    """Remove what was made up, and count the frames along Temporal Position Index (0020,9128) instead.

    Source: DICOM PS3.3 C.7.6.1: Patient Orientation (0020,0020) is of type 2C, required where there is no Image
    Orientation (Patient); empty where it is not known.
    """
    dataset.PatientOrientation = None
    for keyword in _OF_PLACE:
        dataset.pop(Tag(keyword), None)
    for keyword in _SHARED_OF_PLACE:
        dataset.SharedFunctionalGroupsSequence[0].pop(Tag(keyword), None)
    place = Tag("ImagePositionPatient")
    axis = [item.DimensionIndexPointer for item in dataset.DimensionIndexSequence].index(place)
    dimension = dataset.DimensionIndexSequence[axis]
    dimension.DimensionIndexPointer = Tag("TemporalPositionIndex")
    dimension.FunctionalGroupPointer = Tag("FrameContentSequence")
    dimension.DimensionDescriptionLabel = "Frame"
    for group, frame in zip(_groups(dataset), frames, strict=True):
        del group.PlanePositionSequence
        content = group.FrameContentSequence[0]
        content.TemporalPositionIndex = frame + 1
        values = content.get("DimensionIndexValues")
        indices = [values] if isinstance(values, int) else list(values)
        indices[axis] = frame + 1
        content.DimensionIndexValues = indices


def _groups(dataset: Dataset) -> list[Dataset]:
    groups: list[Dataset] = list(dataset.PerFrameFunctionalGroupsSequence)
    return groups


def _check_read_back(
    path: Path, labels: LabelFrames, occupied: BoolArray, sources: Sequence[Dataset], seg_type: SegType
) -> None:
    """Compare every frame with the label map of the frame that it refers to, and see that none is missing."""
    order = {source_key(source): z for z, source in enumerate(sources)}
    with reading_back():
        header = pydicom.dcmread(path, stop_before_pixels=True)
        groups = _groups(header)
        found = [(segment_of(header, group), order[_key_of(group)]) for group in groups]
        for number, ((segment, z), stored) in enumerate(zip(found, stored_planes(path, header), strict=True), start=1):
            expected: UInt8Array = labels[z] if seg_type == "labelmap" else np.equal(labels[z], segment).view(np.uint8)
            if not np.array_equal(stored, expected):
                raise SegWriteError(
                    f"frame {number} of {len(found)} (segment {segment}, frame {z + 1} of the source) was read back "
                    "with other values than were written."
                )
    if len(set(found)) != len(found) or not _needed(occupied, seg_type) <= set(found):
        raise SegWriteError("the object that was read back lacks a frame, or has one twice.")
    if any(Tag(keyword) in header for keyword in _OF_PLACE):
        raise SegWriteError("the object that was read back names a place, which its source does not have.")


def _key_of(group: Dataset) -> str:
    """What `source_key` gives for the frame that a frame refers to."""
    source = group.DerivationImageSequence[0].SourceImageSequence[0]
    frame = f"#{source.ReferencedFrameNumber}" if "ReferencedFrameNumber" in source else ""
    return f"{source.ReferencedSOPInstanceUID}{frame}"


def _needed(occupied: BoolArray, seg_type: SegType) -> set[tuple[int, int]]:
    if seg_type == "labelmap":
        return {(0, int(z)) for z in np.flatnonzero(occupied.any(axis=1))}
    return {(int(segment) + 1, int(z)) for z, segment in np.argwhere(occupied)}
