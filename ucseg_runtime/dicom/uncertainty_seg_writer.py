"""Uncertainty to a fractional DICOM Segmentation of one segment, for viewers that know no Parametric Maps."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import highdicom as hd
import numpy as np
from highdicom.sr import CodedConcept
from pydicom.dataset import Dataset, FileDataset

from ucseg_runtime.arrays import UInt8Array
from ucseg_runtime.config import SEG_COMPRESSIONS, SegEncoding
from ucseg_runtime.dicom.codes import SPATIAL_CONCEPT, private_scheme, uncertainty_of_rule
from ucseg_runtime.dicom.derived_object import building, finish, save
from ucseg_runtime.dicom.equipment import algorithm_identification
from ucseg_runtime.dicom.read_back import SegmentFigures, compared_planes, read_placed
from ucseg_runtime.dicom.segmentation_object import MAXIMUM_FRACTION, ObjectName, fractional_object
from ucseg_runtime.dicom.source_study import SourceStudy, source_study
from ucseg_runtime.errors import SegWriteError
from ucseg_runtime.identity import RunIdentity
from ucseg_runtime.segmentation import UNCERTAINTY_SCALE, Segmentation, stored_uncertainty

_NAME = ObjectName("uncertainty segmentation", 902, "uncertainty")
_COLOUR_RGB = (255, 160, 0)
_STEP = UNCERTAINTY_SCALE // MAXIMUM_FRACTION


def write_uncertainty_seg(
    path: Path,
    segmentation: Segmentation,
    sources: Sequence[Dataset],
    identity: RunIdentity,
    encoding: SegEncoding | None = None,
) -> FileDataset:
    """Write the uncertainty as fractions of one segment and return it without its pixel data, after it was read back.

    Stored values are uncertainty × 255, so that the error is at most 1 / 510; a Parametric Map has 1 / 131070. DICOM
    knows fractions as probabilities and occupancies alone; the object calls them the former.

    Args:
        path: File to write.
        segmentation: Its uncertainty is written.
        sources: Source headers without pixel data, one per slice in the order of the z axis.
        identity: What computed the result.
        encoding: Its compression and rule for empty frames are taken, the compression where fractions can have it;
            RLE when not given.

    Raises:
        OSError: The file cannot be written.
        SegWriteError: The uncertainty is not within [0, 1], headers and grid do not fit together, or the object differs
            when read back.

    Source: DICOM PS3.3 A.51 and C.8.20.
    """
    fractions = _fractions(segmentation)
    with building("the segmentation of the uncertainty"):
        study = source_study(sources, segmentation.geometry, identity)
        dataset = fractional_object(
            fractions[None], [_description(study, identity)], study, identity, _fractional(encoding), _NAME
        )
        dataset.CodingSchemeIdentificationSequence = [private_scheme()]
        finish(dataset, study, _NAME.kind)
    save(dataset, path)
    del dataset
    return _read_back(path, fractions, segmentation, study)


def _fractions(segmentation: Segmentation) -> UInt8Array:
    """Uncertainty × 255, rounded: uint8, shape (z, y, x)."""
    stored = stored_uncertainty(segmentation.uncertainty)
    fractions = np.empty(stored.shape, dtype=np.uint8)
    for plane, target in zip(stored, fractions, strict=True):
        target[...] = (plane.astype(np.uint32) + _STEP // 2) // _STEP
    return fractions


def _fractional(encoding: SegEncoding | None) -> SegEncoding:
    if encoding is None or encoding.seg_type == "binary" and encoding.compression == "none":
        return SegEncoding(
            "fractional", SEG_COMPRESSIONS["fractional"][0], encoding.empty_frames if encoding else "omit"
        )
    return SegEncoding("fractional", encoding.compression, encoding.empty_frames)


def _description(study: SourceStudy, identity: RunIdentity) -> hd.seg.SegmentDescription:
    quantity = uncertainty_of_rule(identity.fusion)
    return hd.seg.SegmentDescription(
        segment_number=1,
        segment_label=quantity.meaning,
        segmented_property_category=CodedConcept.from_code(SPATIAL_CONCEPT),
        segmented_property_type=CodedConcept.from_code(quantity),
        algorithm_type="AUTOMATIC",
        algorithm_identification=algorithm_identification(identity),
        tracking_uid=study.uids.of_output("uncertainty segment"),
        tracking_id="uncertainty",
        display_color=hd.color.CIELabColor.from_rgb(*_COLOUR_RGB),
    )


def _read_back(path: Path, fractions: UInt8Array, segmentation: Segmentation, study: SourceStudy) -> FileDataset:
    read = read_placed(path, segmentation.geometry, study)
    if read.header.MaximumFractionalValue != MAXIMUM_FRACTION:
        raise SegWriteError("the object that was read back has another range of fractions than was written.")
    figures = SegmentFigures(read, segmentation.geometry)
    for frame, stored in compared_planes(read, lambda frame: fractions[frame.z]):
        figures.add(frame, frame.segment, stored.astype(np.uint8, copy=False))
    figures.check([int(np.count_nonzero(fractions))])
    return read.header
