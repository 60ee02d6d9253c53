"""pydicom decoder plugin for the JPEG family (lossless and lossy Huffman) on top of imagecodecs.

The other decoders of these transfer syntaxes are GPL-licensed or abort the process on malformed data. The three names
without underscore are pydicom's contract for plugins.
"""

from __future__ import annotations

from importlib.util import find_spec

from pydicom import uid
from pydicom.pixels.decoders.base import DecodeRunner, get_decoder

PLUGIN_NAME = "imagecodecs"
DECODER_DEPENDENCIES = {
    syntax: ("imagecodecs",)
    for syntax in (uid.JPEGLossless, uid.JPEGLosslessSV1, uid.JPEGBaseline8Bit, uid.JPEGExtended12Bit)
}


def is_available(syntax: str) -> bool:
    """Whether imagecodecs is installed and this syntax is one of its family."""
    return syntax in DECODER_DEPENDENCIES and find_spec("imagecodecs") is not None


def decode_frame(codestream: bytes, runner: DecodeRunner) -> bytes:
    """Samples of one frame, little endian, in as many bytes as the precision of the codestream needs."""
    import imagecodecs

    if runner.transfer_syntax in (uid.JPEGLossless, uid.JPEGLosslessSV1):
        frame = imagecodecs.jpegsof3_decode(codestream)
    else:
        # The same on both sides, so that the colours stay those of the codestream: pydicom finds out which they are.
        unchanged = "YCBCR" if runner.samples_per_pixel == 3 else None
        frame = imagecodecs.jpeg8_decode(codestream, colorspace=unchanged, outcolorspace=unchanged)
    if frame.size != runner.rows * runner.columns * runner.samples_per_pixel:
        raise ValueError("the codestream has another size than Rows × Columns")
    runner.set_option("bits_allocated", frame.dtype.itemsize * 8)
    samples: bytes = frame.astype(frame.dtype.newbyteorder("<"), copy=False).tobytes()
    return samples


def register() -> None:
    """Offer this plugin to pydicom in the running process."""
    for syntax in DECODER_DEPENDENCIES:
        decoder = get_decoder(syntax)
        if PLUGIN_NAME not in decoder.available_plugins:
            decoder.add_plugin(PLUGIN_NAME, (__name__, decode_frame.__name__))
