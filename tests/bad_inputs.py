"""Every class of bad input as a folder that can be made, with the error that it must give.

Each entry damages a `CtPhantom` in one way. `BAD_INPUTS` is meant for `pytest.mark.parametrize`, with `ids` from
`BadInput.name`.
"""

from __future__ import annotations

import os
import socket
import struct
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pydicom
from pydicom import uid
from pydicom.dataset import Dataset, FileDataset
from pydicom.encaps import encapsulate, generate_fragments

from tests import archives, nifti_images
from tests.phantoms import CtPhantom, derived_uid, edit_file, write_ct_series
from ucseg_runtime.errors import (
    GeometryError,
    InputError,
    NotDicomError,
    PixelDataError,
    SeriesSelectionError,
    SpacingError,
)


@dataclass(frozen=True)
class BadInput:
    """One way in which an input can be unusable.

    Attributes:
        name: Condition, in words joined by underscores.
        write: Makes the input in a folder that exists; gives back the input where it is a file.
        error: Exact class of the error.
        code: Its stable identifier.
        mentions: Texts that the message must contain.
    """

    name: str
    write: Callable[[Path], object]
    error: type[InputError]
    code: str
    mentions: tuple[str, ...] = ()


def series_with(change: Callable[[FileDataset], object], *indices: int, phantom: CtPhantom | None = None):
    """A writer of the default series in which `change` is made to the given slices, or to all of them."""

    def write(folder: Path) -> None:
        def edit(index: int, dataset: FileDataset) -> None:
            if not indices or index in indices:
                change(dataset)

        write_ct_series(folder, phantom, edit=edit)

    return write


def setting(**values: object) -> Callable[[FileDataset], None]:
    """A change that sets attributes by keyword; None deletes."""

    def change(dataset: FileDataset) -> None:
        for keyword, value in values.items():
            if value is None:
                del dataset[keyword]
            else:
                setattr(dataset, keyword, value)

    return change


def moved(along_mm: float = 0.0, sideways_mm: float = 0.0) -> Callable[[FileDataset], None]:
    """A change that shifts an axial slice along the normal and along its columns."""

    def change(dataset: FileDataset) -> None:
        x, y, z = dataset.ImagePositionPatient
        dataset.ImagePositionPatient = [x, y + sideways_mm, z + along_mm]

    return change


def files_with_bytes(content: bytes, name: str = "canaryfile.dcm") -> Callable[[Path], object]:
    """A writer of one file with this content."""
    return lambda folder: (folder / name).write_bytes(content)


def every_file(change: Callable[[bytes], bytes], phantom: CtPhantom | None = None) -> Callable[[Path], None]:
    """A writer of the default series whose files are changed byte-wise."""

    def write(folder: Path) -> None:
        for path in write_ct_series(folder, phantom):
            path.write_bytes(change(path.read_bytes()))

    return write


def one_file(change: Callable[[bytes], bytes], phantom: CtPhantom | None = None) -> Callable[[Path], None]:
    """Like `every_file`, for the fourth file alone."""

    def write(folder: Path) -> None:
        path = write_ct_series(folder, phantom)[3]
        path.write_bytes(change(path.read_bytes()))

    return write


def dataset_offset(content: bytes) -> int:
    """Start of the data set, from the group length of the file meta information."""
    return 144 + int(struct.unpack_from("<L", content, 140)[0])


def relabelled(content: bytes, syntax: bytes) -> bytes:
    """Name another transfer syntax in the file meta information, without touching the data set."""
    start = dataset_offset(content)
    meta, body = content[:start], content[start:]
    place = meta.index(b"\x02\x00\x10\x00UI")
    length = struct.unpack_from("<H", meta, place + 6)[0]
    value = syntax + b"\0" * (len(syntax) % 2)
    meta = meta[: place + 6] + struct.pack("<H", len(value)) + value + meta[place + 8 + length :]
    return meta[:140] + struct.pack("<L", len(meta) - 144) + meta[144:] + body


def _without_transfer_syntax(content: bytes) -> bytes:
    return content.replace(b"\x02\x00\x10\x00UI", b"\x02\x00\x11\x00UI", 1)


def _pipe(folder: Path) -> None:
    os.mkfifo(folder / "canaryfile.dcm")


def _socket(folder: Path) -> None:
    with socket.socket(socket.AF_UNIX) as endpoint:
        endpoint.bind(os.path.relpath(folder / "s.dcm"))


def _link_to(target: str) -> Callable[[Path], None]:
    return lambda folder: (folder / "canaryfile.dcm").symlink_to(target)


