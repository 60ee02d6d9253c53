"""What is known of one file, and of the files that make up one series, before any pixel is read."""

from __future__ import annotations

import uuid
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

UNDEFINED_LENGTH = 0xFFFFFFFF

Point: TypeAlias = tuple[float, float, float]
Cosines: TypeAlias = tuple[float, float, float, float, float, float]


@dataclass(frozen=True)
class PixelFormat:
    """How the pixels of one file are stored; a number that the header lacks is 0.

    Attributes:
        rows: (0028,0010).
        columns: (0028,0011).
        frames: (0028,0008), 1 when absent.
        samples: (0028,0002), 3 for colour.
        photometric: (0028,0004).
        bits_allocated: (0028,0100).
        bits_stored: (0028,0101).
        high_bit: (0028,0102).
        signed: Whether (0028,0103) is 1.
        by_plane: Whether (0028,0006) is 1: the samples of one colour lie together, not those of one pixel.
    """

    rows: int
    columns: int
    frames: int
    samples: int
    photometric: str
    bits_allocated: int
    bits_stored: int
    high_bit: int
    signed: bool
    by_plane: bool = False

    @property
    def frame_bytes(self) -> int:
        """Bytes of one decoded frame."""
        return self.rows * self.columns * self.samples * self.bits_allocated // 8


@dataclass(frozen=True)
class Acquisition:
    """The attributes that tell repeated passes over the same anatomy apart; None where the header has no number.

    Attributes:
        acquisition_number: (0020,0012).
        temporal_position: (0020,0100).
        echo_number: (0018,0086), the first.
        dimensions: Of a frame: its indices but those of its place, (0020,9157); empty for other images.
    """

    acquisition_number: int | None
    temporal_position: int | None
    echo_number: int | None
    dimensions: tuple[int, ...] = ()


@dataclass(frozen=True)
class Placement:
    """Where a slice lies; None where the attribute is missing, incomplete or not finite.

    Attributes:
        position_mm: LPS centre of the first voxel, (0020,0032).
        orientation: Direction cosines of a row, then of a column, (0020,0037).
        pixel_spacing_mm: Distance of rows, then of columns, (0028,0030).
    """

    position_mm: Point | None
    orientation: Cosines | None
    pixel_spacing_mm: tuple[float, float] | None


@dataclass(frozen=True)
class Wording:
    """What people and scanners wrote about the series, for rules that choose one.

    Attributes:
        body_part: (0018,0015); empty where it is missing or free text.
        descriptions: (0008,103E) and (0018,1030), those that are filled in. They can hold patient data: never shown.
        thickness_mm: (0018,0050); NaN where it is missing.
        has_contrast: Whether (0018,0010) is filled in.
    """

    body_part: str
    descriptions: tuple[str, ...] = field(repr=False)
    thickness_mm: float
    has_contrast: bool


@dataclass(frozen=True)
class PixelLocation:
    """Where the value of Pixel Data (7FE0,0010) lies in the file.

    Attributes:
        offset: Bytes from the start of the file.
        length: Declared bytes, or `UNDEFINED_LENGTH` for encapsulated data.
    """

    offset: int
    length: int


