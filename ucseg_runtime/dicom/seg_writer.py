"""Label map or probabilities to a DICOM Segmentation on the source frames.

Every class of the model is described as a segment, found or not. Frames without any voxel of their segment are left
out where that is asked for, unless nothing at all was found: an object of no frames is not valid, so all frames are
then written.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import highdicom as hd
import numpy as np
from pydicom.dataset import Dataset, FileDataset

from ucseg_runtime.arrays import UInt8Array
from ucseg_runtime.config import SegEncoding
from ucseg_runtime.decision import Decision
from ucseg_runtime.dicom.codes import concept, long_string
from ucseg_runtime.dicom.derived_object import building, finish, save
from ucseg_runtime.dicom.equipment import algorithm_identification
from ucseg_runtime.dicom.read_back import (
    PlacedFrame,
    SegmentFigures,
    StoredPlane,
    compared_planes,
    read_placed,
)
from ucseg_runtime.dicom.segmentation_object import MAXIMUM_FRACTION, ObjectName, fractional_object, segmentation_object
from ucseg_runtime.dicom.source_study import SourceStudy, source_study
from ucseg_runtime.errors import SegWriteError
from ucseg_runtime.identity import RunIdentity
from ucseg_runtime.manifest import SegmentClass
from ucseg_runtime.segmentation import Segmentation

SERIES_NUMBER = 901
BINARY = SegEncoding()


def write_seg(
    path: Path,
    segmentation: Segmentation,
    sources: Sequence[Dataset],
    identity: RunIdentity,
    encoding: SegEncoding = BINARY,
    decision: Decision | None = None,
) -> FileDataset:
    """Write a DICOM Segmentation and return it without its pixel data, after it was read back and compared.

    Args:
        path: File to write.
        segmentation: What to write; ``fractional`` needs its probabilities.
        sources: Source headers without pixel data, one per slice in the order of the z axis.
        identity: What computed the result.
        encoding: ``binary``: one bit per voxel and segment. ``labelmap``: one value per voxel. ``fractional``:
            probability × 255 per voxel and segment.
        decision: What is to be done with the result; the description of the series says so where it is not accepted.

    Raises:
        OSError: The file cannot be written.
        SegWriteError: Labels, headers and grid do not fit together, or the object differs when read back.

    Source: DICOM PS3.3 A.51 and C.8.20.
    """
    _check_labels(segmentation)
    name = ObjectName(f"segmentation {encoding.seg_type}", SERIES_NUMBER, "segmentation")
    with building("the segmentation object"):
        study = source_study(sources, segmentation.geometry, identity)
        dataset = _built(segmentation, study, identity, encoding, name)
        finish(dataset, study, name.kind)
        if decision is not None:
            dataset.SeriesDescription = long_string(f"{dataset.SeriesDescription}{decision.suffix}")
    save(dataset, path)
    del dataset  # or there would be two of it while it is read back
    return _read_back(path, segmentation, study, encoding)


def _check_labels(segmentation: Segmentation) -> None:
    known, found = len(segmentation.classes), int(segmentation.label_map.max())
    if found > known:
        raise SegWriteError(f"the label map holds label {found}; the model has classes 1 to {known}")


def _built(
    segmentation: Segmentation, study: SourceStudy, identity: RunIdentity, encoding: SegEncoding, name: ObjectName
) -> Dataset:
    segments = [segment_description(item, study, identity) for item in segmentation.classes]
    if encoding.seg_type == "fractional":
        return fractional_object(_probabilities(segmentation), segments, study, identity, encoding, name)
    dataset = segmentation_object(segmentation.label_map, segments, study, identity, encoding, name)
    if encoding.seg_type == "labelmap":
        # OHIF 3.13 takes the colour of label n from item n of the sequence: highdicom 0.28's Background must not be
        # first.
        background, *others = dataset.SegmentSequence
        dataset.SegmentSequence = [*others, background]
    return dataset


def segment_description(item: SegmentClass, study: SourceStudy, identity: RunIdentity) -> hd.seg.SegmentDescription:
    """A class of the model as a segment."""
    description = hd.seg.SegmentDescription(
        segment_number=item.label,
        segment_label=long_string(item.name),
        segmented_property_category=concept(item.category),
        segmented_property_type=concept(item.type),
        algorithm_type="AUTOMATIC",
        algorithm_identification=algorithm_identification(identity),
        tracking_uid=study.uids.of_segment(item.label),
        tracking_id=long_string(item.name),
        display_color=hd.color.CIELabColor.from_rgb(*item.colour_rgb),
    )
    if item.modifier is not None:
        property_type = description.SegmentedPropertyTypeCodeSequence[0]
        property_type.SegmentedPropertyTypeModifierCodeSequence = [concept(item.modifier)]
    return description


def _probabilities(segmentation: Segmentation) -> UInt8Array:
    if segmentation.probabilities is None:
        raise SegWriteError(
            "a fractional segmentation needs the probabilities, and they were not kept.",
            hint="Set keep_probabilities in the inference options.",
        )
    return segmentation.probabilities


def _read_back(path: Path, segmentation: Segmentation, study: SourceStudy, encoding: SegEncoding) -> FileDataset:
    """Compare every frame, what segments there are, and the voxels and centroids of each of them."""
    read = read_placed(path, segmentation.geometry, study)
    _check_segments(read.header, segmentation)
    figures = SegmentFigures(read, segmentation.geometry)
    for frame, stored in compared_planes(read, lambda frame: _expected(segmentation, encoding, frame)):
        if frame.segment:
            figures.add(frame, frame.segment, stored.astype(np.uint8, copy=False))
        else:
            for label in np.flatnonzero(np.bincount(stored.ravel())[1:]) + 1:  # those that this slice holds
                figures.add(frame, int(label), np.equal(stored, label).view(np.uint8))
    figures.check(_voxels(segmentation, encoding))
    return read.header


def _expected(segmentation: Segmentation, encoding: SegEncoding, frame: PlacedFrame) -> StoredPlane:
    plane: UInt8Array = segmentation.label_map[frame.z]
    if encoding.seg_type == "labelmap":
        return plane
    if encoding.seg_type == "binary":
        return np.equal(plane, frame.segment).view(np.uint8)
    fractions: UInt8Array = _probabilities(segmentation)[frame.segment - 1, frame.z]
    return fractions


def _voxels(segmentation: Segmentation, encoding: SegEncoding) -> list[int]:
    """How many voxels of each segment are to be in the object; with fractions all that are not 0."""
    if encoding.seg_type == "fractional":
        return [int(np.count_nonzero(planes)) for planes in _probabilities(segmentation)]
    labels = [item.label for item in segmentation.classes]
    # Plane by plane, because a plane stays in the cache.
    counts = [[np.count_nonzero(np.equal(plane, label)) for label in labels] for plane in segmentation.label_map]
    return [int(count) for count in np.sum(counts, axis=0)]


def _check_segments(header: Dataset, segmentation: Segmentation) -> None:
    numbers = sorted(int(segment.SegmentNumber) for segment in header.SegmentSequence if segment.SegmentNumber)
    if numbers != sorted(item.label for item in segmentation.classes):
        raise SegWriteError("the object that was read back describes other segments than the model has classes.")
    if header.get("MaximumFractionalValue", MAXIMUM_FRACTION) != MAXIMUM_FRACTION:
        raise SegWriteError("the object that was read back has another range of fractions than was written.")
