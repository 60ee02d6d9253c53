"""Made-up CT series: DICOM files whose every voxel, position and identifier is known.

The content is one asymmetric patient whose organs are placed by anatomical direction (the liver is on the patient's
right, the spine is behind), so series of any orientation show the same anatomy. Everything is deterministic: the same
phantom writes the same bytes. Names, identifiers and file names hold canaries (`PHI_CANARIES`) that must never turn up
in a message, a log or a measurement.
"""

from __future__ import annotations

import itertools
import uuid
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import imagecodecs
import numpy as np
import numpy.typing as npt
import pydicom
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, JPEGLossless, JPEGLosslessSV1

from ucseg_runtime.geometry import VolumeGeometry

PATIENT_NAME = "Canaryname^Phantom"
PATIENT_ID = "CANARY-PID-4711"
BIRTH_DATE = "19510203"
ACCESSION_NUMBER = "CANARYACC88"
REFERRING_PHYSICIAN = "Canarydoc^Phantom"
STUDY_DESCRIPTION = "canary study text"
FILE_PREFIX = "canaryfile"
PHI_CANARIES = ("canary", BIRTH_DATE)
"""None of these may be part of a message, in any case of letters; every canary field above holds one."""

_PREDICTORS = {JPEGLossless: 6, JPEGLosslessSV1: 1}
"""Lossless JPEG by selection value; pydicom has no encoder for it."""

AIR_HU = -1000
BODY_HU = 30

AXIAL = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)
OBLIQUE = (0.9698463103929541, 0.17101007166283436, 0.17364817766693033, -0.17364817766693033, 0.984807753012208, 0.0)
"""Turned by 10 degrees about two axes; unit length and perpendicular to double precision."""


@dataclass(frozen=True)
class Organ:
    """An ellipsoid of the phantom patient.

    Attributes:
        label: Value in `CtPhantom.labels`.
        name: Lower case English.
        hu: Its CT number.
        centre: Along LPS, in units of half the extent of the volume, each in [-1, 1]; (0, 0, 0) is the middle.
        radii: Along LPS, in the same units.
    """

    label: int
    name: str
    hu: int
    centre: tuple[float, float, float]
    radii: tuple[float, float, float]


ORGANS = (
    Organ(1, "liver", 110, (-0.35, -0.10, 0.00), (0.30, 0.32, 0.60)),
    Organ(2, "spleen", 170, (0.45, 0.15, 0.25), (0.18, 0.22, 0.40)),
    Organ(3, "spine", 600, (0.00, 0.50, 0.00), (0.12, 0.14, 2.00)),
    Organ(4, "lung", -820, (0.20, -0.25, 0.80), (0.25, 0.25, 0.35)),
)
"""The lung fills the upper left, so no flip or turn of the patient looks like the patient."""


def derived_uid(*parts: object) -> str:
    """A valid UID that depends on nothing but `parts`."""
    return f"2.25.{uuid.uuid5(uuid.NAMESPACE_OID, '/'.join(map(str, parts))).int}"


