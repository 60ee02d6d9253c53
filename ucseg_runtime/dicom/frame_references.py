"""From the stand-ins under which highdicom knows the frames of multi-frame files to the frames themselves."""

from __future__ import annotations

from collections.abc import Mapping

from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence

from ucseg_runtime.dicom.source_study import FrameReference

_WHOLE_INSTANCES = frozenset({"ReferencedInstanceSequence", "ReferencedSOPSequence"})
_LISTS = frozenset({"ReferencedSeriesSequence"})


def refer_to_frames(dataset: Dataset, references: Mapping[str, FrameReference]) -> None:
    """Replace every reference to a stand-in by one to its file and frame.

    Lists of the instances that an object refers to name each file once, without frames.

    Args:
        dataset: Changed in place, at all depths.
        references: By stand-in UID.

    Source: DICOM PS3.3 10.3 (SOP Instance Reference) and Table 10-3 (Image SOP Instance Reference).
    """
    if references:
        _replace(dataset, references, in_list=False)


def _replace(dataset: Dataset, references: Mapping[str, FrameReference], *, in_list: bool) -> None:
    reference = references.get(str(dataset.get("ReferencedSOPInstanceUID", "")))
    if reference is not None:
        dataset.ReferencedSOPClassUID = reference.sop_class_uid
        dataset.ReferencedSOPInstanceUID = reference.sop_instance_uid
        if not in_list:
            dataset.ReferencedFrameNumber = reference.number
    for element in list(dataset.elements()):  # raw ones stay raw: contours are long
        if not isinstance(element, DataElement) or element.VR != "SQ":
            continue
        lists = in_list or element.keyword in _LISTS
        for item in element.value:
            _replace(item, references, in_list=lists)
        if lists and element.keyword in _WHOLE_INSTANCES:
            named = {str(item.ReferencedSOPInstanceUID): item for item in element.value}
            element.value = Sequence(named.values())
