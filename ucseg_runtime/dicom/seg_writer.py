"""Label map or probabilities to a DICOM Segmentation on the source frames.

Every class of the model is described as a segment, found or not. Frames without any voxel of their segment are left
out, unless nothing at all was found: an object of no frames is not valid, so all frames are then written.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import highdicom as hd
import numpy as np
from highdicom.frame import encode_frame
from pydicom.dataset import Dataset, FileDataset
from pydicom.encaps import encapsulate
from pydicom.uid import ExplicitVRLittleEndian, RLELossless

from ucseg_runtime.arrays import UInt8Array
from ucseg_runtime.config import SegType
from ucseg_runtime.dicom.codes import concept, long_string
from ucseg_runtime.dicom.derived_object import (
    PlacedFrame,
    StoredPlane,
    building,
    check_frames,
    finish,
    read_header,
    save,
)
from ucseg_runtime.dicom.equipment import algorithm_identification, equipment
from ucseg_runtime.dicom.source_study import SourceStudy, source_study
from ucseg_runtime.errors import SegWriteError
from ucseg_runtime.identity import RunIdentity
from ucseg_runtime.manifest import SegmentClass
from ucseg_runtime.segmentation import Segmentation

SERIES_NUMBER = 901


def write_seg(
    path: Path,
    segmentation: Segmentation,
    sources: Sequence[Dataset],
    identity: RunIdentity,
    seg_type: SegType = "binary",
) -> FileDataset:
    """Write a DICOM Segmentation and return it without its pixel data, after it was read back and compared.

    Args:
        path: File to write.
        segmentation: What to write; ``fractional`` needs its probabilities.
        sources: Source headers without pixel data, one per slice in the order of the z axis.
        identity: What computed the result.
        seg_type: ``binary``: one bit per voxel and segment, uncompressed. ``labelmap``: one value per voxel, RLE.
            ``fractional``: probability × 255 per voxel and segment, RLE.

    Raises:
        OSError: The file cannot be written.
        SegWriteError: Labels, headers and grid do not fit together, or the object differs when read back.

    Source: DICOM PS3.3 A.51 and C.8.20.
    """
    _check_labels(segmentation)
    with building("the segmentation object"):
        study = source_study(sources, segmentation.geometry, identity)
        dataset = _BUILDERS[seg_type](segmentation, study, identity)
        finish(dataset, study, _kind(seg_type))
    save(dataset, path)
    del dataset  # or there would be two of it while it is read back
    _check_read_back(path, segmentation, seg_type)
    return read_header(path)


def _check_labels(segmentation: Segmentation) -> None:
    known, found = len(segmentation.classes), int(segmentation.label_map.max())
    if found > known:
        raise SegWriteError(f"the label map holds label {found}; the model has classes 1 to {known}")


def _kind(seg_type: SegType) -> str:
    return f"segmentation {seg_type}"


def _binary(segmentation: Segmentation, study: SourceStudy, identity: RunIdentity) -> Dataset:
    return _segmentation(segmentation.label_map, segmentation, study, identity, "binary")


def _labelmap(segmentation: Segmentation, study: SourceStudy, identity: RunIdentity) -> Dataset:
    dataset = _segmentation(segmentation.label_map, segmentation, study, identity, "labelmap")
    # OHIF 3.13 takes the colour of label n from item n of the sequence: highdicom 0.28's Background must not be first.
    background, *segments = dataset.SegmentSequence
    dataset.SegmentSequence = [*segments, background]
    return dataset


def _fractional(segmentation: Segmentation, study: SourceStudy, identity: RunIdentity) -> Dataset:
    """Let highdicom describe frames of one pixel, and put the real frames in their place.

    It takes fractions only as floats of all classes at once, which is 1 GB for seven classes of 133 x 512 x 512.
    """
    probabilities = _probabilities(segmentation)
    occupied = np.any(probabilities, axis=(2, 3)).T.astype(np.uint8)[:, None, None, :]  # (z, 1, 1, classes)
    dataset = _segmentation(occupied, segmentation, study.with_frames_of_one_pixel(), identity, "fractional")
    frames = [
        encode_frame(probabilities[_segment_of(group) - 1, study.slice_of(group)], RLELossless, 8, 8, "MONOCHROME2")
        for group in dataset.PerFrameFunctionalGroupsSequence
    ]
    _, dataset.Rows, dataset.Columns = segmentation.geometry.shape
    dataset.SegmentsOverlap = "UNDEFINED"
    dataset.PixelData = encapsulate(frames)
    dataset.file_meta.TransferSyntaxUID = RLELossless
    return dataset


_BUILDERS: dict[SegType, Callable[[Segmentation, SourceStudy, RunIdentity], Dataset]] = {
    "binary": _binary,
    "labelmap": _labelmap,
    "fractional": _fractional,
}


def _segmentation(
    pixels: UInt8Array, segmentation: Segmentation, study: SourceStudy, identity: RunIdentity, seg_type: SegType
) -> Dataset:
    device, kind = equipment(identity), _kind(seg_type)
    dataset: Dataset = hd.seg.Segmentation(
        source_images=study.frames,
        pixel_array=pixels,
        segmentation_type=seg_type.upper(),
        segment_descriptions=[_description(item, study, identity) for item in segmentation.classes],
        series_instance_uid=study.uids.of_output(f"{kind} series"),
        series_number=SERIES_NUMBER,
        sop_instance_uid=study.uids.of_output(f"{kind} instance"),
        instance_number=1,
        manufacturer=device.manufacturer,
        manufacturer_model_name=device.model_name,
        software_versions=device.software_versions,
        device_serial_number=device.serial_number,
        transfer_syntax_uid=RLELossless if seg_type == "labelmap" else ExplicitVRLittleEndian,
        omit_empty_frames=bool(pixels.any()),
        content_label="SEGMENTATION",
        content_description="Automatic segmentation, for research",
        content_qualification="RESEARCH",
        series_description="ucseg segmentation",
    )
    return dataset


def _description(item: SegmentClass, study: SourceStudy, identity: RunIdentity) -> hd.seg.SegmentDescription:
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


def _segment_of(group: Dataset) -> int:
    return int(group.SegmentIdentificationSequence[0].ReferencedSegmentNumber)


def _check_read_back(path: Path, segmentation: Segmentation, seg_type: SegType) -> None:
    labels = segmentation.label_map

    def expected(frame: PlacedFrame) -> StoredPlane:
        plane: UInt8Array = labels[frame.z]
        if seg_type == "labelmap":
            return plane
        if seg_type == "binary":
            return np.equal(plane, frame.segment).view(np.uint8)
        fractions: UInt8Array = _probabilities(segmentation)[frame.segment - 1, frame.z]
        return fractions

    missing = _occupied(segmentation, seg_type) - check_frames(path, segmentation.geometry, expected)
    if missing:
        raise SegWriteError(f"{len(missing)} frames with voxels are missing in the object that was read back.")


def _occupied(segmentation: Segmentation, seg_type: SegType) -> set[PlacedFrame]:
    """The frames that hold anything and so must be in the object."""
    if seg_type == "fractional":
        segments, slices = np.nonzero(np.any(_probabilities(segmentation), axis=(2, 3)))
        return {PlacedFrame(int(segment) + 1, int(z)) for segment, z in zip(segments, slices, strict=True)}
    planes = list(enumerate(segmentation.label_map))
    if seg_type == "labelmap":
        return {PlacedFrame(0, z) for z, plane in planes if plane.any()}
    # Plane by plane, because a plane stays in the cache: ten times as fast as on the whole volume.
    labels = [item.label for item in segmentation.classes]
    return {PlacedFrame(label, z) for z, plane in planes for label in labels if np.equal(plane, label).any()}