def _empty_folder_named_like_a_file(folder: Path) -> None:
    (folder / "canaryfile.dcm").mkdir()


def _zip(folder: Path) -> None:
    with zipfile.ZipFile(folder / "canaryfile.dcm", "w") as archive:
        archive.writestr("a", "b")


UNREADABLE_ELEMENT = b"\x10\x00\x10\x10UY\x02\x00AB"
"""Its value representation does not exist, and pydicom raises as soon as it is touched."""


def nested(tag: bytes, depth: int, innermost: bytes = b"") -> bytes:
    """Sequences in each other under one tag, as bytes because writing them recursively fails as well."""
    opening = tag + b"SQ\0\0\xff\xff\xff\xff" + b"\xfe\xff\x00\xe0\xff\xff\xff\xff"
    closing = b"\xfe\xff\x0d\xe0\0\0\0\0\xfe\xff\xdd\xe0\0\0\0\0"
    return opening * depth + innermost + closing * depth


def _modality_100_deep(content: bytes) -> bytes:
    """pydicom quotes the traceback of each level in that of the next: making text of this does not end."""
    modality = b"\x08\x00\x60\x00"
    return content.replace(modality + b"CS\2\0CT", nested(modality, 100, UNREADABLE_ELEMENT), 1)


def _big_endian(folder: Path) -> None:
    for path in write_ct_series(folder):
        dataset = pydicom.dcmread(path)
        swapped = Dataset()  # a dataset without a past, because pydicom does not turn one encoding into the other
        swapped.update(dataset)
        swapped.file_meta, swapped.preamble = dataset.file_meta, dataset.preamble
        swapped.file_meta.TransferSyntaxUID = uid.ExplicitVRBigEndian
        swapped.save_as(path, enforce_file_format=True)


def _mixed_patients(dataset: FileDataset) -> None:
    dataset.PatientID, dataset.PatientName = "CANARY-OTHER", "Canaryother^Phantom"


def _sagittal(dataset: FileDataset) -> None:
    dataset.ImageOrientationPatient = [0, 1, 0, 0, 0, -1]


def _same_identifier_other_pixels(dataset: FileDataset) -> None:
    dataset.SOPInstanceUID = CtPhantom().sop_uid(3)


def _copy_at_same_position(folder: Path) -> None:
    paths = write_ct_series(folder)
    copy = folder / "canaryfile_copy.dcm"
    copy.write_bytes(paths[4].read_bytes())
    edit_file(copy, setting(SOPInstanceUID=derived_uid("copy"), InstanceNumber=77, AcquisitionNumber=2))


def _tilted(degrees: float) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        step = CtPhantom().spacing_mm[0] * float(np.tan(np.radians(degrees)))
        write_ct_series(folder, edit=lambda index, dataset: moved(sideways_mm=index * step)(dataset))

    return write


def _half_shifted(along_mm: float) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        write_ct_series(folder, edit=lambda index, dataset: moved(along_mm * (index >= 5))(dataset))

    return write


def _stretched(last_step_mm: float) -> Callable[[Path], None]:
    """The last slice nearer to the one before than it should be."""

    def write(folder: Path) -> None:
        write_ct_series(folder, edit=lambda index, dataset: moved((index == 9) * (last_step_mm - 2.5))(dataset))

    return write


def _interleaved(shift_mm: float, keyword: str = "AcquisitionNumber") -> Callable[[Path], None]:
    """Every other slice of another pass, a little off the middle."""

    def edit(index: int, dataset: FileDataset) -> None:
        setattr(dataset, keyword, 1 + index % 2)
        moved((index % 2) * shift_mm)(dataset)

    return lambda folder: write_ct_series(folder, edit=edit)  # type: ignore[return-value]


def _omitting(*indices: int) -> Callable[[Path], object]:
    return lambda folder: write_ct_series(folder, omit=indices)


def _colour(dataset: FileDataset) -> None:
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation, dataset.PlanarConfiguration = 3, "RGB", 0


def _report(dataset: FileDataset) -> None:
    dataset.Modality, dataset.SOPClassUID = "SR", uid.ComprehensiveSRStorage
    for keyword in ("PixelData", "Rows", "Columns"):
        del dataset[keyword]


def _enhanced(dataset: FileDataset) -> None:
    dataset.SOPClassUID, dataset.NumberOfFrames = uid.EnhancedCTImageStorage, 12


