"""One grey frame in every compressed transfer syntax that ucseg reads, to compare with and to damage."""

from __future__ import annotations

from collections.abc import Callable

import imagecodecs
import jpeg_ls
import numpy as np
import numpy.typing as npt
from pydicom import uid
from pydicom.dataset import Dataset
from pydicom.pixels.encoders.base import get_encoder

Stored = npt.NDArray[np.unsignedinteger | np.signedinteger]
"""Stored values of one frame: uint8, int8, uint16 or int16, shape (rows, columns)."""

NEAR = 2
"""Largest difference that JPEG-LS near-lossless frames are encoded with."""
_JPEG_QUALITY = 95
_JPEG_2000_SIGNAL_TO_NOISE_DB = 60


def encoded(stored: Stored, syntax: str, bits_stored: int) -> bytes:
    """The codestream of one frame.

    Args:
        stored: Values of the frame.
        syntax: Transfer syntax UID, one of `ENCODERS`.
        bits_stored: Significant bits of a value.
    """
    return ENCODERS[syntax](stored, bits_stored)


def _pydicom(syntax: str) -> Callable[[Stored, int], bytes]:
    def encode(stored: Stored, bits_stored: int) -> bytes:
        image = Dataset()
        image.Rows, image.Columns = stored.shape
        image.SamplesPerPixel, image.PhotometricInterpretation = 1, "MONOCHROME2"
        image.BitsAllocated, image.BitsStored = 8 * stored.itemsize, bits_stored
        image.HighBit, image.PixelRepresentation = bits_stored - 1, int(stored.dtype.kind == "i")
        encoder = get_encoder(uid.UID(syntax))
        return encoder.encode(stored, **_options(image))

    return encode


def _options(image: Dataset) -> dict[str, int | str]:
    return {
        "rows": image.Rows,
        "columns": image.Columns,
        "samples_per_pixel": 1,
        "number_of_frames": 1,
        "bits_allocated": image.BitsAllocated,
        "bits_stored": image.BitsStored,
        "pixel_representation": image.PixelRepresentation,
        "photometric_interpretation": "MONOCHROME2",
    }


def _lossless_jpeg(predictor: int) -> Callable[[Stored, int], bytes]:
    def encode(stored: Stored, bits_stored: int) -> bytes:
        bits = _bits(stored, bits_stored)
        return _even(imagecodecs.jpeg8_encode(bits, lossless=True, bitspersample=bits_stored, predictor=predictor))

    return encode


def _lossy_jpeg(stored: Stored, bits_stored: int) -> bytes:
    return _even(imagecodecs.jpeg8_encode(_bits(stored, bits_stored), _JPEG_QUALITY, bitspersample=bits_stored))


def _lossy_jpeg_2000(stored: Stored, bits_stored: int) -> bytes:
    options = {"codecformat": "j2k", "reversible": False, "bitspersample": bits_stored}
    return _even(imagecodecs.jpeg2k_encode(stored, _JPEG_2000_SIGNAL_TO_NOISE_DB, **options))


def _high_throughput_jpeg_2000(reversible: bool) -> Callable[[Stored, int], bytes]:
    return lambda stored, _bits_stored: _even(imagecodecs.htj2k_encode(stored, reversible=reversible))


def _near_lossless(stored: Stored, bits_stored: int) -> bytes:
    return _even(bytes(jpeg_ls.encode_array(_bits(stored, bits_stored), lossy_error=NEAR)))


def _bits(stored: Stored, bits_stored: int) -> Stored:
    """The significant bits as unsigned values: these codecs know no sign, and DICOM stores the bits as they are."""
    unsigned = stored.view(np.dtype(f"u{stored.itemsize}"))
    return unsigned & unsigned.dtype.type(2**bits_stored - 1)


def _even(codestream: bytes) -> bytes:
    return codestream + b"\0" * (len(codestream) % 2)


ENCODERS: dict[str, Callable[[Stored, int], bytes]] = {
    uid.RLELossless: _pydicom(uid.RLELossless),
    uid.JPEG2000Lossless: _pydicom(uid.JPEG2000Lossless),
    uid.JPEG2000: _lossy_jpeg_2000,
    uid.HTJ2KLossless: _high_throughput_jpeg_2000(reversible=True),
    uid.HTJ2KLosslessRPCL: _high_throughput_jpeg_2000(reversible=True),
    uid.HTJ2K: _high_throughput_jpeg_2000(reversible=False),
    uid.JPEGLSLossless: _pydicom(uid.JPEGLSLossless),
    uid.JPEGLSNearLossless: _near_lossless,
    uid.JPEGLossless: _lossless_jpeg(predictor=6),
    uid.JPEGLosslessSV1: _lossless_jpeg(predictor=1),
    uid.JPEGBaseline8Bit: _lossy_jpeg,
    uid.JPEGExtended12Bit: _lossy_jpeg,
}
