"""From a series of pictures or a clip to frames in the channels that a network takes, a few at a time."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType

import numpy as np

from ucseg_runtime.arrays import UInt8Array
from ucseg_runtime.dicom.colour import grey_from_rgb, palette_of, rgb_from_samples, samples_of
from ucseg_runtime.dicom.decoding import DecodeLimits
from ucseg_runtime.dicom.elements import UNREADABLE
from ucseg_runtime.dicom.frame_images import is_colour, native_frame_bytes
from ucseg_runtime.dicom.headers import quiet_pydicom, read_whole_header
from ucseg_runtime.dicom.instances import Instance, Series
from ucseg_runtime.dicom.stored_frames import StoredFrames
from ucseg_runtime.errors import PixelDataError


def colour_notes(series: Series, channels: int) -> tuple[str, ...]:
    """What is done to frames that have other channels than the network takes.

    Args:
        series: With frames.
        channels: Of the network, 1 or 3.
    """
    colour = sum(map(is_colour, series.instances))
    grey = len(series.instances) - colour
    if channels == 3 and grey:
        return (f"{_frames(grey)} in grey; the model takes colour, so red, green and blue are all the same.",)
    if channels == 1 and colour:
        return (f"{_frames(colour)} in colour; the model takes grey, so the luma is taken.",)
    return ()


class FrameReader:
    """Reads frames of a series; used with ``with``. No more than the frames asked for are held.

    Args:
        series: With frames, checked.
        channels: Of the network: 3 for red, green and blue, 1 for grey.
        limits: How much the decoding process may use.
    """

    def __init__(self, series: Series, channels: int, limits: DecodeLimits | None = None) -> None:
        self._series = series
        self._channels = channels
        self._stored = StoredFrames(limits or DecodeLimits())
        self._palettes: dict[Path, UInt8Array] = {}  # of the last file alone

    def __enter__(self) -> FrameReader:
        self._stored.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stored.__exit__(kind, value, trace)

    def read(self, frames: slice) -> UInt8Array:
        """Some frames, in order.

        Args:
            frames: Places in the series.

        Returns:
            uint8, C-contiguous, shape (channels, frames, rows, columns), 0 … 255; red, green, blue, or grey.

        Raises:
            PixelDataError: Pixels are missing, damaged, or cannot be decoded.
        """
        instances = self._series.instances[frames]
        read = np.empty((self._channels, len(instances), self._series.rows, self._series.columns), dtype=np.uint8)
        for number, instance in enumerate(instances):
            read[:, number] = np.moveaxis(self._frame(instance), -1, 0)
        return read

    def _frame(self, instance: Instance) -> UInt8Array:
        """One frame, shape (rows, columns, channels), or with one channel that is repeated."""
        stored = np.empty(native_frame_bytes(instance), dtype=np.uint8)
        photometric = self._stored.read(instance, stored)
        samples = samples_of(stored, instance)
        if instance.pixel_format.samples == 3:
            colours = rgb_from_samples(samples, photometric)
        elif photometric == "PALETTE COLOR":
            colours = self._palette(instance)[samples[..., 0]]
        else:
            return np.subtract(255, samples, dtype=np.uint8) if photometric == "MONOCHROME1" else samples
        return colours if self._channels == 3 else grey_from_rgb(colours)[..., None]

    def _palette(self, instance: Instance) -> UInt8Array:
        if instance.path not in self._palettes:
            with quiet_pydicom():
                try:
                    header = read_whole_header(instance)
                except UNREADABLE as error:
                    raise PixelDataError(
                        f"{instance.where} cannot be read any more ({type(error).__name__}).",
                        hint="Keep the input unchanged while it is being segmented.",
                    ) from error
                self._palettes = {instance.path: palette_of(header, instance)}
        return self._palettes[instance.path]


def _frames(count: int) -> str:
    return f"{count} frame is" if count == 1 else f"{count} frames are"
