"""What the header must say before a series may be read: right kind of object, one patient, sane and complete pixels."""

from __future__ import annotations

from collections.abc import Sequence

from pydicom.uid import UID

from ucseg_runtime.dicom.instances import UNDEFINED_LENGTH, Instance, Series
from ucseg_runtime.dicom.object_classes import MULTI_FRAME_CLASSES, SLICE_CLASSES
from ucseg_runtime.dicom.transfer_syntaxes import DECODERS, LOSSY_JPEG, NATIVE, missing_package, syntax_name
from ucseg_runtime.errors import PixelDataError, SeriesSelectionError

MAX_VOLUME_BYTES = 4 * 1024**3

_GREY = frozenset({"MONOCHROME1", "MONOCHROME2"})
_BITS_ALLOCATED = (8, 16, 32)


def require_modality(series: Series, modality: str) -> None:
    """Check that the series was made by this kind of device.

    Raises:
        SeriesSelectionError: It was not.
    """
    if series.modality != modality:
        raise _unsuitable(f"the modality is {series.modality or 'missing'} (the model needs {modality})")


def require_slice_images(series: Series) -> None:
    """Check that every file or frame is one grey slice image of one patient.

    Raises:
        SeriesSelectionError: The series holds other objects, frames without places, colour images, or several patients,
            studies or frames of reference.
    """
    for instance in series.instances:
        _require_slice_class(instance, series.modality)
        _require_grey(instance)
    require_one_patient(series)
    if len({instance.frame_of_reference_uid for instance in series.instances}) > 1:
        raise _mixed("frame of reference")


def require_one_patient(series: Series) -> None:
    """Check that all files belong to one patient and one study.

    Raises:
        SeriesSelectionError: They do not.
    """
    if len({instance.patient_key for instance in series.instances}) > 1:
        raise _mixed("patient")
    if len({instance.study_uid for instance in series.instances}) > 1:
        raise _mixed("study")


def require_instances(series: Series, expected: int) -> None:
    """Check the number of slices against what the caller knows of the series.

    Args:
        series: Any.
        expected: Number of slices; 0 for any.

    Raises:
        SeriesSelectionError: It is another one.
    """
    if expected not in (0, series.number_of_instances):
        raise _unsuitable(
            f"the series has {series.number_of_instances} slices (expected {expected}, by --expect-instances)",
            hint="Export the series again; slices at its ends may be missing.",
            code="UCSEG-E115",
        )


def require_readable_pixels(series: Series, max_volume_bytes: int = MAX_VOLUME_BYTES) -> None:
    """Check everything about the pixels that can be known without decoding them.

    Args:
        series: Slice images, see `require_slice_images`.
        max_volume_bytes: Budget for the stored values of the whole series.

    Raises:
        PixelDataError: The declared format is impossible or too large, pixels are missing or cut off, or there is no
            decoder for them.
    """
    for instance in series.instances:
        _require_sane_format(instance)
    _require_budget(series.instances, max_volume_bytes)
    for instance in series.instances:
        _require_decoder(instance)
        _require_complete(instance, instance.pixel_format.frame_bytes)


def require_readable_file(instance: Instance, frame_bytes: int) -> None:
    """Check everything about the pixels of one file of pictures that can be known without decoding them.

    Args:
        instance: The file, or any frame of it.
        frame_bytes: Of one frame, uncompressed, as it is stored.

    Raises:
        PixelDataError: See `require_readable_pixels`.
    """
    _require_sane_format(instance)
    _require_decoder(instance)
    _require_complete(instance, frame_bytes)


def _require_slice_class(instance: Instance, modality: str) -> None:
    frames = instance.pixel_format.frames
    if frames > 1 and not instance.frame:
        raise _unsuitable(f"{instance.where} has {frames} frames without places (expected one slice a file or frame)")
    expected = SLICE_CLASSES.get(modality)
    if expected is not None and instance.sop_class_uid not in {expected} | MULTI_FRAME_CLASSES:
        raise _unsuitable(f"{instance.where} is {class_name(instance)} (expected {UID(expected).name})")
    if modality == "CT" and instance.rescale_type not in {"", "HU"}:
        raise _unsuitable(f"{instance.where} holds no Hounsfield units, by its Rescale Type")


def class_name(instance: Instance) -> str:
    """How messages name the kind of object that a file holds."""
    name = UID(instance.sop_class_uid).name
    return "an object of unknown class" if name == instance.sop_class_uid else f"of the class {name}"


