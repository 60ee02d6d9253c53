"""Pictures and clips: series whose every frame is an image of its own, in grey or in colour.

They have no place in the patient, so nothing is asked of positions; what counts is that all frames have one size and
that their colours can be told.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from pydicom import uid

from ucseg_runtime.dicom.checks import class_name, require_one_patient, require_readable_file
from ucseg_runtime.dicom.instances import Instance, Series
from ucseg_runtime.dicom.object_classes import FRAME_CLASSES, SECONDARY_CAPTURES
from ucseg_runtime.dicom.series import Scan
from ucseg_runtime.dicom.transfer_syntaxes import NATIVE
from ucseg_runtime.errors import PixelDataError, SeriesSelectionError

MOST_FRAMES = 100_000
MOST_FRAME_BYTES = 256 * 1024**2

_GREY = frozenset({"MONOCHROME1", "MONOCHROME2"})
_PALETTE = "PALETTE COLOR"
_JPEG_2000_ALONE = frozenset({"YBR_ICT", "YBR_RCT"})
_COLOUR = frozenset({"RGB", "YBR_FULL", "YBR_FULL_422"}) | _JPEG_2000_ALONE
_HALVED = "YBR_FULL_422"
_JPEG_2000 = frozenset({uid.JPEG2000Lossless, uid.JPEG2000, uid.HTJ2KLossless, uid.HTJ2KLosslessRPCL, uid.HTJ2K})
_ANY_PICTURE = frozenset({"OT", "SC"})
_SMALLEST_FRAME = 8  # bytes: the header of an item of encapsulated pixel data


def with_frames(series: Series) -> Series:
    """The series with one instance for each frame of each file, by instance number and number of the frame.

    A file that declares more frames than it can hold stays one instance, which `require_frame_images` refuses.
    """
    files = sorted(series.instances, key=lambda item: (item.instance_number or 0, item.sop_instance_uid, item.frame))
    return replace(series, instances=tuple(frame for file in files for frame in _frames_of(file)))


def scan_with_frames(scan: Scan) -> Scan:
    """The same scan with every series as `with_frames` gives it."""
    return replace(scan, series=tuple(map(with_frames, scan.series)))


def files_of(series: Series) -> list[Instance]:
    """One instance for each file of a series of frames, in order."""
    return list({instance.path: instance for instance in reversed(series.instances)}.values())[::-1]


def is_colour(instance: Instance) -> bool:
    """Whether a frame is in colour, of its own or by a palette."""
    return instance.pixel_format.photometric not in _GREY


def native_frame_bytes(instance: Instance) -> int:
    """Bytes of one uncompressed frame as it is stored.

    Source: DICOM PS3.3 C.7.6.3.1.2: with YBR_FULL_422 two pixels share their two colour differences.
    """
    pixel_format = instance.pixel_format
    halved = pixel_format.photometric == _HALVED and instance.transfer_syntax in NATIVE
    return pixel_format.frame_bytes * 2 // 3 if halved else pixel_format.frame_bytes


def require_frame_modality(series: Series, modality: str, named: bool) -> None:
    """Check that the series was made by the kind of device that the model is for.

    Args:
        series: With frames.
        modality: Of the model.
        named: Whether the user names the series; secondary captures are then taken, whatever made them.

    Raises:
        SeriesSelectionError: It was not.
    """
    captured = all(instance.sop_class_uid in SECONDARY_CAPTURES for instance in series.instances)
    if series.modality != modality and not (named and captured):
        advice = "; a secondary capture is taken when it is named by --series" if captured else ""
        raise _unsuitable(f"the modality is {series.modality or 'missing'} (the model needs {modality}{advice})")


def require_frame_images(series: Series, modality: str, named: bool) -> None:
    """Check that every file holds pictures of 8 bits a sample, all of one size and of one patient.

    Args:
        series: With frames.
        modality: Of the model.
        named: Whether the user names the series.

    Raises:
        SeriesSelectionError: Other objects, other samples, sizes that differ, several patients or studies.
        PixelDataError: A file declares more frames than it can hold.
    """
    expected = FRAME_CLASSES.get(modality, frozenset())
    if named or modality in _ANY_PICTURE:
        expected = expected | SECONDARY_CAPTURES
    first = series.instances[0].pixel_format
    for instance in files_of(series):
        if instance.sop_class_uid not in expected:
            wanted = "a picture or clip"
            raise _unsuitable(f"{_file(instance)} is {class_name(instance)} (expected {wanted} of modality {modality})")
        _require_possible_frames(instance)
        _require_samples(instance)
        size = instance.pixel_format.rows, instance.pixel_format.columns
        if size != (first.rows, first.columns):
            raise _unsuitable(
                f"{_file(instance)} has {size[0]} x {size[1]} pixels (expected {first.rows} x {first.columns}, as the "
                "first one)",
                hint="Give the files of each size by themselves.",
                code="UCSEG-E119",
            )
    require_one_patient(series)


def require_readable_frames(series: Series) -> None:
    """Check everything about the pixels that can be known without decoding them.

    Raises:
        PixelDataError: The declared format is impossible or too large, pixels are missing or cut off, or there is no
            decoder for them.
    """
    for instance in files_of(series):
        require_readable_file(instance, native_frame_bytes(instance))
        if instance.pixel_format.frame_bytes > MOST_FRAME_BYTES:
            raise PixelDataError(
                f"{_file(instance)} declares {instance.pixel_format.frame_bytes} bytes a frame "
                f"(at most {MOST_FRAME_BYTES}).",
                hint="Check Rows and Columns of the file.",
                code="UCSEG-E107",
            )


def _frames_of(file: Instance) -> Iterator[Instance]:
    frames = file.pixel_format.frames
    if frames == 1 or file.frame or _too_many_frames(file):
        yield file
    else:
        yield from (replace(file, frame=number) for number in range(1, frames + 1))


def _too_many_frames(file: Instance) -> bool:
    frames = file.pixel_format.frames
    return not 1 <= frames <= min(MOST_FRAMES, max(1, file.file_size // _SMALLEST_FRAME))


def _require_possible_frames(instance: Instance) -> None:
    if _too_many_frames(instance):
        raise PixelDataError(
            f"{_file(instance)} declares {instance.pixel_format.frames} frames in {instance.file_size} bytes (at most "
            f"{MOST_FRAMES}, of {_SMALLEST_FRAME} bytes or more).",
            hint="Export the series again.",
            code="UCSEG-E107",
        )


def _require_samples(instance: Instance) -> None:
    pixel_format, where = instance.pixel_format, _file(instance)
    colours = _COLOUR if pixel_format.samples == 3 else _GREY | {_PALETTE}
    if pixel_format.samples not in (1, 3) or pixel_format.photometric not in colours:
        raise _unsuitable(
            f"{where} has {pixel_format.samples} samples per pixel and photometric interpretation "
            f"{pixel_format.photometric or 'missing'} (expected grey, a palette, RGB, YBR_FULL, YBR_FULL_422, YBR_ICT "
            "or YBR_RCT)"
        )
    if pixel_format.photometric in _JPEG_2000_ALONE and instance.transfer_syntax not in _JPEG_2000:
        raise _unsuitable(f"{where} has {pixel_format.photometric} pixels without JPEG 2000 (expected RGB or YBR_FULL)")
    if pixel_format.photometric == _HALVED and instance.transfer_syntax in NATIVE and pixel_format.columns % 2:
        raise _unsuitable(f"{where} has {pixel_format.columns} columns (expected an even number, for YBR_FULL_422)")
    if (pixel_format.bits_allocated, pixel_format.bits_stored, pixel_format.signed) != (8, 8, False):
        sign = "signed" if pixel_format.signed else "unsigned"
        raise _unsuitable(
            f"{where} has {pixel_format.bits_stored} of {pixel_format.bits_allocated} bits a sample, {sign} (expected "
            "8 of 8, unsigned)",
            hint="Export the pictures with 8 bits.",
        )
    if instance.rescale not in {None, (1.0, 0.0)}:  # None is refused with the other impossible formats
        raise _unsuitable(f"{where} has a Rescale Slope or Intercept (expected pixels from 0 to 255 as they are)")


def _file(instance: Instance) -> str:
    return f"file {instance.ordinal} of {instance.total}"


def _unsuitable(reason: str, *, hint: str = "", code: str | None = None) -> SeriesSelectionError:
    return SeriesSelectionError(f"{reason}.", hint=hint or "Choose a series of pictures or a clip.", code=code)
