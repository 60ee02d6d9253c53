"""A whole volume in one request: the runtime's own pipeline inside the server, over another model of it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import replace
from functools import partial

import numpy as np

from ucseg_runtime.backends.base import BackendInfo
from ucseg_runtime.backends.graphs import UNCERTAINTY
from ucseg_runtime.backends.triton_tensors import (
    AFFINE,
    DEVICE,
    ENGINE,
    ENGINE_VERSION,
    LABELS,
    PRECISION,
    PROVEN,
    VOLUME,
    VOLUME_FLOAT,
    VOLUME_MODEL,
)
from ucseg_runtime.config import InferenceOptions
from ucseg_runtime.decision import decide
from ucseg_runtime.errors import InputError, UcsegError, type_and_place
from ucseg_runtime.geometry import VolumeGeometry
from ucseg_runtime.manifest import ModelSpec
from ucseg_runtime.pipeline import segment_volume
from ucseg_runtime.preprocess import model_grid_of
from ucseg_runtime.segmentation import EngineInfo, Segmentation, measure, ready_to_write
from ucseg_runtime.volume import Volume
from ucseg_serving.bls_backend import BlsBackend, Caller, Route
from ucseg_serving.repository_model import repository_model
from ucseg_serving.server_arrays import ServerObject, array_from_tensor, tensor_from_array
from ucseg_serving.server_metrics import VolumeMetrics
from ucseg_serving.server_models import (
    IN_FLIGHT_PARAMETER,
    MEMORY_PARAMETER,
    TILES_PARAMETER,
    VOLUME_OVER_PARAMETER,
    answered,
    backend_utils,
    settings_from_args,
)

_BYTES_PER_SOURCE_VOXEL = 16
_BYTES_PER_MODEL_VOXEL_AND_CHANNEL = 8
_OTHER_MODEL_CHANNELS = 3  # the prepared volume, the uncertainty, the weights


class RequestCancelledError(UcsegError):
    """Nobody waits for the answer any more."""

    triton_code = "CANCELLED"
    default_code = "UCSEG-E198"


class VolumeModel:
    """What Triton calls: ``initialize`` once, ``execute`` with every request."""

    def initialize(self, args: Mapping[str, str]) -> None:
        """Read the manifest; the tiles' model need not be ready yet."""
        self._utils = backend_utils()
        settings = settings_from_args(args, VOLUME_MODEL)
        self._model = repository_model(settings.model_folder)
        self._spec = self._model.manifest
        tiles, in_flight = (int(settings.parameters[name]) for name in (TILES_PARAMETER, IN_FLIGHT_PARAMETER))
        senders = ThreadPoolExecutor(in_flight, thread_name_prefix="tiles")
        # What only the operator wants to know is counted after the answer: no client waits for it.
        self._counting = ThreadPoolExecutor(1, thread_name_prefix="counting")
        self._counted: list[Future[None]] = []
        self._route = Route(settings.parameters[VOLUME_OVER_PARAMETER], tiles, senders)
        self._memory_bytes = int(settings.parameters[MEMORY_PARAMETER])
        self._metrics = VolumeMetrics(self._utils)
        self._options = InferenceOptions(subnet_agreement=self._route.gives_logits)
        engine = EngineInfo(
            name=settings.parameters[ENGINE],
            version=settings.parameters[ENGINE_VERSION],
            precision=settings.parameters[PRECISION],
            device=settings.parameters[DEVICE],
            proven=settings.parameters[PROVEN] == "true",
        )
        self._info = BackendInfo(engine, batch_atol=0.0, parallel_tiles=tiles * in_flight, elsewhere=True)

    def execute(self, requests: Sequence[ServerObject]) -> list[ServerObject]:
        """Answer one request after the other; what cannot be segmented fails alone."""
        return [answered(self._utils, partial(self._answer, request)) for request in requests]

    def finalize(self) -> None:
        """Finish counting, and end the threads."""
        self._counting.shutdown()
        self._route.senders.shutdown()

    def _answer(self, request: ServerObject) -> list[ServerObject]:
        wait(self._counted)  # two volumes would take the memory of two
        try:
            volume = self._volume(request)
            check_volume(volume, self._spec, self._memory_bytes)
            result = segment_volume(volume, self._spec, self._backend(request), self._options)
            stored = ready_to_write(result)
        except RequestCancelledError:
            self._metrics.count("cancelled")
            raise
        except UcsegError as error:
            self._metrics.count("refused" if isinstance(error, InputError) else "failed")
            raise
        # A copy: the voxels go with the request.
        kept = replace(volume, voxels=volume.voxels.copy())
        self._counted = [self._counting.submit(self._count, kept, result, stored)]
        self._counted[0].add_done_callback(self._tell_defect)
        return [
            tensor_from_array(self._utils, LABELS, stored.label_map),
            tensor_from_array(self._utils, UNCERTAINTY, stored.uncertainty),
        ]

    def _count(self, volume: Volume, result: Segmentation, stored: Segmentation) -> None:
        if is_canary(volume):
            self._metrics.count("canary")
        else:
            self._metrics.observe(result, decide(volume, stored, measure(result), self._model))

    def _tell_defect(self, counted: Future[None]) -> None:
        if error := counted.exception():
            self._utils.Logger.log_error(f"a volume was not counted: {type_and_place(error)}")

    def _volume(self, request: ServerObject) -> Volume:
        found = {name: self._utils.get_input_tensor_by_name(request, name) for name in (VOLUME, VOLUME_FLOAT, AFFINE)}
        sent = [found[name] for name in (VOLUME, VOLUME_FLOAT) if found[name] is not None]
        if len(sent) != 1:
            raise InputError(
                f"the request has {len(sent)} of the tensors {VOLUME} (int16) and {VOLUME_FLOAT} (float32); "
                "expected one.",
                code="UCSEG-E126",
            )
        if found[AFFINE] is None:
            raise InputError(f"the request has no {AFFINE} (float64, 4 x 4).", code="UCSEG-E126")
        voxels = array_from_tensor(sent[0])
        z, y, x = voxels.shape
        # A copy of the affine: the request's own memory goes with the request.
        geometry = VolumeGeometry(array_from_tensor(found[AFFINE]).copy(), (z, y, x))
        return Volume(voxels, geometry, self._spec.modality)

    def _backend(self, request: ServerObject) -> BlsBackend:
        def check_wanted() -> None:
            if request.is_cancelled():
                raise RequestCancelledError("the request was cancelled.")

        return BlsBackend(self._utils, self._spec, self._info, self._route, Caller(check_wanted, request.trace()))


