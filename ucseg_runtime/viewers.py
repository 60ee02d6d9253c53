"""What each viewer is given: encoding of the DICOM SEG, and what is known of its limits, with where that is known from.

Options that the caller gives go before this table.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

from ucseg_runtime.config import CompressionChoice, SegEncoding, SegType, ViewerName


@dataclass(frozen=True)
class ViewerProfile:
    """One line of the table.

    Attributes:
        encoding: What is written for this viewer.
        most_frames: Frames of a segmentation that it shows; 0: no limit is known.
        known_from: ``measured``: seen with the viewer or archive itself; ``reader``: seen with the library that it
            reads with; ``documentation``: as its makers and their issues say.
        evidence: What was seen or read.
    """

    encoding: SegEncoding
    most_frames: int
    known_from: Literal["measured", "reader", "documentation"]
    evidence: str


VIEWERS: Mapping[ViewerName, ViewerProfile] = MappingProxyType(
    {
        "any": ViewerProfile(
            SegEncoding(),
            most_frames=0,
            known_from="measured",
            evidence="The encoding that every reader and archive that was tried takes; highdicom's advice too.",
        ),
        "ohif": ViewerProfile(
            SegEncoding("binary", "none", "omit"),
            most_frames=0,
            known_from="measured",
            evidence=(
                "OHIF 3.12.10 and 3.13.2 with Orthanc 1.10.1: shapes and colours right. Label maps need the Background "
                "item last, else colours are shifted by one."
            ),
        ),
        "slicer": ViewerProfile(
            SegEncoding("binary", "none", "omit"),
            most_frames=0,
            known_from="reader",
            evidence=(
                "dcmqi, with which Slicer's QuantitativeReporting reads, finds every voxel; it refuses JPEG 2000 and "
                "JPEG-LS. Slicer itself was not run. Label maps: Slicer issue 8387 is open."
            ),
        ),
        "weasis": ViewerProfile(
            SegEncoding("binary", "none", "omit"),
            most_frames=400,
            known_from="documentation",
            evidence="Weasis 4.6 switches segmentations of more than 400 frames off (issue 680). Not run.",
        ),
        "legacy-pacs": ViewerProfile(
            SegEncoding("binary", "none", "keep"),
            most_frames=0,
            known_from="measured",
            evidence=(
                "Orthanc 1.10.1 stores it by C-STORE and STOW and refuses label maps as an unknown class. All frames, "
                "because some viewers misplace sparse segmentations (MONAI Deploy issue 401)."
            ),
        ),
    }
)


def seg_encoding(
    viewer: ViewerName, seg_type: SegType | None = None, compression: CompressionChoice | None = None
) -> SegEncoding:
    """The encoding for a viewer, unless the caller says otherwise.

    Args:
        viewer: Line of the table.
        seg_type: What the caller asks for; None: what the table says.
        compression: What the caller asks for; None: what the table says, or what is usual for another `seg_type`.

    Raises:
        ValueError: The encoding cannot have this compression.
    """
    default = VIEWERS[viewer].encoding
    chosen = seg_type or default.seg_type
    usual = default.compression if chosen == default.seg_type else "auto"
    return SegEncoding(chosen, compression or usual, default.empty_frames)


def frame_limit_note(viewer: ViewerName, frames: int) -> tuple[str, ...]:
    """What to tell the caller where a segmentation has more frames than its viewer shows; else nothing."""
    most = VIEWERS[viewer].most_frames
    if not most or frames <= most:
        return ()
    return (f"the segmentation has {frames} frames; {viewer} is known to show at most {most}",)
