"""Uncertainty to a DICOM Parametric Map on the source frames."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import highdicom as hd
import numpy as np
from pydicom.dataset import Dataset, FileDataset
from pydicom.uid import ExplicitVRLittleEndian

from ucseg_runtime.arrays import UInt16Array
from ucseg_runtime.dicom.codes import EVIDENTIAL_UNCERTAINTY, NO_UNITS, private_scheme, uncertainty_of_rule
from ucseg_runtime.dicom.derived_object import add_body_part, building, finish, save
from ucseg_runtime.dicom.equipment import equipment
from ucseg_runtime.dicom.frame_stream import frame_stream
from ucseg_runtime.dicom.read_back import compared_planes, read_placed
from ucseg_runtime.dicom.source_study import SourceStudy, source_study
from ucseg_runtime.errors import SegWriteError
from ucseg_runtime.identity import RunIdentity
from ucseg_runtime.segmentation import UNCERTAINTY_SCALE as SCALE
from ucseg_runtime.segmentation import Segmentation, stored_uncertainty
from ucseg_runtime.slice_stack import AcquiredGrid

SERIES_NUMBER = 902

_KIND = "uncertainty"


def write_pmap(
    path: Path, segmentation: Segmentation, sources: Sequence[Dataset], identity: RunIdentity
) -> FileDataset:
    """Write the uncertainty as a Parametric Map and return it without its pixel data, after it was read back.

    Stored values are uncertainty × 65535 in 16 bits, uncompressed: the low byte is noise, so that RLE takes twice the
    time and saves nothing. 8 bits are not allowed in this object.

    Args:
        path: File to write.
        segmentation: Its uncertainty is written; in float32 it is stored in 16 bits first.
        sources: Source headers without pixel data, one per slice in the order of the z axis.
        identity: What computed the result.

    Raises:
        OSError: The file cannot be written.
        SegWriteError: The uncertainty is not within [0, 1], headers and grid do not fit together, or the object differs
            when read back.

    Source: DICOM PS3.3 A.75 and C.7.6.16.2.11 (Real World Value Mapping).
    """
    stored = stored_uncertainty(segmentation.uncertainty)
    with building("the parametric map"):
        study = source_study(sources, segmentation.geometry, identity)
        dataset = _parametric_map(stored, study, identity)
        finish(dataset, study, _KIND)
        add_body_part(dataset, study.header)
    save(dataset, path)
    del dataset
    return _read_back(path, stored, segmentation.geometry, study)


def _parametric_map(stored: UInt16Array, study: SourceStudy, identity: RunIdentity) -> Dataset:
    """Let highdicom describe frames of one pixel, and put the real frames in their place.

    It would copy all frames twice, and pydicom once more to write them.
    """
    dataset = _description(stored[:, :1, :1], study.with_frames_of_one_pixel(), identity)
    _, dataset.Rows, dataset.Columns = stored.shape
    order = [study.slice_of(group) for group in dataset.PerFrameFunctionalGroupsSequence]
    dataset.PixelData = frame_stream([stored[z].astype("<u2", copy=False) for z in order])
    return dataset


def _description(pixels: UInt16Array, study: SourceStudy, identity: RunIdentity) -> Dataset:
    device = equipment(identity)
    dataset: Dataset = hd.pm.ParametricMap(
        source_images=study.frames,
        pixel_array=pixels,
        series_instance_uid=study.uids.of_output(f"{_KIND} series"),
        series_number=SERIES_NUMBER,
        sop_instance_uid=study.uids.of_output(f"{_KIND} instance"),
        instance_number=1,
        manufacturer=device.manufacturer,
        manufacturer_model_name=device.model_name,
        software_versions=device.software_versions,
        device_serial_number=device.serial_number,
        contains_recognizable_visual_features=False,
        real_world_value_mappings=[_mapping(identity)],
        voi_lut_transformations=[hd.VOILUTTransformation(window_center=(SCALE + 1) / 2, window_width=SCALE + 1)],
        transfer_syntax_uid=ExplicitVRLittleEndian,
        content_label="UNCERTAINTY",
        content_description=f"{uncertainty_of_rule(identity.fusion).meaning}, not calibrated",
        content_qualification="RESEARCH",
        coding_schemes=[private_scheme()],
        series_description="ucseg uncertainty",
    )
    return dataset


def _mapping(identity: RunIdentity) -> hd.pm.RealWorldValueMapping:
    quantity = uncertainty_of_rule(identity.fusion)
    scale = ", 1 = no evidence" if quantity == EVIDENTIAL_UNCERTAINTY else ""
    return hd.pm.RealWorldValueMapping(
        lut_label="UNCERTAINTY",
        lut_explanation=f"{quantity.meaning}{scale}, not calibrated",
        unit=NO_UNITS,
        value_range=(0, SCALE),
        slope=1.0 / SCALE,
        intercept=0.0,
        quantity_definition=quantity,
    )


def _read_back(path: Path, stored: UInt16Array, geometry: AcquiredGrid, study: SourceStudy) -> FileDataset:
    """Compare every frame, that there is one for every slice, and that stored values mean what they should."""
    read = read_placed(path, geometry, study)
    frames = sum(1 for _ in compared_planes(read, lambda frame: stored[frame.z]))
    if frames != len(stored):
        raise SegWriteError(f"{frames} of {len(stored)} slices are in the parametric map that was read back.")
    mapping = read.header.SharedFunctionalGroupsSequence[0].RealWorldValueMappingSequence[0]
    ends = [mapping.RealWorldValueSlope * value + mapping.RealWorldValueIntercept for value in (0, SCALE)]
    if not np.allclose(ends, (0.0, 1.0), rtol=0.0, atol=1e-9):
        raise SegWriteError("the parametric map that was read back maps its values to another range than 0 to 1.")
    return read.header
