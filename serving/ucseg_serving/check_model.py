"""The first step of the ensembles as a Triton model: nothing that a client can send wrong reaches the subnets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

import numpy as np

from ucseg_runtime.arrays import Float32Array
from ucseg_runtime.backends.graphs import IMAGE
from ucseg_runtime.backends.triton_tensors import FINITE_IMAGE
from ucseg_runtime.errors import InputError
from ucseg_serving.server_arrays import ServerObject, array_from_tensor, tensor_from_array
from ucseg_serving.server_models import answered, backend_utils


class CheckModel:
    """What Triton calls: ``initialize`` once, ``execute`` with every batch."""

    def initialize(self, args: Mapping[str, str]) -> None:
        """Nothing is loaded."""
        self._utils = backend_utils()

    def execute(self, requests: Sequence[ServerObject]) -> list[ServerObject]:
        """Answer requests with their own tiles, or with the error that these are not finite."""
        return [answered(self._utils, partial(self._answer, request)) for request in requests]

    def _answer(self, request: ServerObject) -> list[ServerObject]:
        tiles = array_from_tensor(self._utils.get_input_tensor_by_name(request, IMAGE))
        refuse_not_finite(tiles)
        return [tensor_from_array(self._utils, FINITE_IMAGE, tiles)]


def refuse_not_finite(tiles: Float32Array) -> None:
    """Check tiles of any shape.

    Raises:
        InputError: A value is infinite or NaN.
    """
    if not np.isfinite(tiles).all():
        raise InputError(f"{IMAGE} holds values that are not finite.", code="UCSEG-E126")
