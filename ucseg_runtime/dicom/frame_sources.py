"""The frames of pictures and clips as sources of outputs.

highdicom takes several frames only where they have places in a patient. Each frame is therefore given one that is made
up, along a line; `frame_seg_writer` takes the places away again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from pydicom.dataset import Dataset

from ucseg_runtime.dicom.frame_images import files_of
from ucseg_runtime.dicom.frame_scales import frame_times_s
from ucseg_runtime.dicom.instances import Series, stand_in_uid
from ucseg_runtime.dicom.reader import source_headers
from ucseg_runtime.timeline import FrameOrigin


def file_headers(series: Series) -> tuple[Dataset, ...]:
    """All readable attributes but the pixels of every file of a series of frames, in order.

    Raises:
        InputError: A file cannot be read any more, or changed since the scan.
    """
    files = tuple(replace(file, frame=0) for file in files_of(series))
    return tuple(source_headers(replace(series, instances=files)))


def frame_sources(series: Series, headers: Sequence[Dataset]) -> list[Dataset]:
    """A header for each frame as if it were a slice: frame n lies at z = −n mm, and is 1 mm a pixel.

    highdicom 0.28 begins with the greatest z, so that the first frame comes first.

    Args:
        series: With frames.
        headers: Of its files, see `file_headers`.
    """
    place = stand_in_uid("place of frames", series.series_uid)
    of_path = {file.path: header for file, header in zip(files_of(series), headers, strict=True)}
    sources = []
    for number, instance in enumerate(series.instances):
        source = Dataset()
        source.update(of_path[instance.path])
        source.FrameOfReferenceUID = place
        source.ImagePositionPatient = [0.0, 0.0, -float(number)]
        source.ImageOrientationPatient = [1.0, 0.0, 0.0, 0.0, 1.0, 0.0]
        source.PixelSpacing = [1.0, 1.0]
        source.SliceThickness = 1.0
        if instance.frame:
            source.ReferencedFrameNumber = instance.frame
        sources.append(source)
    return sources


def frame_origins(series: Series, headers: Sequence[Dataset]) -> tuple[FrameOrigin, ...]:
    """Which frame of which file each frame is, and when it was taken."""
    return tuple(
        FrameOrigin(number, frame, time_s)
        for number, (file, header) in enumerate(zip(files_of(series), headers, strict=True), start=1)
        for frame, time_s in enumerate(frame_times_s(header, file.pixel_format.frames), start=1)
    )
