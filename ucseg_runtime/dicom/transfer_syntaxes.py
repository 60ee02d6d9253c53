"""Which transfer syntaxes are read, by which decoder, and what is missing when one is not."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec

from pydicom import uid
from pydicom.uid import UID

NATIVE = frozenset({uid.ImplicitVRLittleEndian, uid.ExplicitVRLittleEndian})
"""Uncompressed, little endian: read as they are."""


@dataclass(frozen=True)
class DecoderChoice:
    """What decodes a compressed transfer syntax.

    Attributes:
        plugin: Name of the pydicom decoder plugin.
        needs: Pairs (module that must be importable, distribution that brings it).
    """

    plugin: str
    needs: tuple[tuple[str, str], ...]


_PYLIBJPEG = ("pylibjpeg", "pylibjpeg")
_RLE = DecoderChoice("pylibjpeg", (_PYLIBJPEG, ("rle", "pylibjpeg-rle")))
_OPENJPEG = DecoderChoice("pylibjpeg", (_PYLIBJPEG, ("openjpeg", "pylibjpeg-openjpeg")))
_CHARLS = DecoderChoice("pyjpegls", (("jpeg_ls", "pyjpegls"),))
_IMAGECODECS = DecoderChoice("imagecodecs", (("imagecodecs", "imagecodecs"),))

# GDCM also decodes most of these, but aborts the process on malformed JPEG; it is never chosen.
DECODERS: dict[str, DecoderChoice] = {
    uid.RLELossless: _RLE,
    uid.JPEG2000Lossless: _OPENJPEG,
    uid.JPEG2000: _OPENJPEG,
    uid.HTJ2KLossless: _OPENJPEG,
    uid.HTJ2KLosslessRPCL: _OPENJPEG,
    uid.HTJ2K: _OPENJPEG,
    uid.JPEGLSLossless: _CHARLS,
    uid.JPEGLSNearLossless: _CHARLS,
    uid.JPEGLossless: _IMAGECODECS,
    uid.JPEGLosslessSV1: _IMAGECODECS,
    uid.JPEGBaseline8Bit: _IMAGECODECS,
    uid.JPEGExtended12Bit: _IMAGECODECS,
}


LOSSY_JPEG = frozenset({uid.JPEGBaseline8Bit, uid.JPEGExtended12Bit})
"""Cosine transform of unsigned values; the standard has no other (PS3.5 8.2.1)."""
LOSSY_JPEG_2000 = frozenset({uid.JPEG2000, uid.HTJ2K})
"""May be without loss too, which the header then says."""
LOSSY = LOSSY_JPEG | LOSSY_JPEG_2000 | {uid.JPEGLSNearLossless}


def syntax_name(syntax: str) -> str:
    """Name and UID for a message, for instance ``RLE Lossless (1.2.840.10008.1.2.5)``."""
    name = UID(syntax).name
    return f"transfer syntax {syntax}" if name == syntax else f"{name} ({syntax})"


def missing_package(syntax: str) -> str | None:
    """Distribution to install before this compressed syntax can be decoded, or None when it can."""
    missing = (package for module, package in DECODERS[syntax].needs if find_spec(module) is None)
    return next(missing, None)
