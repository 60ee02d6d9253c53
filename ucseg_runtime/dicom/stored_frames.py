"""Stored values of slices and frames, one at a time, compressed or not."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from io import BufferedReader
from pathlib import Path
from types import TracebackType

import numpy as np
import numpy.typing as npt

from ucseg_runtime.dicom.decoding import DecodeLimits, DecoderProcess
from ucseg_runtime.dicom.encapsulation import Item, codestream, fragments_of_frames
from ucseg_runtime.dicom.headers import open_unchanged
from ucseg_runtime.dicom.instances import Instance
from ucseg_runtime.dicom.transfer_syntaxes import NATIVE
from ucseg_runtime.errors import PixelDataError


class StoredFrames:
    """Reads frames of any number of files; used with ``with``.

    Compressed frames are decoded in a child process with limits, because native decoders can die on malformed data. It
    is started with the first of them.

    Args:
        limits: How much the child process may use.
    """

    def __init__(self, limits: DecodeLimits) -> None:
        self._limits = limits
        self._stack = ExitStack()
        self._decoders: list[DecoderProcess] = []  # at most one
        self._fragments: dict[Path, list[list[Item]]] = {}  # of the last file alone

    def __enter__(self) -> StoredFrames:
        return self

    def __exit__(
        self, _type: type[BaseException] | None, _value: BaseException | None, _trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def read(self, instance: Instance, out: npt.NDArray[np.generic]) -> str:
        """Write the stored values of one frame into `out`.

        Args:
            instance: A file of one image, or a frame.
            out: C-contiguous, as large as the frame. Native values come as they are stored; decoded ones with the
                samples of one pixel together.

        Returns:
            Photometric interpretation of what was written.

        Raises:
            PixelDataError: Pixels are missing, damaged, or cannot be decoded.
        """
        if instance.transfer_syntax in NATIVE:
            _read_native(instance, out)
            return instance.pixel_format.photometric
        if instance.path not in self._fragments:
            self._fragments = {instance.path: _fragments(instance)}
        fragments = self._fragments[instance.path][max(instance.frame - 1, 0)]
        with _opened_at_pixels(instance) as stream:
            encoded = codestream(stream, fragments, instance)
        return self._decoder().decode(encoded, instance, _bytes_of(out))

    def _decoder(self) -> DecoderProcess:
        if not self._decoders:
            self._decoders.append(self._stack.enter_context(DecoderProcess(self._limits)))
        return self._decoders[0]


@contextmanager
def opened(instance: Instance) -> Iterator[BufferedReader]:
    """The file of an instance, open at its start.

    Raises:
        PixelDataError: It cannot be opened or read, or changed since the scan.
    """
    try:
        stream = open_unchanged(instance)
    except OSError as error:
        raise PixelDataError(
            f"{instance.where} cannot be read any more ({type(error).__name__}).",
            hint="Keep the input unchanged while it is being segmented.",
        ) from error
    try:
        with stream:
            yield stream
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else type(error).__name__
        raise PixelDataError(
            f"{instance.where}: its pixels cannot be read: {reason}.", hint="Copy the series from its source again."
        ) from error


@contextmanager
def _opened_at_pixels(instance: Instance) -> Iterator[BufferedReader]:
    if instance.pixels is None:
        raise PixelDataError(f"{instance.where} ends without pixel data.", hint="Transfer the series again.")
    with opened(instance) as stream:
        stream.seek(instance.pixels.offset)
        yield stream


def _read_native(instance: Instance, out: npt.NDArray[np.generic]) -> None:
    with _opened_at_pixels(instance) as stream:
        stream.seek(max(instance.frame - 1, 0) * out.nbytes, os.SEEK_CUR)
        if stream.readinto(_bytes_of(out)) != out.nbytes:
            raise PixelDataError(f"{instance.where} ends within its pixel data.", hint="Transfer the series again.")


def _fragments(instance: Instance) -> list[list[Item]]:
    with _opened_at_pixels(instance) as stream:
        return fragments_of_frames(stream, instance)


def _bytes_of(plane: npt.NDArray[np.generic]) -> memoryview:
    return plane.data.cast("B")