@dataclass(frozen=True)
class Instance:
    """The header of one slice image: a file, or a frame of an enhanced multi-frame file.

    Attributes:
        path: Where it lies; never shown.
        ordinal: Place in the scan, from 1.
        total: Number of entries in the scan.
        file_size: Bytes.
        modified_ns: Time of the last change.
        dataset_offset: Start of the data set, after the file meta information, in bytes.
        transfer_syntax: (0002,0010).
        sop_class_uid: (0008,0016), or the one of the file meta information where that is empty.
        sop_instance_uid: (0008,0018), or the one of the file meta information, or one derived from the content.
        study_uid: (0020,000D); may be empty.
        series_uid: (0020,000E); may be empty.
        frame_of_reference_uid: (0020,0052); may be empty.
        patient_key: Digest of the attributes that identify the patient; equal for equal patients, else without
            meaning.
        modality: (0008,0060).
        series_number: (0020,0011).
        instance_number: (0020,0013); of a frame its number within the stack, (0020,9057).
        image_type: (0008,0008).
        acquisition: What tells repeated passes apart.
        placement: Where the slice lies.
        pixel_format: How the pixels are stored.
        pixels: Where the pixels lie; None when the file has none.
        rescale: Slope and intercept, (0028,1053) and (0028,1052); (1, 0) when absent, None when not finite numbers.
        wording: What rules about the choice of a series look at.
        rescale_type: (0028,1054); may be empty.
        series_instances: Number of files that the series has in the archive, (0020,1209), which some archives add.
        frame: Number of the frame in its file, from 1; 0 for a file that is one image.
        stack_id: Of a frame: (0020,9056).
    """

    path: Path = field(repr=False)
    ordinal: int
    total: int
    file_size: int
    modified_ns: int
    dataset_offset: int
    transfer_syntax: str
    sop_class_uid: str
    sop_instance_uid: str
    study_uid: str
    series_uid: str
    frame_of_reference_uid: str
    patient_key: str = field(repr=False)
    modality: str
    series_number: int | None
    instance_number: int | None
    image_type: tuple[str, ...]
    acquisition: Acquisition
    placement: Placement
    pixel_format: PixelFormat
    pixels: PixelLocation | None
    rescale: tuple[float, float] | None
    wording: Wording
    rescale_type: str = ""
    series_instances: int | None = None
    frame: int = 0
    stack_id: str = ""

    @property
    def where(self) -> str:
        """How messages name this file, or this frame of it."""
        if self.frame:
            return f"frame {self.frame} of file {self.ordinal} of {self.total}"
        number = "" if self.instance_number is None else f" (instance {self.instance_number})"
        return f"file {self.ordinal} of {self.total}{number}"

    @property
    def is_localizer(self) -> bool:
        """Whether Image Type says that this is a planning view."""
        return "LOCALIZER" in self.image_type


@dataclass(frozen=True)
class Series:
    """Files that belong together, cleaned of what provably does not belong to the volume.

    Attributes:
        study_uid: (0020,000D), or a stand-in derived from the content where the files have none.
        series_uid: (0020,000E), or such a stand-in.
        frame_of_reference_uid: (0020,0052), or such a stand-in.
        modality: (0008,0060).
        series_number: (0020,0011).
        rows: Of the first instance.
        columns: Of the first instance.
        instances: Ascending along the slice normal, row × column; by instance number where positions are missing.
        notes: What was put right or left out, one sentence each, free of patient data.
        allowed_gaps: Most missing slices in a row that may be bridged.
        volume: Place among the volumes of its series, from 1.
    """

    study_uid: str
    series_uid: str
    frame_of_reference_uid: str
    modality: str
    series_number: int | None
    rows: int
    columns: int
    instances: tuple[Instance, ...]
    notes: tuple[str, ...] = ()
    allowed_gaps: int = 0
    volume: int = 1

    @property
    def number_of_instances(self) -> int:
        """Slices of the series: files, or frames of files."""
        return len(self.instances)

    @property
    def name(self) -> str:
        """How messages name this series."""
        number = "without a number" if self.series_number is None else f"number {self.series_number}"
        count, what = self.number_of_instances, "frame" if self.instances[0].frame else "file"
        return f"series {number} ({self.modality or 'no modality'}, {count} {what}{'s' if count > 1 else ''})"


def stand_in_uid(role: str, *content: str) -> str:
    """A valid UID that depends only on its role and on `content`.

    Source: DICOM PS3.5 B.2, a UUID as a decimal number under the root 2.25; the UUID is of version 5, RFC 9562 5.5.
    """
    return f"2.25.{uuid.uuid5(uuid.NAMESPACE_OID, '/'.join(('ucseg stand-in', role, *content))).int}"