def is_canary(volume: Volume) -> bool:
    """Whether nothing is in a volume, as in those by which health checks see that the server works."""
    return bool(volume.voxels.min() == volume.voxels.max())


def check_volume(volume: Volume, spec: ModelSpec, memory_bytes: int) -> None:
    """Refuse a volume that would take the server's memory, or whose values are no intensities.

    Args:
        volume: As sent.
        spec: What the model fixes.
        memory_bytes: That one request may take.

    Raises:
        InputError: The estimate is over the limit, or voxels are not finite.
    """
    if volume.voxels.dtype == np.float32 and not np.isfinite(volume.voxels).all():
        raise InputError(f"{VOLUME_FLOAT} holds values that are not finite.", code="UCSEG-E122")
    model_voxels = math.prod(model_grid_of(volume.geometry, spec.preprocessing).shape)
    channels = spec.probability_channels + _OTHER_MODEL_CHANNELS
    needed = volume.voxels.size * _BYTES_PER_SOURCE_VOXEL + model_voxels * channels * _BYTES_PER_MODEL_VOXEL_AND_CHANNEL
    if needed > memory_bytes:
        raise InputError(
            f"a volume of {' x '.join(map(str, volume.geometry.shape))} voxels with this spacing needs about "
            f"{needed / 1e9:.1f} GB; this server allows {memory_bytes / 1e9:.1f} GB a request.",
            hint="Check the affine, send a part of the volume, or use tile mode.",
            code="UCSEG-E107",
        )
