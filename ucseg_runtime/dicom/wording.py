"""What people and scanners wrote about a series, from the header of one of its files."""

from __future__ import annotations

import math

from pydicom.dataset import Dataset

from ucseg_runtime.dicom.elements import code_of, numbers_of, text_of
from ucseg_runtime.dicom.instances import Wording


def wording_of(dataset: Dataset) -> Wording:
    """The wording of a file; of an enhanced multi-frame image what stands outside of its functional groups."""
    thickness = numbers_of(dataset, "SliceThickness", 1)
    texts = (text_of(dataset, keyword) for keyword in ("SeriesDescription", "ProtocolName"))
    return Wording(
        body_part=code_of(dataset, "BodyPartExamined"),
        descriptions=tuple(text for text in texts if text),
        thickness_mm=math.nan if thickness is None else thickness[0],
        has_contrast=bool(text_of(dataset, "ContrastBolusAgent")),
    )
