"""From a series to voxels in modality units, and to the headers that the writers need."""

from __future__ import annotations

import hashlib
import logging
from pathlib import Path
from time import perf_counter

import numpy as np
from pydicom.datadict import dictionary_has_tag, dictionary_VR
from pydicom.dataset import Dataset
from pydicom.tag import Tag

from ucseg_runtime.dicom.checks import require_readable_pixels, require_slice_images
from ucseg_runtime.dicom.decoding import DecodeLimits
from ucseg_runtime.dicom.elements import UNREADABLE
from ucseg_runtime.dicom.functional_groups import PER_FRAME, SHARED, frame_header
from ucseg_runtime.dicom.headers import content_digest, quiet_pydicom, read_whole_header
from ucseg_runtime.dicom.instances import Instance, Series
from ucseg_runtime.dicom.intensities import (
    StoredArray,
    modality_values,
    rescale_jumps,
    stored_dtype,
    within_bits_stored,
    without_unused_bits,
)
from ucseg_runtime.dicom.stacking import acquired_grid
from ucseg_runtime.dicom.stored_frames import StoredFrames, opened
from ucseg_runtime.dicom.transfer_syntaxes import LOSSY, LOSSY_JPEG_2000
from ucseg_runtime.errors import InputError
from ucseg_runtime.hounsfield import require_hounsfield_units
from ucseg_runtime.slice_stack import SliceStack
from ucseg_runtime.volume import Volume

logger = logging.getLogger(__name__)

_DEEPEST_SEQUENCE = 8


def read_volume(series: Series, limits: DecodeLimits | None = None) -> Volume:
    """The voxels of a series alone; see `read_voxels`."""
    return read_voxels(series, limits)[0]


def read_voxels(series: Series, limits: DecodeLimits | None = None) -> tuple[Volume, tuple[str, ...]]:
    """The voxels of a series in modality units, after every check on its geometry and its pixels.

    Slices that are tilted or unevenly spaced are resampled to a straight grid; `acquired_grid` is the way back.

    Compressed frames are decoded in a child process with limits, because native decoders can die on malformed data.

    Args:
        series: From a scan.
        limits: How much the child process may use.

    Returns:
        The volume, int16 when rescaling yields integers that fit, else float32; slices ascend along the slice normal.
        And notes on what looks odd, free of patient data.

    Raises:
        SeriesSelectionError: The files are no slice images of one patient.
        GeometryError: The slices do not form one volume.
        PixelDataError: Pixels are missing, damaged, too many, or impossible for the modality.
    """
    start = perf_counter()
    require_slice_images(series)
    grid = acquired_grid(series)
    require_readable_pixels(series)
    voxels = modality_values(_stored_values(series, limits or DecodeLimits()), series.instances)
    if series.modality == "CT":
        require_hounsfield_units(voxels)
    notes = rescale_jumps(voxels, series.instances)
    logger.info("read: %d slices, %.2f s", series.number_of_instances, perf_counter() - start)
    if isinstance(grid, SliceStack):
        return Volume(grid.straightened(voxels), grid.straight_grid, series.modality), notes
    return Volume(voxels, grid, series.modality), notes


def source_headers(series: Series) -> list[Dataset]:
    """All readable attributes but the pixels of every slice, in order, with stand-ins for empty identifiers.

    A frame of a multi-frame file gets a header as if it were an image of its own; see `frame_header`.

    A transfer syntax with loss is noted as Lossy Image Compression (0028,2110) where the file says nothing about it.

    Raises:
        InputError: A file cannot be read any more, or changed since the scan.
    """
    headers: list[Dataset] = []
    of_file: dict[Path, Dataset] = {}  # the last one alone
    with quiet_pydicom():
        for instance in series.instances:
            if instance.path not in of_file:
                of_file = {instance.path: _source_header(series, instance)}
            header = of_file[instance.path]
            headers.append(frame_header(header, instance) if instance.frame else header)
    return headers


def files_sha256(series: Series) -> str:
    """SHA-256 over the SHA-256 of every file of a series, in the order of the slices, in hexadecimal.

    Raises:
        PixelDataError: A file cannot be read any more, or changed since the scan.
    """
    overall = hashlib.sha256()
    for instance in {instance.path: instance for instance in series.instances}.values():
        with opened(instance) as stream:
            overall.update(bytes.fromhex(content_digest(stream, 0)))
    return overall.hexdigest()


def _source_header(series: Series, instance: Instance) -> Dataset:
    try:
        header = read_whole_header(instance)
    except UNREADABLE as error:
        raise InputError(
            f"{instance.where} cannot be read any more ({type(error).__name__}).",
            hint="Keep the input unchanged while it is being segmented.",
            code="UCSEG-E102",
        ) from error
    for keyword in (SHARED, PER_FRAME):
        header.pop(Tag(keyword), None)
    _drop_unreadable_elements(header)
    for keyword, value in (
        ("SOPClassUID", instance.sop_class_uid),
        ("SOPInstanceUID", instance.sop_instance_uid),
        ("StudyInstanceUID", series.study_uid),
        ("SeriesInstanceUID", series.series_uid),
        ("FrameOfReferenceUID", series.frame_of_reference_uid),
    ):
        header.add_new(Tag(keyword), "UI", value)
    if instance.transfer_syntax in LOSSY and not header.get("LossyImageCompression"):
        header.LossyImageCompression = "01"
    return header


def _drop_unreadable_elements(header: Dataset, depth: int = 0) -> None:
    """Remove what pydicom cannot convert, so that it does not fail whoever copies the header.

    Sequences where the standard has none are removed too, and those that are nested deeper than any real one: where one
    of them holds something unreadable, pydicom quotes the traceback of each level in that of the next.
    """
    for tag in list(header.keys()):
        try:
            element = header[tag]
        except UNREADABLE:
            del header[tag]
            continue
        if element.VR != "SQ":
            continue
        if depth == _DEEPEST_SEQUENCE or (dictionary_has_tag(tag) and dictionary_VR(tag) != "SQ"):
            del header[tag]
            continue
        for item in element.value:
            _drop_unreadable_elements(item, depth + 1)


def _stored_values(series: Series, limits: DecodeLimits) -> StoredArray:
    """Integers as the files store them, shape (slices, rows, columns)."""
    first = series.instances[0].pixel_format
    shape = (series.number_of_instances, first.rows, first.columns)
    stored: StoredArray = np.empty(shape, dtype=stored_dtype(first))
    with StoredFrames(limits) as frames:
        for plane, instance in zip(stored, series.instances, strict=True):
            frames.read(instance, plane)
            limited = within_bits_stored if instance.transfer_syntax in LOSSY_JPEG_2000 else without_unused_bits
            plane[...] = limited(plane, instance.pixel_format)
    return stored
