"""Everything that is written of one segmentation: which object by which writer, under which name."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from pydicom.dataset import Dataset

from ucseg_runtime.arrays import UInt8Array
from ucseg_runtime.config import OutputOptions
from ucseg_runtime.decision import Decision
from ucseg_runtime.geometry import VolumeGeometry
from ucseg_runtime.identity import RunIdentity
from ucseg_runtime.nifti import NiftiGrid, require_nibabel, write_nifti
from ucseg_runtime.nrrd_file import require_pynrrd, write_nrrd
from ucseg_runtime.publish import (
    LABELS_NIFTI,
    LABELS_NRRD,
    MONTAGE,
    PREVIEW,
    REPORT,
    SEGMENTATION,
    STRUCTURES,
    UNCERTAINTY,
    UNCERTAINTY_NIFTI,
    UNCERTAINTY_NRRD,
    Staging,
)
from ucseg_runtime.safe_files import write_checked
from ucseg_runtime.segmentation import Segmentation, SegmentMeasurement, stored_uncertainty
from ucseg_runtime.viewers import frame_limit_note


@dataclass(frozen=True, eq=False)
class SeriesOutputs:
    """What is written of one series.

    Attributes:
        straight: On the straight grid that was segmented, with the uncertainty as it is stored; for files of volumes.
        grid: That grid.
        nifti_grid: The same as NIfTI files say it: that of the input where it was one.
        on_slices: On the slices as they were acquired, for DICOM objects; the same object where they lie on that grid.
        measurements: One per class.
        decision: What is to be done with the result.
        picture_png: The picture.
        sources: Header of every slice; none where the input was no DICOM series, which then has no DICOM objects.
        identity: What computed the result.
    """

    straight: Segmentation
    grid: VolumeGeometry
    nifti_grid: VolumeGeometry | NiftiGrid
    on_slices: Segmentation
    measurements: tuple[SegmentMeasurement, ...]
    decision: Decision
    picture_png: bytes
    sources: Sequence[Dataset]
    identity: RunIdentity


def require_packages(outputs: OutputOptions) -> None:
    """Check before any work that everything can be written.

    Raises:
        BackendUnavailableError: A format was asked for whose package is not installed.
    """
    if "nifti" in outputs.extras:
        require_nibabel()
    if "nrrd" in outputs.extras:
        require_pynrrd()


def write_objects(staging: Staging, series: SeriesOutputs, outputs: OutputOptions) -> tuple[str, ...]:
    """Write one object after the other, each read back and compared; of each only its header is kept.

    Args:
        staging: Where to.
        series: What is written.
        outputs: Which objects are written.

    Returns:
        What the caller should know of them.

    Raises:
        OutputError: Something could not be written, or differs when read back.
    """
    notes = _write_dicom(staging, series, outputs) if series.sources else ()
    write_checked(staging.path(MONTAGE), series.picture_png)
    labels, uncertainty = series.straight.label_map, stored_uncertainty(series.straight.uncertainty)
    if "nifti" in outputs.extras or not series.sources:
        write_nifti(staging.path(LABELS_NIFTI), labels, series.nifti_grid)
        write_nifti(staging.path(UNCERTAINTY_NIFTI), uncertainty, series.nifti_grid)
    if "nrrd" in outputs.extras:
        write_nrrd(staging.path(LABELS_NRRD), labels, series.grid)
        write_nrrd(staging.path(UNCERTAINTY_NRRD), uncertainty, series.grid)
    return notes


def _write_dicom(staging: Staging, series: SeriesOutputs, outputs: OutputOptions) -> tuple[str, ...]:
    # Loading highdicom takes most of a second, which an input that is refused should not cost.
    from ucseg_runtime.dicom.pmap_writer import write_pmap
    from ucseg_runtime.dicom.preview_writer import write_preview
    from ucseg_runtime.dicom.rtstruct_writer import write_rtstruct
    from ucseg_runtime.dicom.seg_writer import write_seg
    from ucseg_runtime.dicom.sr_writer import write_sr
    from ucseg_runtime.dicom.uncertainty_seg_writer import write_uncertainty_seg

    on_slices, sources, identity, decision = series.on_slices, series.sources, series.identity, series.decision
    seg = write_seg(staging.path(SEGMENTATION), on_slices, sources, identity, outputs.encoding, decision)
    target = staging.path(UNCERTAINTY)
    if outputs.uncertainty == "pm":
        uncertainty = write_pmap(target, on_slices, sources, identity)
    else:
        uncertainty = write_uncertainty_seg(target, on_slices, sources, identity, outputs.encoding)
    write_sr(staging.path(REPORT), on_slices, series.measurements, sources, identity, seg, uncertainty, decision)
    if "rtstruct" in outputs.extras:
        write_rtstruct(staging.path(STRUCTURES), on_slices, sources, identity)
    if "preview" in outputs.extras:
        write_preview(staging.path(PREVIEW), _rgb(series.picture_png), on_slices.geometry, sources, identity)
    return frame_limit_note(outputs.viewer, int(seg.NumberOfFrames))


def _rgb(picture_png: bytes) -> UInt8Array:
    picture = cv2.imdecode(np.frombuffer(picture_png, dtype=np.uint8), cv2.IMREAD_COLOR)
    return np.asarray(cv2.cvtColor(picture, cv2.COLOR_BGR2RGB), dtype=np.uint8)
