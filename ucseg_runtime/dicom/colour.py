"""Stored values of pictures to red, green and blue, or to grey."""

from __future__ import annotations

import cv2
import numpy as np
from pydicom.dataset import Dataset
from pydicom.pixels.processing import apply_color_lut
from pydicom.pixels.utils import expand_ybr422

from ucseg_runtime.arrays import UInt8Array
from ucseg_runtime.dicom.elements import UNREADABLE
from ucseg_runtime.dicom.instances import Instance
from ucseg_runtime.dicom.transfer_syntaxes import NATIVE
from ucseg_runtime.errors import PixelDataError

_YBR = frozenset({"YBR_FULL", "YBR_FULL_422"})
_VALUES = 256


def samples_of(stored: UInt8Array, instance: Instance) -> UInt8Array:
    """The samples of one frame with those of one pixel together.

    Args:
        stored: uint8, one frame as it is stored: by pixel, by plane, or with halved colour differences.
        instance: Where it comes from; decoded frames always come by pixel.

    Returns:
        uint8, shape (rows, columns, samples).
    """
    pixel_format = instance.pixel_format
    shape = (pixel_format.rows, pixel_format.columns)
    if instance.transfer_syntax not in NATIVE:
        return stored.reshape(*shape, pixel_format.samples)
    if pixel_format.photometric == "YBR_FULL_422":
        expanded = np.frombuffer(expand_ybr422(stored.tobytes(), 8), dtype=np.uint8)
        return expanded.reshape(*shape, pixel_format.samples)
    if pixel_format.by_plane and pixel_format.samples > 1:
        return np.moveaxis(stored.reshape(pixel_format.samples, *shape), 0, -1)
    return stored.reshape(*shape, pixel_format.samples)


def palette_of(header: Dataset, instance: Instance) -> UInt8Array:
    """Red, green and blue of every stored value: uint8, shape (256, 3).

    Of entries of 16 bits the upper 8 are taken.

    Raises:
        PixelDataError: The palette is missing or damaged.
    """
    try:
        table = apply_color_lut(np.arange(_VALUES, dtype=np.uint8), header)
    except UNREADABLE as error:
        raise PixelDataError(
            f"{instance.where} has a palette that cannot be read ({type(error).__name__}).",
            hint="Export the pictures in RGB.",
        ) from error
    if table.dtype == np.uint16:
        table = table >> 8
    return np.ascontiguousarray(table[:, :3], dtype=np.uint8)


def rgb_from_samples(samples: UInt8Array, photometric: str) -> UInt8Array:
    """Colour samples as red, green and blue: uint8, shape (rows, columns, 3).

    Args:
        samples: uint8, shape (rows, columns, 3).
        photometric: What they are.

    Raises:
        PixelDataError: They are neither RGB nor YBR_FULL.

    Source: DICOM PS3.3 C.7.6.3.1.2; OpenCV has the same full-range formula, with the colour differences exchanged.
    """
    if photometric == "RGB":
        return samples
    if photometric not in _YBR:
        raise PixelDataError(
            f"a frame was decoded to {photometric} (expected RGB or YBR_FULL).", hint="Export the pictures in RGB."
        )
    exchanged = np.ascontiguousarray(samples[..., [0, 2, 1]])
    return np.asarray(cv2.cvtColor(exchanged, cv2.COLOR_YCrCb2RGB), dtype=np.uint8)


def grey_from_rgb(colours: UInt8Array) -> UInt8Array:
    """Luma of red, green and blue, to one level what training reads of a picture: uint8, shape (rows, columns)."""
    return np.asarray(cv2.cvtColor(np.ascontiguousarray(colours), cv2.COLOR_RGB2GRAY), dtype=np.uint8)
