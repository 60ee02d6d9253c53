"""Builds DICOM Segmentation objects of every encoding and compression from frames on the source images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from types import MappingProxyType

import highdicom as hd
import numpy as np
from highdicom.frame import encode_frame
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate
from pydicom.uid import UID, ExplicitVRLittleEndian, JPEG2000Lossless, JPEGLSLossless, RLELossless

from ucseg_runtime.arrays import UInt8Array
from ucseg_runtime.config import CompressionChoice, SegEncoding
from ucseg_runtime.dicom.derived_object import segment_of
from ucseg_runtime.dicom.equipment import equipment
from ucseg_runtime.dicom.frame_stream import frame_stream
from ucseg_runtime.dicom.source_study import SourceStudy
from ucseg_runtime.errors import SegWriteError
from ucseg_runtime.identity import RunIdentity

_SMALLEST_JPEG2000 = 32
"""Of highdicom's and openjpeg's encoder with five levels of wavelets."""

MAXIMUM_FRACTION = 255
"""Stored value of a fraction of 1."""

_SYNTAXES: MappingProxyType[CompressionChoice, UID] = MappingProxyType(
    {
        "none": ExplicitVRLittleEndian,
        "rle": RLELossless,
        "jpeg2000": JPEG2000Lossless,
        "jpeg-ls": JPEGLSLossless,
    }
)


@dataclass(frozen=True)
class ObjectName:
    """What an object of a run is called.

    Attributes:
        kind: Distinguishes the derived UIDs of the objects of one run.
        series_number: (0020,0011).
        content: What it shows, one lower-case word.
    """

    kind: str
    series_number: int
    content: str


def segmentation_object(
    pixels: UInt8Array,
    segments: Sequence[hd.seg.SegmentDescription],
    study: SourceStudy,
    identity: RunIdentity,
    encoding: SegEncoding,
    name: ObjectName,
) -> Dataset:
    """A binary segmentation or a label map; for fractions see `fractional_object`.

    Args:
        pixels: uint8, shape (z, y, x): labels; or (z, y, x, segments): fractions.
        segments: Descriptions of the segments.
        study: Where the frames lie.
        identity: What computed the result.
        encoding: How the frames are stored.
        name: What it is called.
    """
    _require_size(study, encoding)
    device = equipment(identity)
    dataset: Dataset = hd.seg.Segmentation(
        source_images=study.frames,
        pixel_array=pixels,
        segmentation_type=encoding.seg_type.upper(),
        segment_descriptions=segments,
        series_instance_uid=study.uids.of_output(f"{name.kind} series"),
        series_number=name.series_number,
        sop_instance_uid=study.uids.of_output(f"{name.kind} instance"),
        instance_number=1,
        manufacturer=device.manufacturer,
        manufacturer_model_name=device.model_name,
        software_versions=device.software_versions,
        device_serial_number=device.serial_number,
        transfer_syntax_uid=_SYNTAXES[encoding.compression],
        omit_empty_frames=encoding.empty_frames == "omit" and bool(pixels.any()),
        content_label=name.content.upper(),
        content_description=f"Automatic {name.content}, for research",
        content_qualification="RESEARCH",
        series_description=f"ucseg {name.content}",
    )
    return dataset


def fractional_object(
    planes: UInt8Array,
    segments: Sequence[hd.seg.SegmentDescription],
    study: SourceStudy,
    identity: RunIdentity,
    encoding: SegEncoding,
    name: ObjectName,
) -> Dataset:
    """A fractional segmentation: highdicom describes frames of one pixel, and the real ones are put in their place.

    It takes fractions only as floats of all classes at once, which is 1 GB for seven classes of 133 x 512 x 512.

    Args:
        planes: uint8, shape (segments, z, y, x), fraction × 255.
        segments: Descriptions of the segments.
        study: Where the frames lie.
        identity: What computed the result.
        encoding: How the frames are stored.
        name: What it is called.
    """
    _require_size(study, encoding)
    occupied = np.any(planes, axis=(2, 3)).T.astype(np.uint8)[:, None, None, :]  # (z, 1, 1, segments)
    small = study.with_frames_of_one_pixel()
    native = SegEncoding(encoding.seg_type, "none", encoding.empty_frames)
    dataset = segmentation_object(occupied, segments, small, identity, native, name)
    _, _, dataset.Rows, dataset.Columns = planes.shape
    dataset.SegmentsOverlap = "UNDEFINED"
    groups = dataset.PerFrameFunctionalGroupsSequence
    _put_frames(dataset, [planes[segment_of(dataset, group) - 1, study.slice_of(group)] for group in groups], encoding)
    return dataset


def _require_size(study: SourceStudy, encoding: SegEncoding) -> None:
    rows, columns = study.frames[0].Rows, study.frames[0].Columns
    if encoding.compression == "jpeg2000" and min(rows, columns) < _SMALLEST_JPEG2000:
        raise SegWriteError(
            f"frames of {rows} x {columns} pixels cannot be compressed with JPEG 2000 "
            f"(at least {_SMALLEST_JPEG2000} x {_SMALLEST_JPEG2000}).",
            hint="Use --compression none or rle.",
        )


def _put_frames(dataset: Dataset, frames: Sequence[UInt8Array], encoding: SegEncoding) -> None:
    syntax = _SYNTAXES[encoding.compression]
    dataset.file_meta.TransferSyntaxUID = syntax
    if encoding.compression == "none":
        dataset.PixelData = frame_stream([np.ascontiguousarray(frame) for frame in frames])
    else:
        dataset.PixelData = encapsulate([encode_frame(frame, syntax, 8, 8, "MONOCHROME2") for frame in frames])