@dataclass(frozen=True)
class CtPhantom:
    """What a series looks like; arrays and datasets follow from it.

    Attributes:
        shape: Voxels along (z, y, x) = (slice, row, column).
        spacing_mm: Along (z, y, x).
        orientation: Direction cosines of a row, then of a column, (0020,0037).
        origin_mm: LPS centre of voxel (0, 0, 0), where slices ascend along row × column.
        flip: Whether the scanner numbered the slices against row × column. Arrays stay as they are.
        transfer_syntax: UID; the pixel data are stored in it without loss.
        rescale: Slope and intercept.
        signed: Pixel representation.
        series_number: Distinguishes series of one patient, also in their UIDs.
        study: Distinguishes studies, in their UIDs.
        modality: (0008,0060).
    """

    shape: tuple[int, int, int] = (10, 40, 48)
    spacing_mm: tuple[float, float, float] = (2.5, 1.25, 1.0)
    orientation: tuple[float, float, float, float, float, float] = AXIAL
    origin_mm: tuple[float, float, float] = (-23.5, -110.0, -340.0)
    flip: bool = False
    transfer_syntax: str = ExplicitVRLittleEndian
    rescale: tuple[float, float] = (1.0, -1024.0)
    signed: bool = False
    series_number: int = 1
    study: str = "A"
    modality: str = "CT"

    @property
    def study_uid(self) -> str:
        """(0020,000D)."""
        return derived_uid("study", self.study)

    @property
    def series_uid(self) -> str:
        """(0020,000E)."""
        return derived_uid("series", self.study, self.series_number)

    @property
    def frame_of_reference_uid(self) -> str:
        """(0020,0052)."""
        return derived_uid("frame of reference", self.study)

    def sop_uid(self, index: int) -> str:
        """(0008,0018) of the slice with this z index."""
        return derived_uid("instance", self.study, self.series_number, index)

    @property
    def geometry(self) -> VolumeGeometry:
        """Grid of the arrays: index (z, y, x) to LPS mm."""
        row, column = np.reshape(self.orientation, (2, 3))
        affine = np.eye(4)
        affine[:3, :3] = np.stack([np.cross(row, column), column, row], axis=1) * self.spacing_mm
        affine[:3, 3] = self.origin_mm
        return VolumeGeometry(affine, self.shape)

    @property
    def labels(self) -> npt.NDArray[np.uint8]:
        """Which organ each voxel belongs to, shape (z, y, x); 0 elsewhere."""
        labels = np.zeros(self.shape, dtype=np.uint8)
        place = self._normalised_lps()
        for organ in ORGANS:
            labels[np.linalg.norm((place - organ.centre) / organ.radii, axis=-1) < 1.0] = organ.label
        return labels

    @property
    def markers(self) -> dict[tuple[int, int, int], int]:
        """Three single voxels (z, y, x) and their HU, which nothing else in the volume reaches."""
        z, y, x = self.shape
        return {
            (z // 4, y // 4, x // 3): 1500,
            (z // 2, (5 * y) // 8, x // 4): 1800,
            ((3 * z) // 4, y // 3, (3 * x) // 4): 2100,
        }

    @property
    def hu(self) -> npt.NDArray[np.int16]:
        """CT numbers, shape (z, y, x): body in air, organs, a texture of 0 … 6 HU, markers."""
        hu = np.full(self.shape, AIR_HU, dtype=np.int16)
        hu[np.linalg.norm(self._normalised_lps()[..., :2] / (0.90, 0.75), axis=-1) < 1.0] = BODY_HU
        labels = self.labels
        for organ in ORGANS:
            hu[labels == organ.label] = organ.hu
        z, y, x = np.indices(self.shape)
        hu += ((5 * z + 3 * y + 2 * x) % 7).astype(np.int16)
        for index, value in self.markers.items():
            hu[index] = value
        return hu

    def _normalised_lps(self) -> npt.NDArray[np.float64]:
        """LPS position of every voxel, shape (z, y, x, 3), in units of half the extent around the middle."""
        axes = self.geometry.affine[:3, :3]
        half_extent = np.abs(axes) @ (np.asarray(self.shape) / 2.0)
        offset = np.stack(np.indices(self.shape), axis=-1) - (np.asarray(self.shape) - 1) / 2.0
        place: npt.NDArray[np.float64] = offset @ axes.T / half_extent
        return place

    def datasets(self) -> Iterator[FileDataset]:
        """One dataset per slice by ascending z index, ready to be written."""
        hu = self.hu
        for index in range(self.shape[0]):
            yield _slice_dataset(self, index, hu[index])


Edit = Callable[[int, FileDataset], None]


def write_ct_series(
    folder: Path,
    phantom: CtPhantom | None = None,
    *,
    edit: Edit | None = None,
    omit: Collection[int] = (),
    prefix: str = FILE_PREFIX,
) -> list[Path]:
    """Write a series and return its files by ascending z index.

    Args:
        folder: Made when missing.
        phantom: What to write; the default phantom when not given.
        edit: Called with z index and dataset before each file is written.
        omit: z indices that are not written.
        prefix: Start of the file names.
    """
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for index, dataset in enumerate((phantom or CtPhantom()).datasets()):
        if index in omit:
            continue
        if edit is not None:
            edit(index, dataset)
        paths.append(folder / f"{prefix}_{index:04d}.dcm")
        dataset.save_as(paths[-1], enforce_file_format=True)
    return paths


def edit_file(path: Path, change: Callable[[FileDataset], None]) -> None:
    """Read a file, change its dataset, write it back."""
    dataset = pydicom.dcmread(path)
    change(dataset)
    dataset.save_as(path, enforce_file_format=True)


def all_orientations() -> list[CtPhantom]:
    """The 48 ways in which a scanner can lay rows, columns and slices along the axes of the patient."""
    units = [sign * np.eye(3)[axis] for axis in range(3) for sign in (1.0, -1.0)]
    return [
        replace(CtPhantom(shape=(8, 12, 10)), orientation=tuple(np.concatenate([row, column]).tolist()), flip=flip)
        for row, column in itertools.product(units, repeat=2)
        if not np.dot(row, column)
        for flip in (False, True)
    ]


def _slice_dataset(phantom: CtPhantom, index: int, hu: npt.NDArray[np.int16]) -> FileDataset:
    dataset = FileDataset(None, {}, file_meta=_file_meta(phantom, index), preamble=b"\0" * 128)
    _add_patient_and_study(dataset, phantom)
    _add_series_and_equipment(dataset, phantom)
    _add_position(dataset, phantom, index)
    _add_pixels(dataset, phantom, hu)
    return dataset


def _file_meta(phantom: CtPhantom, index: int) -> FileMetaDataset:
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = CTImageStorage
    meta.MediaStorageSOPInstanceUID = phantom.sop_uid(index)
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    return meta


def _add_patient_and_study(dataset: FileDataset, phantom: CtPhantom) -> None:
    dataset.PatientName = PATIENT_NAME
    dataset.PatientID = PATIENT_ID
    dataset.PatientBirthDate = BIRTH_DATE
    dataset.PatientSex = "O"
    dataset.PatientAge = "070Y"
    dataset.StudyInstanceUID = phantom.study_uid
    dataset.StudyID = "1"
    dataset.StudyDate = "20200102"
    dataset.StudyTime = "101500"
    dataset.StudyDescription = STUDY_DESCRIPTION
    dataset.AccessionNumber = ACCESSION_NUMBER
    dataset.ReferringPhysicianName = REFERRING_PHYSICIAN


def _add_series_and_equipment(dataset: FileDataset, phantom: CtPhantom) -> None:
    dataset.Modality = phantom.modality
    dataset.SeriesInstanceUID = phantom.series_uid
    dataset.SeriesNumber = phantom.series_number
    dataset.SeriesDate = "20200102"
    dataset.SeriesTime = "101600"
    dataset.BodyPartExamined = "ABDOMEN"
    dataset.PatientPosition = "HFS"
    dataset.FrameOfReferenceUID = phantom.frame_of_reference_uid
    dataset.PositionReferenceIndicator = None
    dataset.Manufacturer = "ucseg tests"
    dataset.ManufacturerModelName = "phantom"
    dataset.SoftwareVersions = "1"
    dataset.DeviceSerialNumber = "1"
    dataset.KVP = 120
    dataset.AcquisitionNumber = 1
    dataset.SliceThickness = phantom.spacing_mm[0]


def _add_position(dataset: FileDataset, phantom: CtPhantom, index: int) -> None:
    dataset.SOPClassUID = CTImageStorage
    dataset.SOPInstanceUID = phantom.sop_uid(index)
    dataset.InstanceNumber = phantom.shape[0] - index if phantom.flip else index + 1
    dataset.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    dataset.ContentDate = "20200102"
    dataset.ContentTime = "101700"
    dataset.AcquisitionDate = "20200102"
    dataset.AcquisitionTime = "101630"
    dataset.ImageOrientationPatient = [f"{cosine:.10g}" for cosine in phantom.orientation]
    position = phantom.geometry.lps_from_index((index, 0, 0))
    dataset.ImagePositionPatient = [f"{coordinate:.10g}" for coordinate in position]
    dataset.PixelSpacing = [f"{spacing:.10g}" for spacing in phantom.spacing_mm[1:]]


def _add_pixels(dataset: FileDataset, phantom: CtPhantom, hu: npt.NDArray[np.int16]) -> None:
    slope, intercept = phantom.rescale
    stored = np.rint((hu - intercept) / slope).astype(np.int16 if phantom.signed else np.uint16)
    dataset.RescaleSlope, dataset.RescaleIntercept, dataset.RescaleType = f"{slope:g}", f"{intercept:g}", "HU"
    dataset.WindowCenter, dataset.WindowWidth = 40, 400
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.Rows, dataset.Columns = stored.shape
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 16, 16, 15
    dataset.PixelRepresentation = int(phantom.signed)
    dataset.PixelData = stored.tobytes()
    dataset["PixelData"].VR = "OW"
    recode(dataset, phantom.transfer_syntax)


def recode(dataset: FileDataset, transfer_syntax: str) -> None:
    """Store the native pixel data of `dataset` in another transfer syntax, without loss."""
    if transfer_syntax == ExplicitVRLittleEndian:
        return
    if pydicom.uid.UID(transfer_syntax).is_compressed is False:
        dataset.file_meta.TransferSyntaxUID = transfer_syntax
    elif transfer_syntax in _PREDICTORS:
        stored = np.frombuffer(dataset.PixelData, dtype=np.uint16).reshape(dataset.Rows, dataset.Columns)
        predictor = _PREDICTORS[transfer_syntax]
        codestream = imagecodecs.jpeg8_encode(stored, lossless=True, bitspersample=16, predictor=predictor)
        dataset.PixelData = encapsulate([codestream])
        dataset["PixelData"].VR = "OB"
        dataset.file_meta.TransferSyntaxUID = transfer_syntax
    else:
        dataset.compress(transfer_syntax, generate_instance_uid=False)
