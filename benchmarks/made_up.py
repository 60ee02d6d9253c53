"""A made-up chest CT of any number of slices, so that memory can be measured on more than a real study has."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian

SIDE = 512
SLICE_MM = 2.5
PIXEL_MM = 0.7
_RESCALE_INTERCEPT = -1024
_UID_ROOT = "2.25.313233343536"

# Ellipses: HU, centre and radii along x and y in mm. Every slice has the same ones, shifted a little.
_ORGANS = (
    (30, (0.0, 0.0), (160.0, 110.0)),
    (-850, (-70.0, -10.0), (55.0, 80.0)),
    (-850, (70.0, -10.0), (55.0, 80.0)),
    (45, (15.0, -20.0), (40.0, 45.0)),
    (500, (0.0, 75.0), (18.0, 18.0)),
)


def write_series(folder: Path, slices: int) -> None:
    """Write one axial series, uncompressed, 512 x 512 pixels a slice; the same number always gives the same bytes."""
    folder.mkdir(parents=True)
    noise = np.random.default_rng(0).normal(0.0, 12.0, (SIDE, SIDE))
    for index in range(slices):
        slice_image(index, _hounsfield_units(index, np.roll(noise, 17 * index))).save_as(
            folder / f"{index:04d}.dcm", enforce_file_format=True
        )


def _hounsfield_units(index: int, noise: npt.NDArray[np.float64]) -> npt.NDArray[np.int16]:
    along = (np.arange(SIDE) - (SIDE - 1) / 2) * PIXEL_MM
    shift_mm = 10.0 * np.sin(index / 20.0)
    image = np.full((SIDE, SIDE), -1000.0)
    for hu, (x, y), (radius_x, radius_y) in _ORGANS:
        inside = ((along[None, :] - x - shift_mm) / radius_x) ** 2 + ((along[:, None] - y) / radius_y) ** 2 < 1.0
        image[inside] = hu
    return np.clip(np.rint(image + noise), -1024, 3000).astype(np.int16)


def slice_image(index: int, voxels: npt.NDArray[np.int16]) -> FileDataset:
    """One axial slice, 12 of 16 bits, uncompressed.

    Args:
        index: Place in the series.
        voxels: CT numbers, int16, shape (rows, columns), from -1024 to 3071.
    """
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = CTImageStorage, f"{_UID_ROOT}.1.{index + 1}"
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    image = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    image.SOPClassUID, image.SOPInstanceUID = CTImageStorage, meta.MediaStorageSOPInstanceUID
    image.StudyInstanceUID, image.SeriesInstanceUID = f"{_UID_ROOT}.2", f"{_UID_ROOT}.3"
    image.FrameOfReferenceUID, image.PositionReferenceIndicator = f"{_UID_ROOT}.4", ""
    image.PatientName, image.PatientID, image.PatientBirthDate, image.PatientSex = "Made^Up", "MADE-UP", "", "O"
    image.StudyDate, image.StudyTime, image.StudyID, image.AccessionNumber = "20200101", "120000", "1", ""
    image.ReferringPhysicianName, image.Manufacturer, image.Modality = "", "Made up", "CT"
    image.SeriesNumber, image.AcquisitionNumber, image.InstanceNumber = 1, 1, index + 1
    image.ImageType, image.PatientPosition, image.KVP = ["ORIGINAL", "PRIMARY", "AXIAL"], "HFS", "120"
    image.BodyPartExamined = "CHEST"
    image.PixelSpacing, image.SliceThickness = [PIXEL_MM, PIXEL_MM], SLICE_MM
    corner = -PIXEL_MM * (SIDE - 1) / 2
    image.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    image.ImagePositionPatient = [corner, corner, SLICE_MM * index]
    image.SamplesPerPixel, image.PhotometricInterpretation = 1, "MONOCHROME2"
    image.Rows, image.Columns = voxels.shape
    image.BitsAllocated, image.BitsStored, image.HighBit, image.PixelRepresentation = 16, 12, 11, 0
    image.RescaleSlope, image.RescaleIntercept, image.RescaleType = 1, _RESCALE_INTERCEPT, "HU"
    image.PixelData = np.clip(voxels - np.int16(_RESCALE_INTERCEPT), 0, 4095).astype("<u2").tobytes()
    return image
