"""Made-up pictures and clips, and models of planes that find what is in them.

Every frame shows one object without symmetry, which moves from frame to frame. The object is red on a background of
green and blue, so that exchanged channels find everything but the object.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import cv2
import imagecodecs
import numpy as np
import numpy.typing as npt
from pydicom import uid
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.encaps import encapsulate, generate_frames

from tests.model_phantom import ModelPhantom
from tests.phantoms import BIRTH_DATE, PATIENT_ID, PATIENT_NAME, derived_uid

Bytes = npt.NDArray[np.uint8]

BACKGROUND_RGB = (40, 190, 150)
OBJECT_RGB = (230, 50, 60)
BACKGROUND_GREY, OBJECT_GREY = 50, 220
PLANE_SHAPE = (40, 64)
"""Of the models: neither square nor of the proportions of a frame."""

CLASSES = {
    ("US", False): uid.UltrasoundImageStorage,
    ("US", True): uid.UltrasoundMultiFrameImageStorage,
    ("ES", False): uid.VLEndoscopicImageStorage,
    ("ES", True): uid.VideoEndoscopicImageStorage,
    ("XC", False): uid.VLPhotographicImageStorage,
    ("OT", False): uid.SecondaryCaptureImageStorage,
    ("OT", True): uid.MultiFrameTrueColorSecondaryCaptureImageStorage,
}


def colour_model(modality: str = "ES", **changes: object) -> ModelPhantom:
    """Finds what is red; takes the channels as blue, green, red."""
    return _plane_model(modality, (0.0, 0.0, 1.0), changes)


def grey_model(modality: str = "US", **changes: object) -> ModelPhantom:
    """Finds what is bright."""
    return _plane_model(modality, (1.0,), changes)


def _plane_model(modality: str, weights: tuple[float, ...], changes: dict[str, object]) -> ModelPhantom:
    preprocessing = {
        "plane_shape": PLANE_SHAPE,
        "orientation": "acquired",
        "intensity": {"kind": "divide_by_255", "channel_order": "bgr"},
        "padding_value": 0.0,
    }
    fields = {"modality": modality, "dim": 2, "channels": len(weights), "preprocessing": preprocessing}
    return ModelPhantom(
        centres=(0.0, 1.0),
        activation="sigmoid",
        tile_shape=(1, *PLANE_SHAPE),
        overlap=0.0,
        weighting="uniform",
        channel_weights=weights,
        changes={**fields, **changes},
    )


@dataclass(frozen=True)
class ClipPhantom:
    """What a file holds.

    Attributes:
        frames: Number of frames.
        rows: Of a frame.
        columns: Of a frame.
        photometric: Photometric interpretation as the header says it.
        transfer_syntax: UID.
        by_plane: Whether the samples of one colour lie together.
        modality: (0008,0060).
        instance: (0020,0013), also in the UID.
        grey: Whether the image is grey.
    """

    frames: int = 5
    rows: int = 50
    columns: int = 70
    photometric: str = "RGB"
    transfer_syntax: str = uid.ExplicitVRLittleEndian
    by_plane: bool = False
    modality: str = "ES"
    instance: int = 1

    @property
    def grey(self) -> bool:
        """Whether the file holds grey pixels."""
        return self.photometric.startswith("MONOCHROME")

    @property
    def sop_uid(self) -> str:
        """(0008,0018)."""
        return derived_uid("clip", self.modality, self.photometric, self.transfer_syntax, self.frames, self.instance)

    def mask(self, frame: int) -> npt.NDArray[np.bool_]:
        """Where the object of a frame is, counted over all files of a series: shape (rows, columns)."""
        mask = np.zeros((self.rows, self.columns), dtype=bool)
        top, left = 6 + 2 * (frame % 8), 8 + 3 * (frame % 8)
        mask[top : top + 20, left : left + 8] = True
        mask[top + 12 : top + 20, left : left + 24] = True
        return mask

    def rgb(self, frame: int) -> Bytes:
        """Colours of a frame, shape (rows, columns, 3)."""
        mask = self.mask(frame)[..., None]
        return np.where(mask, OBJECT_RGB, BACKGROUND_RGB).astype(np.uint8)

    def grey_values(self, frame: int) -> Bytes:
        """Brightness of a frame, shape (rows, columns)."""
        return np.where(self.mask(frame), OBJECT_GREY, BACKGROUND_GREY).astype(np.uint8)

    def write(self, path: Path, first: int = 0, edit: Callable[[FileDataset], None] | None = None) -> Path:
        """Write the file.

        Args:
            path: Its folder is made.
            first: Which frame of the series the first one is.
            edit: May change the dataset before.
        """
        path.parent.mkdir(parents=True, exist_ok=True)
        dataset = self.dataset(first)
        if edit is not None:
            edit(dataset)
        dataset.save_as(path, enforce_file_format=True)
        return path

    def dataset(self, first: int = 0) -> FileDataset:
        """The file, ready to be written."""
        dataset = FileDataset(None, {}, file_meta=FileMetaDataset(), preamble=b"\0" * 128)
        dataset.SOPClassUID = CLASSES[self.modality, self.frames > 1]
        dataset.SOPInstanceUID = self.sop_uid
        dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID
        dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
        dataset.file_meta.TransferSyntaxUID = uid.ExplicitVRLittleEndian
        dataset.PatientName, dataset.PatientID, dataset.PatientBirthDate = PATIENT_NAME, PATIENT_ID, BIRTH_DATE
        dataset.PatientSex = "O"
        dataset.StudyInstanceUID = derived_uid("clip study")
        dataset.SeriesInstanceUID = derived_uid("clip series", self.modality)
        dataset.StudyID, dataset.AccessionNumber, dataset.ReferringPhysicianName = "1", "", ""
        dataset.StudyDate, dataset.StudyTime = "20200102", "101500"
        dataset.Modality, dataset.SeriesNumber, dataset.InstanceNumber = self.modality, 1, self.instance
        dataset.Manufacturer = "ucseg tests"
        dataset.ImageType = ["ORIGINAL", "PRIMARY"]
        if self.frames > 1:
            dataset.NumberOfFrames = self.frames
            dataset.FrameTime = "40"
        self._add_pixels(dataset, range(first, first + self.frames))
        return dataset

    def _add_pixels(self, dataset: FileDataset, frames: range) -> None:
        dataset.Rows, dataset.Columns = self.rows, self.columns
        dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 8, 8, 7, 0
        dataset.PhotometricInterpretation = self.photometric
        dataset.SamplesPerPixel = 1 if self.grey or self.photometric == "PALETTE COLOR" else 3
        if dataset.SamplesPerPixel == 3:
            dataset.PlanarConfiguration = int(self.by_plane)
        if self.photometric == "PALETTE COLOR":
            _add_palette(dataset)
        compressed = self.transfer_syntax != uid.ExplicitVRLittleEndian
        if compressed:
            dataset.file_meta.TransferSyntaxUID = self.transfer_syntax
            dataset.PixelData = encapsulate([self._codestream(frame) for frame in frames])
        else:
            pixels = b"".join(self._native(frame) for frame in frames)
            dataset.PixelData = pixels + b"\0" * (len(pixels) % 2)
        dataset["PixelData"].VR = "OB"

    def _native(self, frame: int) -> bytes:
        if self.photometric == "MONOCHROME1":
            return (255 - self.grey_values(frame)).tobytes()
        if self.grey:
            return self.grey_values(frame).tobytes()
        if self.photometric == "PALETTE COLOR":
            return np.where(self.mask(frame), 7, 3).astype(np.uint8).tobytes()
        samples = self.rgb(frame)
        if self.photometric.startswith("YBR"):
            samples = cv2.cvtColor(samples, cv2.COLOR_RGB2YCrCb)[..., [0, 2, 1]]
        if self.photometric == "YBR_FULL_422":
            pairs = samples.reshape(self.rows, self.columns // 2, 2, 3)
            blue, red = (pairs[..., 1:].mean(axis=2).round().astype(np.uint8)[..., index] for index in (0, 1))
            halved = [pairs[..., 0, 0], pairs[..., 1, 0], blue, red]
            return np.stack(halved, axis=-1).tobytes()
        return (np.moveaxis(samples, -1, 0) if self.by_plane else samples).tobytes()

    def _codestream(self, frame: int) -> bytes:
        pixels = self.grey_values(frame) if self.grey else self.rgb(frame)
        if self.transfer_syntax == uid.JPEGBaseline8Bit:
            if self.photometric == "RGB":  # without a transform, and without any marker that says so
                return _without_jfif(
                    imagecodecs.jpeg8_encode(pixels, level=95, colorspace="YCBCR", outcolorspace="YCBCR")
                )
            _, data = cv2.imencode(".jpg", pixels[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 95])
            return data.tobytes()
        if self.transfer_syntax in (uid.JPEG2000Lossless, uid.JPEG2000):
            reversible = self.transfer_syntax == uid.JPEG2000Lossless
            level = 0 if reversible else 60
            encoded = imagecodecs.jpeg2k_encode(
                pixels, level=level, codecformat="j2k", reversible=reversible, mct=self.photometric.startswith("YBR")
            )
            return bytes(encoded)
        single = Dataset()
        single.file_meta = FileMetaDataset()
        single.file_meta.TransferSyntaxUID = uid.ExplicitVRLittleEndian
        single.Rows, single.Columns = self.rows, self.columns
        single.BitsAllocated, single.BitsStored, single.HighBit, single.PixelRepresentation = 8, 8, 7, 0
        single.SamplesPerPixel = 1 if self.grey else 3
        single.PhotometricInterpretation = self.photometric
        if single.SamplesPerPixel == 3:
            single.PlanarConfiguration = 0
        single.compress(uid.UID(self.transfer_syntax), pixels, generate_instance_uid=False)
        return bytes(next(generate_frames(single.PixelData, number_of_frames=1)))


def _without_jfif(codestream: bytes) -> bytes:
    """Without the marker that says that the colours are YCbCr."""
    length = int.from_bytes(codestream[4:6], "big")
    assert codestream[2:4] == b"\xff\xe0", "the first segment must be the marker"
    return bytes(codestream[:2] + codestream[4 + length :])


def _add_palette(dataset: Dataset) -> None:
    """256 entries of 16 bits: 3 is the background, 7 the object, all others are white."""
    for colour, name in enumerate(("Red", "Green", "Blue")):
        entries = np.full(256, 0xFFFF, dtype=np.uint16)
        entries[3], entries[7] = BACKGROUND_RGB[colour] << 8, OBJECT_RGB[colour] << 8
        setattr(dataset, f"{name}PaletteColorLookupTableDescriptor", [256, 0, 16])
        setattr(dataset, f"{name}PaletteColorLookupTableData", entries.tobytes())
        dataset[f"{name}PaletteColorLookupTableDescriptor"].VR = "US"
