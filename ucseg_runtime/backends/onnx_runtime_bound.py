"""ONNX Runtime with inputs and outputs bound to memory of a device, so that nothing passes through the host unasked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from ucseg_runtime.arrays import Float32Array
from ucseg_runtime.backends.graphs import Signature
from ucseg_runtime.backends.onnx_runtime import OnnxRuntime, signature_of
from ucseg_runtime.backends.session import Tensor
from ucseg_runtime.errors import BackendError


@dataclass(frozen=True)
class Place:
    """Where tensors lie.

    Attributes:
        kind: ``cpu`` or ``cuda``, as ONNX Runtime calls them.
        number: Of the device.
    """

    kind: Literal["cpu", "cuda"]
    number: int = 0


class BoundTensor:
    """A result where ONNX Runtime computed it; valid until the session that made it runs again.

    Attributes:
        value: Its own handle.
    """

    def __init__(self, value: Any) -> None:  # noqa: ANN401  # untyped package
        self.value = value

    def __array__(self, dtype: npt.DTypeLike | None = None, copy: bool | None = None) -> Float32Array:
        """See `DeviceTensor`; copies, whatever `copy` says, since the next run overwrites the original."""
        host: Float32Array = np.array(self.value.numpy(), dtype=dtype or np.float32)
        return host


class BoundSession:
    """One prepared graph with memory for one tile of every input and output on a device.

    Args:
        runtime: Loaded package.
        session: One of its sessions.
        place: Where its provider computes.

    Raises:
        BackendError: The memory cannot be had.
    """

    def __init__(self, runtime: OnnxRuntime, session: Any, place: Place) -> None:  # noqa: ANN401  # untyped package
        self._runtime, self._session, self._place = runtime, session, place
        self._signature = signature_of(session)
        try:
            self._binding: Any = session.io_binding()
            self._inputs = {name: self._memory(shape) for name, shape in self._signature.inputs.items()}
            self._outputs = {name: self._memory(shape) for name, shape in self._signature.outputs.items()}
            for name, value in self._outputs.items():
                self._binding.bind_ortvalue_output(name, value)
        except runtime.failures as error:
            raise BackendError("onnxruntime has no memory for a tile on the device.") from error

    @property
    def signature(self) -> Signature:
        """See `Session.signature`."""
        return self._signature

    def another(self) -> BoundSession:
        """See `Session.another`."""
        return BoundSession(self._runtime, self._session, self._place)

    def run(self, tensors: Mapping[str, Tensor]) -> dict[str, BoundTensor]:
        """See `Session.run`. Results of another bound session are taken from where they lie."""
        try:
            for name, memory in self._inputs.items():
                self._binding.bind_ortvalue_input(name, self._placed(tensors[name], memory))
            # Returns when the device is done, so that another session may read the results.
            self._session.run_with_iobinding(self._binding)
        except self._runtime.failures as error:
            raise BackendError("onnxruntime failed on a tile.") from error
        return {name: BoundTensor(value) for name, value in self._outputs.items()}

    def close(self) -> None:
        """See `Session.close`; the graph's own memory goes with its last session."""
        self._binding.clear_binding_inputs()
        self._binding.clear_binding_outputs()
        self._inputs.clear()
        self._outputs.clear()

    def _memory(self, shape: tuple[int | None, ...]) -> Any:  # noqa: ANN401  # untyped package
        """Of one tile: whatever side may vary is 1."""
        sides = [1 if side is None else side for side in shape]
        make = self._runtime.package.OrtValue.ortvalue_from_shape_and_type
        return make(sides, np.float32, self._place.kind, self._place.number)

    def _placed(self, tensor: Tensor, memory: Any) -> Any:  # noqa: ANN401  # untyped package
        if isinstance(tensor, BoundTensor):
            return tensor.value
        memory.update_inplace(np.ascontiguousarray(tensor, dtype=np.float32))
        return memory
