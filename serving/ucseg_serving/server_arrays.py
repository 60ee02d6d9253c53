"""Arrays in and out of Triton's Python backend, by DLPack.

``Tensor(name, array)`` and ``as_numpy()`` of the backend that comes with Triton 2.51 read NumPy's own structures, which
NumPy 2 changed: an output then has 0 bytes. DLPack is the same for both. Remove when the oldest Triton that is
supported was built with pybind11 2.12 or newer.
"""

from __future__ import annotations

import ctypes
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

ServerObject: TypeAlias = Any
"""A module, class or object of Triton's Python backend, which exists inside the server only, without types."""


def array_from_tensor(tensor: ServerObject) -> npt.NDArray[Any]:
    """The values of a tensor: a read-only view, valid as long as its request."""
    array: npt.NDArray[Any] = np.from_dlpack(tensor)
    return array


def tensor_from_array(utils: ServerObject, name: str, array: npt.NDArray[Any]) -> ServerObject:
    """A tensor with these values; they are copied when the response is sent.

    Args:
        utils: The module ``triton_python_backend_utils``.
        name: Of the tensor.
        array: Any type and shape.
    """
    return utils.Tensor.from_dlpack(name, _Capsule(np.ascontiguousarray(array)))


class _Capsule:
    """An array whose DLPack capsule is silent when it goes.

    The backend marks a capsule as used with another name than the DLPack document says; NumPy's destructor does not
    know that name and prints an error. The memory is given back by whoever took the capsule, so none is needed.
    """

    def __init__(self, array: npt.NDArray[Any]) -> None:
        # The capsule of a read-only array would need a newer DLPack than the backend knows.
        self._array = array if array.flags.writeable else array.copy()

    def __dlpack__(self, stream: int | None = None) -> object:
        capsule = self._array.__dlpack__()
        set_destructor = ctypes.pythonapi.PyCapsule_SetDestructor
        set_destructor.argtypes = (ctypes.py_object, ctypes.c_void_p)
        set_destructor(capsule, None)
        return capsule

    def __dlpack_device__(self) -> tuple[int, int]:
        kind, number = self._array.__dlpack_device__()
        return int(kind), int(number)
