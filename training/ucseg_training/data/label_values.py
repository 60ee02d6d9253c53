"""What stored label values mean: labels of the classes, checked."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ucseg_runtime.arrays import UInt8Array
from ucseg_runtime.errors import InputError
from ucseg_training.data.dataset_spec import DatasetSpec, ThresholdLabels, ValueLabels

_NAMED = 5


def labels_from_values(values: npt.NDArray[np.generic], spec: DatasetSpec) -> UInt8Array:
    """Labels of the classes, uint8, same shape.

    Args:
        values: As stored, any real type.
        spec: What they mean.

    Raises:
        InputError: A value is not finite, not whole where it has to be, or stands for no class; or a mask that should
            reach 255 holds nothing but small values.
    """
    if values.dtype.kind not in "biuf":
        raise InputError(f"the label holds {values.dtype}; expected numbers.")
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        raise InputError("the label holds values that are not finite.")
    if isinstance(spec.labels, ThresholdLabels):
        return _above(values, spec.labels.above)
    return _mapped(values, spec.labels, len(spec.classes))


def _above(values: npt.NDArray[np.generic], threshold: float) -> UInt8Array:
    mask = np.asarray(values, dtype=np.float64) > threshold
    greatest = float(np.asarray(values, dtype=np.float64).max())
    if not mask.any() and greatest > 0:
        raise InputError(
            f"no value of the label is above {threshold:g}; the greatest is {greatest:g}.",
            hint="Describe the labels by their values instead of a threshold.",
        )
    return mask.astype(np.uint8)


def _mapped(values: npt.NDArray[np.generic], rule: ValueLabels, classes: int) -> UInt8Array:
    stored = np.asarray(values, dtype=np.int64)
    if values.dtype.kind == "f" and (stored != values).any():
        raise InputError("the label holds values that are not whole numbers.")
    label_of = {0: 0, **(rule.values or {label: label for label in range(1, classes + 1)})}
    found = [int(value) for value in np.unique(stored)]
    unknown = [value for value in found if value not in label_of]
    if unknown:
        listed = ", ".join(map(str, unknown[:_NAMED])) + (" …" if len(unknown) > _NAMED else "")
        raise InputError(
            f"the label holds values that belong to no class: {listed}; expected {', '.join(map(str, label_of))}.",
            hint="Correct the label, or describe its values in the data set's description.",
        )
    result = np.zeros(stored.shape, dtype=np.uint8)
    for value in found:
        result[stored == value] = label_of[value]
    return result
