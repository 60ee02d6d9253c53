"""PNG, JPEG and other pictures of 8 bits, and masks drawn on them."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt

from ucseg_runtime.errors import InputError
from ucseg_training.data.dataset_spec import DatasetSpec, ThresholdLabels
from ucseg_training.data.label_grid import straight_geometry
from ucseg_training.data.source import SourceImage, StoredLabel, reading

_UNIT_SPACING = (1.0, 1.0, 1.0)
_UNREADABLE = (OSError, cv2.error, MemoryError)


def read_picture_image(path: Path, spec: DatasetSpec) -> SourceImage:
    """Red, green and blue where the network takes three channels, else grey; values 0 … 255, one slice, 1 mm.

    Pixels are taken as they are stored; a camera's note to turn the picture is not followed, as masks have none.

    Raises:
        InputError: Not a readable picture of 8 bits.
    """
    colour = spec.channels == 3
    flags = (cv2.IMREAD_COLOR if colour else cv2.IMREAD_GRAYSCALE) | cv2.IMREAD_IGNORE_ORIENTATION | cv2.IMREAD_ANYDEPTH
    pixels = _decode(path, "its image", flags)
    if pixels.dtype != np.uint8:
        raise InputError(f"its image holds {pixels.dtype}; expected a picture of 8 bits.")
    planes = pixels[..., ::-1].transpose(2, 0, 1) if colour else pixels[None]
    voxels = np.ascontiguousarray(planes, dtype=np.float32)[:, None]
    return SourceImage(voxels, straight_geometry((1, *pixels.shape[:2]), _UNIT_SPACING))


def read_picture_label(path: Path, spec: DatasetSpec) -> StoredLabel:
    """The stored values, shape (1, y, x).

    Raises:
        InputError: Not a readable picture, or a coloured one whose values are to be labels.
    """
    if isinstance(spec.labels, ThresholdLabels):
        pixels = _decode(path, "its label", cv2.IMREAD_GRAYSCALE | cv2.IMREAD_IGNORE_ORIENTATION)
    else:
        pixels = _decode(path, "its label", cv2.IMREAD_UNCHANGED)
    if pixels.ndim == 3:
        if (pixels[..., :3] != pixels[..., :1]).any():
            raise InputError("its label is a coloured picture; expected grey values that are labels.")
        pixels = pixels[..., 0]
    return StoredLabel(pixels[None], straight_geometry((1, *pixels.shape), _UNIT_SPACING))


def _decode(path: Path, what: str, flags: int) -> npt.NDArray[np.generic]:
    with reading(what, *_UNREADABLE):
        pixels: npt.NDArray[np.generic] | None = cv2.imdecode(np.frombuffer(path.read_bytes(), dtype=np.uint8), flags)
    if pixels is None:
        raise InputError(f"{what} is not a picture, or a damaged one.", hint="Check the file, or leave the case out.")
    return pixels
