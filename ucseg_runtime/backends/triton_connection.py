"""What the client needs of a connection to a Triton server, whatever the protocol."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from ucseg_runtime.backends.triton_tensors import NUMPY_TYPES, DataType, TritonTensor
from ucseg_runtime.errors import BackendError, InputError, UcsegError

AnyArray: TypeAlias = npt.NDArray[np.generic]

MOST_MESSAGE_BYTES = 2**31 - 1
"""Protocol Buffers, and so gRPC, carry no more."""

_REPEATABLE = (
    "stub process",
    "not healthy",
    "exceeds maximum queue size",
    "request timeout expired",
    "has no available versions",  # of a server that stops, and has let go of its models
)
_CODE = re.compile(r"(UCSEG-E\d{3}) (.*)", re.DOTALL)


class TransientError(Exception):
    """A request failed in a way that repeating it may cure; inference changes nothing, so repeating is harmless.

    Args:
        message: What happened.
        timed_out: Whether no answer came in time.
    """

    def __init__(self, message: str, *, timed_out: bool = False) -> None:
        super().__init__(message)
        self.timed_out = timed_out


@dataclass(frozen=True, eq=False)
class Call:
    """One inference request.

    Attributes:
        model: Name of the Triton model.
        inputs: Name to array.
        outputs: What is asked for: name, type and shape with all sides.
    """

    model: str
    inputs: Mapping[str, AnyArray]
    outputs: tuple[TritonTensor, ...]


@dataclass(frozen=True)
class ModelDescription:
    """What a server says about one of its models.

    Attributes:
        inputs: Tensors without the batch axis; None for a side that varies.
        outputs: The same.
        max_batch: Most tiles of a request; 0 for a model without a batch axis.
        parameters: What the repository says of the model.
    """

    inputs: tuple[TritonTensor, ...]
    outputs: tuple[TritonTensor, ...]
    max_batch: int
    parameters: Mapping[str, str]


class Connection(Protocol):
    """A connection to one server. May be used by several threads."""

    def describe(self, model: str, timeout_s: float) -> ModelDescription:
        """Ask for the configuration of a model.

        Raises:
            TransientError: Repeating may help.
            BackendError: It will not.
        """
        ...

    def infer(self, call: Call, timeout_s: float) -> Mapping[str, AnyArray]:
        """Run one request.

        Raises:
            TransientError: Repeating may help.
            InputError: The server refuses what was sent.
            BackendError: The server failed, or its answer is not what was asked for.
        """
        ...

    def close(self) -> None:
        """Give the connection back."""
        ...


def description_from_config(config: Any) -> ModelDescription:  # noqa: ANN401  # generated protobuf classes carry no types
    """From Triton's ``ModelConfig`` message."""
    names: dict[str, DataType] = {name: name for name in NUMPY_TYPES}
    data_type = type(config).DESCRIPTOR.fields_by_name["input"].message_type.fields_by_name["data_type"].enum_type

    def tensors(fields: Any) -> tuple[TritonTensor, ...]:  # noqa: ANN401  # as above
        found = []
        for field in fields:
            name = names.get(data_type.values_by_number[field.data_type].name.removeprefix("TYPE_"))
            if name is None:
                raise BackendError(f"{config.name} has the tensor {field.name} of a type that ucseg does not know.")
            shape = tuple(None if side < 0 else int(side) for side in field.dims)
            found.append(TritonTensor(field.name, name, shape, bool(getattr(field, "optional", False))))
        return tuple(found)

    parameters = {name: str(value.string_value) for name, value in config.parameters.items()}
    return ModelDescription(tensors(config.input), tensors(config.output), int(config.max_batch_size), parameters)


def failure(message: str, *, repeatable: bool, timed_out: bool = False) -> TransientError | UcsegError:
    """The error for what a server answered instead of a result.

    Args:
        message: The server's; what ucseg's own models said comes back as the error that they raised.
        repeatable: Whether the status of the answer alone says that repeating may help.
        timed_out: Whether no answer came in time.
    """
    message = " ".join(message.split())
    if any(words in message.lower() for words in _REPEATABLE):
        return TransientError(message)
    own = _CODE.search(message)
    if own is not None:
        code, text = own.groups()
        kind = InputError if code < "UCSEG-E130" else BackendError
        return kind(f"the server says: {text}", code=code)
    if repeatable:
        return TransientError(message, timed_out=timed_out)
    return BackendError(f"the server refused the request: {message}.")


def check_answer(call: Call, answer: Mapping[str, AnyArray | None]) -> dict[str, AnyArray]:
    """Every output that was asked for.

    Raises:
        BackendError: One is missing, or of another type or shape.
    """
    checked = {}
    for tensor in call.outputs:
        values = answer.get(tensor.name)
        expected = NUMPY_TYPES[tensor.data_type]
        if values is None or values.dtype != expected or values.shape != tensor.shape:
            found = "nothing" if values is None else f"{values.dtype} of shape {values.shape}"
            raise BackendError(
                f"{call.model} answered {tensor.name} with {found}; expected {expected} of shape {tensor.shape}."
            )
        checked[tensor.name] = values
    return checked


def tensor_bytes(tensor: TritonTensor) -> int:
    """Size of a tensor whose sides are all known."""
    return NUMPY_TYPES[tensor.data_type].itemsize * math.prod(side or 0 for side in tensor.shape)


def check_size(call: Call) -> None:
    """Refuse a request or an answer that no message can carry.

    Raises:
        InputError: The message says how large it is.
    """
    sent = sum(values.nbytes for values in call.inputs.values())
    received = sum(tensor_bytes(tensor) for tensor in call.outputs)
    if max(sent, received) > MOST_MESSAGE_BYTES:
        raise InputError(
            f"a request of {sent / 1e9:.1f} GB and its answer of {received / 1e9:.1f} GB: a message holds 2.1 GB.",
            hint="Use tile mode.",
            code="UCSEG-E107",
        )