def _require_grey(instance: Instance) -> None:
    pixel_format = instance.pixel_format
    if pixel_format.samples != 1 or pixel_format.photometric not in _GREY:
        raise _unsuitable(
            f"{instance.where} has {pixel_format.samples} samples per pixel and photometric interpretation "
            f"{pixel_format.photometric or 'missing'} (expected one grey sample)"
        )


def _require_sane_format(instance: Instance) -> None:
    pixel_format = instance.pixel_format
    if min(pixel_format.rows, pixel_format.columns) < 1:
        raise _malformed(instance, f"has {pixel_format.rows} rows and {pixel_format.columns} columns (at least 1)")
    if pixel_format.bits_allocated not in _BITS_ALLOCATED:
        raise _malformed(instance, f"has Bits Allocated {pixel_format.bits_allocated} (8, 16 or 32)")
    if not 1 <= pixel_format.bits_stored <= pixel_format.bits_allocated:
        raise _malformed(
            instance, f"has Bits Stored {pixel_format.bits_stored} (1 to Bits Allocated, {pixel_format.bits_allocated})"
        )
    if pixel_format.high_bit != pixel_format.bits_stored - 1:
        raise _malformed(
            instance, f"has High Bit {pixel_format.high_bit} (Bits Stored − 1, {pixel_format.bits_stored - 1})"
        )
    if instance.rescale is None:
        raise _malformed(instance, "has a Rescale Slope or Intercept that is missing, zero or not finite (two numbers)")


def _require_budget(instances: Sequence[Instance], max_volume_bytes: int) -> None:
    declared = sum(instance.pixel_format.frame_bytes for instance in instances)
    if declared > max_volume_bytes:
        raise PixelDataError(
            f"the series declares {declared} bytes of pixels in {len(instances)} files (at most {max_volume_bytes}).",
            hint="Check Rows and Columns of the files.",
            code="UCSEG-E107",
        )


def _require_decoder(instance: Instance) -> None:
    syntax = instance.transfer_syntax
    if syntax in NATIVE:
        return
    if syntax not in DECODERS:
        raise PixelDataError(
            f"{instance.where} is stored in {syntax_name(syntax)}, which is not supported.",
            hint="Export the images in Explicit VR Little Endian or a lossless compressed syntax.",
            code="UCSEG-E105",
        )
    if syntax in LOSSY_JPEG and instance.pixel_format.signed:
        raise PixelDataError(
            f"{instance.where} has signed values in {syntax_name(syntax)}, which is for unsigned ones alone.",
            hint="Export the images in Explicit VR Little Endian or a lossless compressed syntax.",
            code="UCSEG-E105",
        )
    package = missing_package(syntax)
    if package:
        raise PixelDataError(
            f"{instance.where} is stored in {syntax_name(syntax)}, and its decoder is not installed.",
            hint=f"Install it with: pip install {package} (a base dependency of ucseg).",
            code="UCSEG-E105",
        )


def _require_complete(instance: Instance, frame_bytes: int) -> None:
    pixels = instance.pixels
    if pixels is None:
        raise _incomplete(instance, "ends without pixel data")
    if instance.transfer_syntax not in NATIVE:
        if pixels.length != UNDEFINED_LENGTH:
            raise _incomplete(instance, "has compressed pixel data that are not encapsulated")
        return
    expected = frame_bytes * instance.pixel_format.frames
    if pixels.length not in {expected, expected + expected % 2}:
        raise _incomplete(instance, f"declares {_length(pixels.length)} of pixel data (expected {expected} bytes)")
    present = instance.file_size - pixels.offset
    if present < expected:
        raise _incomplete(instance, f"is cut off after {present} of {expected} bytes of pixel data")


def _length(length: int) -> str:
    return "an undefined length" if length == UNDEFINED_LENGTH else f"{length} bytes"


def _mixed(shared: str) -> SeriesSelectionError:
    return _unsuitable(f"files of more than one {shared} share one Series Instance UID", code="UCSEG-E110")


def _unsuitable(reason: str, *, hint: str = "", code: str | None = None) -> SeriesSelectionError:
    return SeriesSelectionError(f"{reason}.", hint=hint or "Choose a series of axial slice images.", code=code)


def _malformed(instance: Instance, reason: str) -> PixelDataError:
    """`reason` ends with the expectation in brackets."""
    return PixelDataError(
        f"{instance.where} {reason.replace('(', '(expected ', 1)}.", hint="Export the series again.", code="UCSEG-E107"
    )


def _incomplete(instance: Instance, reason: str) -> PixelDataError:
    return PixelDataError(f"{instance.where} {reason}.", hint="Export or transfer the series again.")
