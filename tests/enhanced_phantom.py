"""The CT phantom as one enhanced multi-frame file, with one or more phases or stacks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pydicom
from pydicom.dataset import Dataset, FileDataset
from pydicom.encaps import encapsulate
from pydicom.tag import Tag
from pydicom.uid import UID, EnhancedCTImageStorage, ExplicitVRLittleEndian

from tests.phantoms import CtPhantom, derived_uid

_OF_THE_FRAME = (
    "ImagePositionPatient",
    "ImageOrientationPatient",
    "PixelSpacing",
    "SliceThickness",
    "RescaleSlope",
    "RescaleIntercept",
    "RescaleType",
    "WindowCenter",
    "WindowWidth",
    "AcquisitionNumber",
)


@dataclass(frozen=True)
class EnhancedPhantom:
    """What the file holds.

    Attributes:
        phases: One phantom for each phase; all of one grid.
        stacks: Number of a stack for each phase; phases of one stack differ in their temporal index.
        order: Of the frames of a phase, as z indices; ascending when empty.
        transfer_syntax: Of the pixels.
    """

    phases: Sequence[CtPhantom] = (CtPhantom(),)
    stacks: Sequence[int] = (1,)
    order: Sequence[int] = ()
    transfer_syntax: str = ExplicitVRLittleEndian

    def write(self, path: Path, edit: Callable[[FileDataset], None] | None = None) -> Path:
        """Write the file; `edit` may change the dataset before."""
        path.parent.mkdir(parents=True, exist_ok=True)
        dataset = self.dataset()
        if edit is not None:
            edit(dataset)
        dataset.save_as(path, enforce_file_format=True)
        return path

    def dataset(self) -> FileDataset:
        """The file, ready to be written."""
        whole = next(iter(self.phases[0].datasets()))
        whole.SOPClassUID = whole.file_meta.MediaStorageSOPClassUID = EnhancedCTImageStorage
        uid = derived_uid("enhanced", self.phases[0].series_uid, len(self.phases), self.transfer_syntax)
        whole.SOPInstanceUID = whole.file_meta.MediaStorageSOPInstanceUID = uid
        whole.InstanceNumber = 1
        whole.ImageType = ["ORIGINAL", "PRIMARY", "VOLUME", "NONE"]
        for keyword in _OF_THE_FRAME:
            if keyword in whole:
                delattr(whole, keyword)
        frames = [
            (phase, stack, z, slice_)
            for phase, (phantom, stack) in enumerate(zip(self.phases, self.stacks, strict=True), start=1)
            for z, slice_ in self._slices(phantom)
        ]
        whole.DimensionOrganizationSequence = [_item(DimensionOrganizationUID=derived_uid("dimensions"))]
        whole.DimensionIndexSequence = [
            _item(DimensionIndexPointer=Tag(keyword), FunctionalGroupPointer=Tag("FrameContentSequence"))
            for keyword in ("StackID", "InStackPositionNumber", "TemporalPositionIndex")
        ]
        whole.SharedFunctionalGroupsSequence = [_shared(frames[0][3])]
        whole.PerFrameFunctionalGroupsSequence = [
            _frame_group(slice_, phase, stack, z + 1) for phase, stack, z, slice_ in frames
        ]
        whole.NumberOfFrames = len(frames)
        self._add_pixels(whole, [slice_.PixelData for *_, slice_ in frames])
        return whole

    def _slices(self, phantom: CtPhantom) -> list[tuple[int, FileDataset]]:
        slices = list(enumerate(replace(phantom, transfer_syntax=ExplicitVRLittleEndian).datasets()))
        return [slices[z] for z in self.order] if self.order else slices

    def _add_pixels(self, whole: FileDataset, frames: Sequence[bytes]) -> None:
        if self.transfer_syntax == ExplicitVRLittleEndian:
            whole.PixelData = b"".join(frames)
            whole["PixelData"].VR = "OW"
            return
        encoded = []
        for frame in frames:
            single = Dataset()
            for keyword in ("Rows", "Columns", "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation"):
                setattr(single, keyword, whole[keyword].value)
            single.SamplesPerPixel, single.PhotometricInterpretation = 1, "MONOCHROME2"
            array = np.frombuffer(frame, dtype=np.uint16).reshape(whole.Rows, whole.Columns)
            single.file_meta = pydicom.dataset.FileMetaDataset()
            single.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
            single.compress(UID(self.transfer_syntax), array, encoding_plugin="", generate_instance_uid=False)
            encoded.append(next(pydicom.encaps.generate_frames(single.PixelData, number_of_frames=1)))
        whole.PixelData = encapsulate(encoded)
        whole["PixelData"].VR = "OB"
        whole.file_meta.TransferSyntaxUID = self.transfer_syntax


def _item(**values: object) -> Dataset:
    item = Dataset()
    for keyword, value in values.items():
        setattr(item, keyword, value)
    return item


def _shared(slice_: Dataset) -> Dataset:
    return _item(
        PlaneOrientationSequence=[_item(ImageOrientationPatient=slice_.ImageOrientationPatient)],
        PixelMeasuresSequence=[_item(PixelSpacing=slice_.PixelSpacing, SliceThickness=slice_.SliceThickness)],
        CTImageFrameTypeSequence=[_item(FrameType=["ORIGINAL", "PRIMARY", "VOLUME", "NONE"])],
    )


def _frame_group(slice_: Dataset, phase: int, stack: int, number: int) -> Dataset:
    content = _item(
        StackID=str(stack),
        InStackPositionNumber=number,
        TemporalPositionIndex=phase,
        DimensionIndexValues=[stack, number, phase],
    )
    transform = _item(
        RescaleSlope=slice_.RescaleSlope, RescaleIntercept=slice_.RescaleIntercept, RescaleType=slice_.RescaleType
    )
    return _item(
        FrameContentSequence=[content],
        PlanePositionSequence=[_item(ImagePositionPatient=slice_.ImagePositionPatient)],
        PixelValueTransformationSequence=[transform],
    )
