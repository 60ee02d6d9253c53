"""From stored values to modality units."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from ucseg_runtime.arrays import Float32Array, Int16Array
from ucseg_runtime.dicom.instances import Instance, PixelFormat

_JUMP_OF_USUAL = 5.0
_SMALLEST_JUMP = 50.0  # modality units
_INT16 = np.iinfo(np.int16)

StoredArray = npt.NDArray[np.integer[Any]]  # Any: the precision is the file's, 8 to 32 bits


def stored_dtype(pixel_format: PixelFormat) -> np.dtype[np.integer[Any]]:  # Any: see StoredArray
    """Type of the stored values, little endian."""
    return np.dtype(f"<{'i' if pixel_format.signed else 'u'}{pixel_format.bits_allocated // 8}")


def without_unused_bits(frame: StoredArray, pixel_format: PixelFormat) -> StoredArray:
    """Stored values with everything above Bits Stored cut away; old files keep overlays there.

    Source: DICOM PS3.5 8.1.1.
    """
    unused = pixel_format.bits_allocated - pixel_format.bits_stored
    return (frame << unused) >> unused if unused else frame  # the right shift extends the sign of signed values


def within_bits_stored(frame: StoredArray, pixel_format: PixelFormat) -> StoredArray:
    """Stored values no lower and no higher than Bits Stored can hold.

    What a lossy codestream of more bits puts above the highest value would become the lowest one if it were cut.
    """
    lowest = -(2 ** (pixel_format.bits_stored - 1)) if pixel_format.signed else 0
    return frame.clip(lowest, lowest + 2**pixel_format.bits_stored - 1)


def modality_values(stored: StoredArray, instances: Sequence[Instance]) -> Int16Array | Float32Array:
    """Stored values × slope + intercept, each slice with its own rescale.

    Args:
        stored: Integers, shape (slices, rows, columns), in the order of `instances`; may be overwritten.
        instances: Where each slice comes from.

    Returns:
        Same shape, int16 when every result is an integer that fits, else float32.
    """
    rescales = [instance.rescale or (1.0, 0.0) for instance in instances]
    if all(slope.is_integer() and intercept.is_integer() for slope, intercept in rescales):
        as_integers = _int16_values(stored, rescales)
        if as_integers is not None:
            return as_integers
    voxels = np.empty(stored.shape, dtype=np.float32)
    for index, (slope, intercept) in enumerate(rescales):
        voxels[index] = stored[index].astype(np.float64) * slope + intercept
    return voxels


def rescale_jumps(voxels: Int16Array | Float32Array, instances: Sequence[Instance]) -> tuple[str, ...]:
    """Notes on neighbouring slices whose mean intensity jumps where their rescale changes.

    A scanner may rescale each slice differently, and the values then go on smoothly; where they do not, one of the two
    rescales is probably wrong.

    Args:
        voxels: Modality units, shape (slices, rows, columns).
        instances: Where each slice comes from, in this order.
    """
    changes = [index for index, (a, b) in enumerate(pairwise(instances)) if a.rescale != b.rescale]
    if not changes:
        return ()
    steps = np.abs(np.diff([float(plane.mean()) for plane in voxels]))
    usual = float(np.median(steps))
    return tuple(
        f"The mean intensity jumps by {steps[index]:.0f} between {instances[index].where} and "
        f"{instances[index + 1].where}, where Rescale Slope or Intercept changes (usually {usual:.0f})."
        for index in changes
        if steps[index] > max(_JUMP_OF_USUAL * usual, _SMALLEST_JUMP)
    )


def _int16_values(stored: StoredArray, rescales: Sequence[tuple[float, float]]) -> Int16Array | None:
    """Integer results in place where the type allows it, or None when one does not fit into int16."""
    for plane, (slope, intercept) in zip(stored, rescales, strict=True):
        ends = sorted((int(plane.min()) * int(slope) + int(intercept), int(plane.max()) * int(slope) + int(intercept)))
        if ends[0] < _INT16.min or ends[1] > _INT16.max:
            return None
    voxels = stored.view(np.int16) if stored.dtype.itemsize == 2 else np.empty(stored.shape, dtype=np.int16)
    for index, (slope, intercept) in enumerate(rescales):
        voxels[index] = stored[index].astype(np.int64) * int(slope) + int(intercept)
    return voxels