def _hounsfield(change: Callable[[np.ndarray], np.ndarray]) -> Callable[[FileDataset], None]:
    def apply(dataset: FileDataset) -> None:
        stored = np.frombuffer(dataset.PixelData, dtype=np.uint16)
        dataset.PixelData = change(stored).astype(np.uint16).tobytes()

    return apply


def _fragments(*fragments: bytes) -> Callable[[FileDataset], None]:
    def change(dataset: FileDataset) -> None:
        dataset.PixelData = encapsulate(list(fragments), has_bot=False) if fragments else encapsulate([b"\0\0"])[:8]

    return change


def _last_fragment_halved(dataset: FileDataset) -> None:
    codestream = b"".join(list(generate_fragments(dataset.PixelData))[1:])
    dataset.PixelData = encapsulate([codestream[: len(codestream) // 4 * 2]], has_bot=False)


def _directory_record(folder: Path) -> None:
    path = write_ct_series(folder, omit=range(1, 10))[0]
    path.write_bytes(path.read_bytes().replace(uid.CTImageStorage.encode(), b"1.2.840.10008.1.3.10\0\0\0\0\0", 1))


def _copy_of_one_file(change: Callable[[FileDataset], object]) -> Callable[[Path], None]:
    """A writer of the default series with a changed second file of the same SOP Instance UID."""

    def write(folder: Path) -> None:
        paths = write_ct_series(folder)
        copy = folder / "canaryfile_copy.dcm"
        copy.write_bytes(paths[4].read_bytes())
        edit_file(copy, change)

    return write


def _second_pass(*indices: int) -> Callable[[Path], None]:
    """A writer of a series of which slices are there once more under other UIDs, and nothing tells them apart."""

    def write(folder: Path) -> None:
        write_ct_series(folder)
        write_ct_series(
            folder,
            omit=set(range(10)) - set(indices),
            prefix="canaryfile_again",
            edit=lambda index, dataset: setting(SOPInstanceUID=derived_uid("again", index))(dataset),
        )

    return write


def _too_large(folder: Path) -> None:
    with (folder / "canaryfile.dcm").open("wb") as file:
        file.write(write_ct_series(folder / "x", omit=range(1, 10))[0].read_bytes())
        file.truncate(5 * 1024**3)
    (folder / "x" / "canaryfile_0000.dcm").unlink()


def _with_element(element: bytes) -> Callable[[Path], None]:
    """A writer of files with one more element in front of all others."""

    def change(content: bytes) -> bytes:
        start = dataset_offset(content)
        return content[:start] + element + content[start:]

    return every_file(change)


def _deep_sequences(depth: int) -> Callable[[Path], None]:
    """A writer of files with sequences in each other, written as bytes because writing them fails as well."""
    item = b"\xfe\xff\x00\xe0\xff\xff\xff\xff"
    opening = b"\x08\x00\x12\x21SQ\0\0\xff\xff\xff\xff" + item
    closing = b"\xfe\xff\x0d\xe0\0\0\0\0\xfe\xff\xdd\xe0\0\0\0\0"

    return _with_element(opening * depth + closing * depth)


RLE = CtPhantom(transfer_syntax=uid.RLELossless)
J2K = CtPhantom(transfer_syntax=uid.JPEG2000Lossless)
MPEG2 = uid.MPEG2MPML
_NATIVE_BYTES = 40 * 48 * 2

_NOT_DICOM = (
    BadInput("empty_folder", lambda folder: None, NotDicomError, "UCSEG-E101", ("no files",)),
    BadInput("empty_file", files_with_bytes(b""), NotDicomError, "UCSEG-E101", ("DICM",)),
    BadInput("text_file", files_with_bytes(b"canary text " * 50), NotDicomError, "UCSEG-E101", ("DICM",)),
    BadInput("zeros", files_with_bytes(b"\0" * 132), NotDicomError, "UCSEG-E101", ("DICM",)),
    BadInput("jpeg_file", files_with_bytes(b"\xff\xd8\xff\xe0" + b"x" * 300), NotDicomError, "UCSEG-E101", ("DICM",)),
    BadInput("zip_named_dcm", _zip, NotDicomError, "UCSEG-E101", ("DICM",)),
    BadInput("folder_named_dcm", _empty_folder_named_like_a_file, NotDicomError, "UCSEG-E101", ("no files",)),
    BadInput("pipe", _pipe, InputError, "UCSEG-E102", ("a pipe",)),
    BadInput("socket", _socket, InputError, "UCSEG-E102", ("a socket",)),
    BadInput("dangling_link", _link_to("canary-nowhere"), InputError, "UCSEG-E102", ("a link",)),
    BadInput("looping_link", _link_to("canaryfile.dcm"), InputError, "UCSEG-E102", ("a link",)),
    BadInput("file_too_large", _too_large, InputError, "UCSEG-E102", ("5368709120 bytes", "at most")),
    BadInput("link_to_device", _link_to("/dev/zero"), InputError, "UCSEG-E102", ("a link",)),
)

_UNREADABLE_FILES = (
    BadInput("header_only_prefix", every_file(lambda b: b[:132]), InputError, "UCSEG-E103", ("transfer syntax",)),
    BadInput("header_cut_in_value", every_file(lambda b: b[: dataset_offset(b) + 45]), InputError, "UCSEG-E103"),
    BadInput(
        "no_transfer_syntax", every_file(_without_transfer_syntax), InputError, "UCSEG-E103", ("transfer syntax",)
    ),
    BadInput("meta_garbage", every_file(lambda b: b[:132] + b"\xa5" * 400), InputError, "UCSEG-E103"),
    BadInput(
        "deflated",
        series_with(lambda d: setattr(d.file_meta, "TransferSyntaxUID", uid.DeflatedExplicitVRLittleEndian)),
        PixelDataError,
        "UCSEG-E105",
        ("Deflated Explicit VR Little Endian", "1.2.840.10008.1.2.1.99"),
    ),
    BadInput(
        "explicit_labelled_implicit",
        every_file(lambda b: relabelled(b, b"1.2.840.10008.1.2")),
        PixelDataError,
        "UCSEG-E105",
        ("not encoded in the transfer syntax",),
    ),
    BadInput(
        "implicit_labelled_explicit",
        every_file(
            lambda b: relabelled(b, b"1.2.840.10008.1.2.1"), CtPhantom(transfer_syntax=uid.ImplicitVRLittleEndian)
        ),
        PixelDataError,
        "UCSEG-E105",
        ("not encoded in the transfer syntax",),
    ),
    BadInput("transfer_syntax_is_text", every_file(lambda b: relabelled(b, b"canary")), PixelDataError, "UCSEG-E105"),
    BadInput("sequences_400_deep", _deep_sequences(400), InputError, "UCSEG-E108", ("RecursionError",)),
    BadInput("sequences_5000_deep", _deep_sequences(5000), InputError, "UCSEG-E108", ("RecursionError",)),
    BadInput(
        "sequence_of_garbage",
        _with_element(b"\x08\x00\x05\x11SQ\0\0\xff\xff\xff\xffcanary in a sequence"),
        InputError,
        "UCSEG-E108",
        ("OSError",),
    ),
    BadInput(
        "unknown_value_representation",
        _with_element(b"\x08\x00\x05\x00ZZ\x08\x00canary12"),
        InputError,
        "UCSEG-E108",
        ("NotImplementedError",),
    ),
    BadInput(
        "bytes_of_undefined_length",
        _with_element(b"\x08\x00\x05\x00OB\0\0\xff\xff\xff\xffcanarycanary"),
        InputError,
        "UCSEG-E108",
        ("TypeError",),
    ),
    BadInput(
        "value_representation_garbage",
        _with_element(b"\x08\x00\x05\x00\1\2\x08\0canary12"),
        InputError,
        "UCSEG-E103",
        ("middle of its header",),
    ),
    BadInput("directory_record", _directory_record, InputError, "UCSEG-E121", ("DICOMDIR",)),
)

_BAD_PIXELS = (
    BadInput(
        "big_endian",
        _big_endian,
        PixelDataError,
        "UCSEG-E105",
        ("Explicit VR Big Endian", "1.2.840.10008.1.2.2"),
    ),
    BadInput(
        "video",
        every_file(lambda b: relabelled(b, MPEG2.encode())),
        PixelDataError,
        "UCSEG-E105",
        ("MPEG2", MPEG2),
    ),
    BadInput(
        "pixels_cut_off",
        one_file(lambda b: b[:-100]),
        PixelDataError,
        "UCSEG-E104",
        ("file 4 of 10 (instance 4)", f"after {_NATIVE_BYTES - 100} of {_NATIVE_BYTES} bytes"),
    ),
    BadInput(
        "pixels_declared_short",
        series_with(lambda d: setattr(d, "PixelData", d.PixelData[:-200]), 3),
        PixelDataError,
        "UCSEG-E104",
        (f"{_NATIVE_BYTES - 200} bytes", f"expected {_NATIVE_BYTES}"),
    ),
    BadInput(
        "pixels_of_two_frames",
        series_with(lambda d: setattr(d, "PixelData", d.PixelData * 2), 3),
        PixelDataError,
        "UCSEG-E104",
        (f"{2 * _NATIVE_BYTES} bytes",),
    ),
    BadInput(
        "no_pixels", series_with(setting(PixelData=None), 3), PixelDataError, "UCSEG-E104", ("without pixel data",)
    ),
    BadInput("j2k_file_cut_off", one_file(lambda b: b[:-500], J2K), PixelDataError, "UCSEG-E104", ("cut off",)),
    BadInput("j2k_no_frame", series_with(_fragments(), 3, phantom=J2K), PixelDataError, "UCSEG-E104", ("item",)),
    BadInput(
        "j2k_codestream_halved",
        series_with(_last_fragment_halved, 3, phantom=J2K),
        PixelDataError,
        "UCSEG-E104",
        ("no end marker",),
    ),
    BadInput(
        "j2k_garbage",
        series_with(_fragments(b"\x55" * 500 + b"\xff\xd9"), 3, phantom=J2K),
        PixelDataError,
        "UCSEG-E104",
        ("file 4 of 10", "JPEG 2000"),
    ),
    BadInput(
        "rle_two_frames",
        series_with(_fragments(b"\1\0" * 40, b"\1\0" * 40), 3, phantom=RLE),
        PixelDataError,
        "UCSEG-E104",
        ("2 fragments",),
    ),
    BadInput(
        "rle_garbage",
        series_with(_fragments(b"\2\0\0\0\x40\0\0\0\x41\0\0\0" + b"\x7f" * 90), 3, phantom=RLE),
        PixelDataError,
        "UCSEG-E104",
        ("RLE Lossless",),
    ),
    BadInput("rows_zero", series_with(setting(Rows=0)), GeometryError, "UCSEG-E107", ("0 rows",)),
    BadInput("frame_bomb", series_with(setting(Rows=65535, Columns=65535)), PixelDataError, "UCSEG-E107", ("at most",)),
    BadInput("bits_allocated_12", series_with(setting(BitsAllocated=12)), PixelDataError, "UCSEG-E107", ("12",)),
    BadInput("bits_stored_17", series_with(setting(BitsStored=17), 3), PixelDataError, "UCSEG-E107", ("17",)),
    BadInput("high_bit_11", series_with(setting(HighBit=11), 3), PixelDataError, "UCSEG-E107", ("High Bit 11",)),
    BadInput("rescale_slope_zero", series_with(setting(RescaleSlope="0"), 3), PixelDataError, "UCSEG-E107", ("Slope",)),
    BadInput("rescale_lost_half", series_with(setting(RescaleSlope=None), 3), PixelDataError, "UCSEG-E107", ("Slope",)),
)

_BAD_GEOMETRY = (
    BadInput(
        "mixed_studies",
        series_with(lambda d: setattr(d, "StudyInstanceUID", derived_uid("other study")), 4, 5),
        SeriesSelectionError,
        "UCSEG-E110",
        ("study",),
    ),
    BadInput(
        "mixed_frames_of_reference",
        series_with(lambda d: setattr(d, "FrameOfReferenceUID", derived_uid("other frame")), 4, 5),
        SeriesSelectionError,
        "UCSEG-E110",
        ("frame of reference",),
    ),
    BadInput("mixed_patients", series_with(_mixed_patients, 4, 5), SeriesSelectionError, "UCSEG-E110", ("patient",)),
    BadInput("one_slice_sagittal", series_with(_sagittal, 4), GeometryError, "UCSEG-E111", ("90.0 degrees",)),
    BadInput(
        "one_slice_turned_in_its_plane",
        series_with(setting(ImageOrientationPatient=[0, 1, 0, -1, 0, 0]), 4),
        GeometryError,
        "UCSEG-E111",
        ("turned within",),
    ),
    BadInput(
        "half_of_the_slices_coronal",
        series_with(setting(ImageOrientationPatient=[1, 0, 0, 0, 0, -1]), 5, 6, 7, 8, 9),
        GeometryError,
        "UCSEG-E111",
        ("90.0 degrees",),
    ),
    BadInput(
        "only_localizers",
        series_with(setting(ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])),
        GeometryError,
        "UCSEG-E111",
        ("localizer",),
    ),
    BadInput(
        "same_identifier_other_content",
        series_with(_same_identifier_other_pixels, 4),
        SpacingError,
        "UCSEG-E112",
        ("file 4 of 10", "file 5 of 10"),
    ),
    BadInput(
        "copy_with_another_header",
        _copy_of_one_file(setting(WindowCenter="50")),
        SpacingError,
        "UCSEG-E112",
        ("differ in content",),
    ),
    BadInput(
        "copy_with_other_pixels",
        _copy_of_one_file(lambda d: setattr(d, "PixelData", d.PixelData[:-2] + b"\1\0")),
        SpacingError,
        "UCSEG-E112",
        ("differ in content",),
    ),
    BadInput(
        "second_pass_that_nothing_tells_apart",
        _second_pass(*range(10)),
        SpacingError,
        "UCSEG-E113",
        ("10 slices", "acquisition numbers: 1 (20 files)"),
    ),
    BadInput("half_of_a_second_pass", _second_pass(0, 1, 2), SpacingError, "UCSEG-E113", ("3 slices",)),
    BadInput(
        "copy_at_same_position",
        _copy_at_same_position,
        SpacingError,
        "UCSEG-E113",
        ("acquisition numbers: 1 (10 files), 2 (1 files)",),
    ),
    BadInput(
        "one_slice_missing",
        _omitting(4),
        SpacingError,
        "UCSEG-E114",
        ("file 4 of 9 (instance 4)", "file 5 of 9 (instance 6)", "5.00 mm", "2.50 mm", "1 slice seems"),
    ),
    BadInput("two_slices_missing", _omitting(4, 5), SpacingError, "UCSEG-E114", ("7.50 mm", "2 slices seem")),
    BadInput("two_gaps", _omitting(2, 6), SpacingError, "UCSEG-E114", ("5.00 mm", "1 more")),
    BadInput("gap_of_half_a_step", _half_shifted(1.25), SpacingError, "UCSEG-E114", ("3.75 mm",)),
    BadInput("one_slice_near_the_next", series_with(moved(1.5), 4), SpacingError, "UCSEG-E114", ("4.00 mm",)),
    BadInput("steps_of_a_third", _stretched(0.8), SpacingError, "UCSEG-E116", ("0.80 mm",)),
    BadInput(
        "two_interleaved_passes", _interleaved(0.3), SpacingError, "UCSEG-E116", ("2.20 to 2.80 mm", "1 (5 files)")
    ),
    BadInput("two_interleaved_echoes", _interleaved(0.3, "EchoNumbers"), SpacingError, "UCSEG-E116", ("echo",)),
    BadInput("gantry_tilt_50_degrees", _tilted(50.0), GeometryError, "UCSEG-E117", ("50.0 degrees",)),
    BadInput("one_slice_sideways", series_with(moved(0, 0.5), 4), GeometryError, "UCSEG-E117", ("file 5 of 10",)),
    BadInput("two_slices_sideways", series_with(moved(0, 3.0), 4, 5), GeometryError, "UCSEG-E117", ("off the line",)),
    BadInput(
        "no_position", series_with(setting(ImagePositionPatient=None), 3), GeometryError, "UCSEG-E118", ("file 4",)
    ),
    BadInput("no_orientation", series_with(setting(ImageOrientationPatient=None)), GeometryError, "UCSEG-E118"),
    BadInput("no_pixel_spacing", series_with(setting(PixelSpacing=None)), GeometryError, "UCSEG-E118"),
    BadInput("zero_pixel_spacing", series_with(setting(PixelSpacing=[0, 1])), GeometryError, "UCSEG-E118", ("0.0",)),
    BadInput(
        "position_of_two_numbers", series_with(setting(ImagePositionPatient=[1, 2]), 3), GeometryError, "UCSEG-E118"
    ),
    BadInput(
        "position_not_a_number",
        one_file(lambda b: b.replace(b"-23.5\\-110\\", b"nan  \\-110\\", 1)),
        GeometryError,
        "UCSEG-E118",
        ("not finite",),
    ),
    BadInput(
        "cosines_not_perpendicular",
        series_with(setting(ImageOrientationPatient=[1, 0, 0, 0.1, 0.995, 0])),
        GeometryError,
        "UCSEG-E118",
        ("0.1000",),
    ),
    BadInput("rows_differ", series_with(setting(Rows=39), 5), GeometryError, "UCSEG-E119", ("39 × 48", "40 × 48")),
    BadInput(
        "spacing_differs", series_with(setting(PixelSpacing=[1.25, 1.1]), 5), GeometryError, "UCSEG-E119", ("1.1",)
    ),
    BadInput(
        "photometric_differs",
        series_with(setting(PhotometricInterpretation="MONOCHROME1"), 5),
        GeometryError,
        "UCSEG-E119",
        ("MONOCHROME1",),
    ),
    BadInput("sign_differs", series_with(setting(PixelRepresentation=1), 5), GeometryError, "UCSEG-E119"),
)

_WRONG_KIND = (
    BadInput(
        "wrong_modality",
        lambda folder: write_ct_series(folder, replace(CtPhantom(), modality="MR")),
        SeriesSelectionError,
        "UCSEG-E121",
        ("MR", "CT"),
    ),
    BadInput(
        "modality_100_sequences_deep",
        every_file(_modality_100_deep),
        SeriesSelectionError,
        "UCSEG-E121",
        ("modality is missing",),
    ),
    BadInput("colour", series_with(_colour), SeriesSelectionError, "UCSEG-E121", ("RGB",)),
    BadInput(
        "secondary_capture",
        series_with(setting(SOPClassUID=uid.SecondaryCaptureImageStorage)),
        SeriesSelectionError,
        "UCSEG-E121",
        ("Secondary Capture",),
    ),
    BadInput(
        "segmentation",
        series_with(setting(SOPClassUID=uid.SegmentationStorage, Modality="SEG")),
        SeriesSelectionError,
        "UCSEG-E121",
        ("SEG", "CT"),
    ),
    BadInput(
        "localizer_class_of_another_device",
        series_with(setting(SOPClassUID=uid.MRImageStorage)),
        SeriesSelectionError,
        "UCSEG-E121",
        ("MR Image Storage",),
    ),
    BadInput("structured_report", series_with(_report), SeriesSelectionError, "UCSEG-E121", ("SR",)),
    BadInput("frames_not_described", series_with(_enhanced), InputError, "UCSEG-E104", ("10 × has another number",)),
    BadInput("one_slice", _omitting(*range(1, 10)), GeometryError, "UCSEG-E121", ("at least 2",)),
)

_BAD_INTENSITIES = (
    BadInput("constant", series_with(_hounsfield(lambda v: v * 0)), PixelDataError, "UCSEG-E122", ("same value",)),
    BadInput(
        "no_negative_value",
        series_with(setting(RescaleIntercept="0")),
        PixelDataError,
        "UCSEG-E122",
        ("negative",),
    ),
    BadInput(
        "everything_padding",
        series_with(setting(RescaleIntercept="-9000")),
        PixelDataError,
        "UCSEG-E122",
        ("-1024",),
    ),
    BadInput("higher_than_metal", series_with(setting(RescaleSlope="20")), PixelDataError, "UCSEG-E122", ("4000 HU",)),
)

_HU = CtPhantom().hu


def _text(path: Path) -> Path:
    path.write_text("canary")
    return path


def _image(name: str, write: Callable[[Path], object], *mentions: str) -> BadInput:
    return BadInput(f"nifti_{name}", write, InputError, "UCSEG-E124", mentions)


_BAD_IMAGES = (
    _image("no_form", nifti_images.image_with(nifti_images.fields(qform_code=0, sform_code=0)), "neither a qform"),
    _image("forms_20_mm_apart", nifti_images.image_with(nifti_images.moved_qform), "differently"),
    _image("forms_mirrored", nifti_images.image_with(nifti_images.mirrored_qform), "differently"),
    _image("sheared", nifti_images.image_with(nifti_images.sheared), "perpendicular"),
    _image(
        "affine_not_finite", nifti_images.image_with(nifti_images.fields(srow_x=[np.nan, 0, 0, 0])), "cannot be placed"
    ),
    _image(
        "affine_all_zero",
        nifti_images.image_with(nifti_images.fields(srow_x=0, srow_y=0, srow_z=0, qform_code=0)),
        "cannot be placed",
    ),
    _image("lengths_in_metres", nifti_images.image_with(nifti_images.fields(xyzt_units=1)), "another unit"),
    _image("four_dimensions", nifti_images.image_with(nifti_images.dims(48, 40, 5, 2)), "2 volumes"),
    _image("two_dimensions", nifti_images.image_with(nifti_images.dims(48, 400)), "2 dimensions"),
    _image("no_dimension", nifti_images.image_with(nifti_images.fields(dim=[0] * 8)), "0 dimensions"),
    _image("negative_dimension", nifti_images.image_with(nifti_images.dims(48, -40, 10)), "-40"),
    _image("one_slice", nifti_images.image_with(voxels=_HU[:1]), "at least 2"),
    _image("int64", nifti_images.image_with(voxels=_HU.astype(np.int64)), "NIfTI type 1024"),
    _image("complex", nifti_images.image_with(voxels=_HU.astype(np.complex64)), "NIfTI type 32"),
    _image("unknown_type", nifti_images.image_with(nifti_images.fields(datatype=77)), "NIfTI type 77"),
    _image(
        "voxels_not_finite",
        nifti_images.image_with(voxels=np.where(_HU == 30, np.nan, _HU).astype(np.float32)),
        "not finite",
    ),
    _image("scale_not_finite", nifti_images.image_with(nifti_images.fields(scl_slope=np.inf)), "not finite"),
    _image("header_bomb", nifti_images.image_with(nifti_images.dims(32000, 32000, 100)), "102400000000 voxels"),
    _image("voxels_far_away", nifti_images.image_with(nifti_images.fields(vox_offset=1e9)), "begin at byte"),
    _image("cut_off", nifti_images.image_bytes(lambda b: b[:-100]), "cut off"),
    _image("cut_off_plain", nifti_images.image_bytes(lambda b: b[:-100], "canaryfile.nii"), "cut off"),
    _image("more_slices_than_declared", nifti_images.image_with(nifti_images.dims(48, 40, 9)), "more bytes"),
    _image("gzip_cut_off", nifti_images.compressed_bytes(lambda b: b[: len(b) // 2]), "cut off"),
    _image("gzip_checksum", nifti_images.compressed_bytes(nifti_images.wrong_gzip_checksum), "damaged"),
    _image(
        "not_gzip", lambda folder: nifti_images.write_image(folder / "x.nii").rename(folder / "canary.nii.gz"), "gz"
    ),
    _image("header_of_a_pair", nifti_images.image_bytes(nifti_images.header_alone, "canary.nii"), "pair"),
    _image("text", lambda folder: _text(folder / "canary.nii"), "no NIfTI header"),
    _image("header_cut_off", nifti_images.image_bytes(lambda b: b[:200], "canary.nii"), "no NIfTI header"),
)


def _archive(name: str, write: Callable[[Path], object], *mentions: str) -> BadInput:
    return BadInput(f"zip_{name}", write, InputError, "UCSEG-E125", mentions)


_BAD_ARCHIVES = (
    _archive("bomb", archives.archive_with([("canary.dcm", bytes(20_000_000))]), "declare 20000000 bytes"),
    _archive("overlapping_members", archives.overlapping, "declare 30000000 bytes"),
    _archive("directory_bomb", archives.long_directory, "3000000000 bytes"),
    _archive("100000_members", archives.archive_with((f"{n}", b"") for n in range(100_000)), "100000 members"),
    _archive("nested", archives.nested, "archive inside of an archive"),
    _archive("encrypted", archives.damaged(archives.encrypted), "encrypted"),
    _archive("wrong_checksum", archives.damaged(archives.wrong_checksum), "BadZipFile"),
    _archive("cut_off", archives.damaged(lambda b: b[: len(b) // 2]), "cut off"),
    _archive("first_half_missing", archives.damaged(lambda b: b[:4] + b[len(b) // 2 :]), "damaged"),
    _archive("flipped_bytes", archives.damaged(lambda b: b[:300] + bytes(x ^ 0x55 for x in b[300:400]) + b[400:])),
    _archive("lzma", archives.archive_with([("canary.dcm", b"x" * 5000)], zipfile.ZIP_LZMA), "another method"),
)

BAD_INPUTS = (
    *_NOT_DICOM,
    *_UNREADABLE_FILES,
    *_BAD_PIXELS,
    *_BAD_GEOMETRY,
    *_WRONG_KIND,
    *_BAD_INTENSITIES,
    *_BAD_IMAGES,
    *_BAD_ARCHIVES,
    BadInput("zip_of_text", archives.archive_with([("a", b"canary")]), NotDicomError, "UCSEG-E101", ("DICM",)),
    BadInput("zip_of_links", archives.archive_with([archives.link("a", "/canary")]), InputError, "UCSEG-E102"),
    BadInput("zip_of_nothing", archives.archive_with([]), NotDicomError, "UCSEG-E101", ("no files",)),
    BadInput("nifti_constant", nifti_images.image_with(voxels=_HU * 0), PixelDataError, "UCSEG-E122", ("same value",)),
    BadInput(
        "nifti_probabilities",
        nifti_images.image_with(voxels=(_HU > 0).astype(np.float32)),
        PixelDataError,
        "UCSEG-E122",
        ("negative",),
    ),
)
