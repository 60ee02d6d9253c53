"""The frames of an enhanced multi-frame image, each as a slice of its own.

Source: DICOM PS3.3 C.7.6.16 (Multi-frame Functional Groups) and C.7.6.17 (Multi-frame Dimension).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from pydicom.datadict import keyword_for_tag
from pydicom.dataset import Dataset

from ucseg_runtime.dicom.elements import code_of, integer_of, sequence_of, text_of, texts_of, values_of
from ucseg_runtime.dicom.instances import Acquisition, Instance
from ucseg_runtime.dicom.placement import placement_of, rescale_of

SHARED = "SharedFunctionalGroupsSequence"
PER_FRAME = "PerFrameFunctionalGroupsSequence"
DIMENSIONS = "DimensionIndexSequence"

_SPATIAL_DIMENSIONS = frozenset(
    {"StackID", "InStackPositionNumber", "ImagePositionPatient", "ImageOrientationPatient", "TablePosition"}
)


def frames_of(whole: Instance, header: Dataset) -> Iterator[Instance]:
    """One instance for each frame of a multi-frame image.

    Args:
        whole: The file as one instance.
        header: The file's functional groups and dimensions.

    Yields:
        In the order of the file. What a frame does not say for itself is that of all frames.
    """
    shared = next(iter(sequence_of(header, SHARED)), Dataset())
    pointers = [_pointer(item) for item in sequence_of(header, DIMENSIONS)]
    for number, group in enumerate(sequence_of(header, PER_FRAME), start=1):
        yield _frame(whole, number, (group, shared), pointers)


def frame_header(header: Dataset, frame: Instance) -> Dataset:
    """The header of one frame as if it were an image of its own.

    Args:
        header: Of the file, without functional groups.
        frame: The frame.

    Returns:
        The attributes of the file, the place of the frame, and its number as Referenced Frame Number (0008,1160).
    """
    placement = frame.placement
    own = Dataset()
    own.update(header)
    own.ImagePositionPatient = list(placement.position_mm or ())
    own.ImageOrientationPatient = list(placement.orientation or ())
    own.PixelSpacing = list(placement.pixel_spacing_mm or ())
    own.ReferencedFrameNumber = frame.frame
    return own


def _pointer(item: Dataset) -> str:
    pointers = values_of(item, "DimensionIndexPointer")
    return keyword_for_tag(pointers[0]) if pointers and isinstance(pointers[0], int) else ""


def _frame(whole: Instance, number: int, groups: Sequence[Dataset], pointers: Sequence[str]) -> Instance:
    content = _macro(groups, "FrameContentSequence")
    measures, transform = _macro(groups, "PixelMeasuresSequence"), _macro(groups, "PixelValueTransformationSequence")
    frame_type = _macro(groups, f"{whole.modality}ImageFrameTypeSequence")
    placed = Dataset()
    for macro in (_macro(groups, "PlanePositionSequence"), _macro(groups, "PlaneOrientationSequence"), measures):
        placed.update(macro)
    return replace(
        whole,
        frame=number,
        stack_id=text_of(content, "StackID"),
        instance_number=integer_of(content, "InStackPositionNumber") or number,
        image_type=tuple(part.strip().upper() for part in texts_of(frame_type, "FrameType")) or whole.image_type,
        acquisition=Acquisition(
            integer_of(content, "FrameAcquisitionNumber"),
            integer_of(content, "TemporalPositionIndex"),
            None,
            _other_dimensions(content, pointers),
        ),
        placement=placement_of(placed),
        rescale=rescale_of(transform),
        rescale_type=code_of(transform, "RescaleType"),
    )


def _macro(groups: Sequence[Dataset], keyword: str) -> Dataset:
    """The item of a functional group: of the frame, else of all frames; empty where there is none."""
    for group in groups:
        for item in sequence_of(group, keyword):
            return item
    return Dataset()


def _other_dimensions(content: Dataset, pointers: Sequence[str]) -> tuple[int, ...]:
    """The indices that tell frames of one place apart: phase, echo, b-value and the like."""
    indices = texts_of(content, "DimensionIndexValues")
    if len(indices) != len(pointers):
        return ()
    return tuple(
        int(index) for index, pointer in zip(indices, pointers, strict=True) if pointer not in _SPATIAL_DIMENSIONS
    )
