"""Fused logits of evenly spread voxels of a case, taken while the runtime segments it, with the labels of those voxels.

A temperature acts on the fused logits of tiles, before they are averaged, so it is fitted there: probabilities on the
source grid have steps of 1 / 255, in which a certain error and a hopelessly certain one look alike.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ucseg_export.calibration.counts import calibration_region, has_complete_labels
from ucseg_runtime.arrays import BoolArray, Float32Array, Int64Array, UInt8Array
from ucseg_runtime.backends.base import Backend, BackendInfo, TileOutput
from ucseg_runtime.errors import BackendError
from ucseg_runtime.manifest import ModelSpec
from ucseg_runtime.preprocess import Prepared, preprocess, resample_nearest
from ucseg_runtime.segmentation import Segmentation
from ucseg_runtime.subnet_agreement import TileCores
from ucseg_runtime.tiling import Tile, plan_tiles
from ucseg_runtime.volume import Volume
from ucseg_training.data.case import Case

MOST_VOXELS = 30_000
"""Of one case; neighbouring voxels say nearly the same."""

_MOST_TAKEN = 400_000
"""Of one case before it is known which lie in the region."""

_SEED = 0


@dataclass(frozen=True, eq=False)
class LogitSample:
    """Some voxels of the model grid of one case.

    Attributes:
        patient: Who it is of; part of no output.
        logits: float32, shape (voxels, K), fused, as the activation sees them.
        labels: uint8, shape (voxels,), 0 … K − 1.
    """

    patient: str
    logits: Float32Array
    labels: UInt8Array


class LogitSampler:
    """A backend that passes tiles on to another one and keeps the fused logits of voxels spread evenly at random.

    Args:
        backend: Gives logits.
        volume: The tiles come from it, in the order of its plan, as `segment_volume` sends them.
        spec: The model.
        skip_air: As `segment_volume` is told.
        temperature: That the model has already; the logits are divided by it, as the model does.
    """

    def __init__(
        self, backend: Backend, volume: Volume, spec: ModelSpec, *, skip_air: bool, temperature: float = 1.0
    ) -> None:
        prepared = preprocess(volume, spec.preprocessing, channels=spec.channels, skip_air=skip_air)
        self._grid = _Grid(prepared)
        plan = plan_tiles(prepared.spatial_shape, spec.tiling, prepared.region)
        self._backend, self._cores, self._tiles = backend, TileCores(plan), iter(plan.tiles)
        share = min(1.0, _MOST_TAKEN / np.prod(prepared.spatial_shape))
        generator = np.random.default_rng(_SEED)
        self._taken: BoolArray = generator.random(prepared.spatial_shape, dtype=np.float32) < share
        self._temperature = np.float32(temperature)
        self._logits: list[Float32Array] = []
        self._places: list[Int64Array] = []

    @property
    def info(self) -> BackendInfo:
        """See `Backend.info`."""
        return self._backend.info

    def infer(self, tiles: Float32Array, *, with_logits: bool = False) -> TileOutput:
        """See `Backend.infer`; the logits are returned too."""
        output = self._backend.infer(tiles, with_logits=True)
        if output.fused_logits is None:
            raise BackendError("the engine returned no fused logits.")
        for logits in output.fused_logits:
            self._take(next(self._tiles), logits)
        return output

    def sample(self, case: Case, segmentation: Segmentation) -> LogitSample:
        """What was taken inside the region, at most `MOST_VOXELS`; nothing where the labels are partial.

        Args:
            case: Its voxels are those of the volume.
            segmentation: Of the whole volume.
        """
        region = calibration_region(segmentation.label_map, case.label_map, case.geometry.spacing_mm)
        if not has_complete_labels(case, len(segmentation.classes)):
            region[...] = False
        places = np.concatenate(self._places)
        inside = np.flatnonzero(self._grid.of_source(region).ravel()[places])
        inside = inside[:: max(1, -(-len(inside) // MOST_VOXELS))]
        labels = self._grid.of_source(case.label_map).ravel()[places[inside]]
        logits: Float32Array = np.concatenate(self._logits)[inside] / self._temperature
        return LogitSample(case.name, logits, labels)

    def _take(self, tile: Tile, logits: Float32Array) -> None:
        core = self._cores.of(tile)
        start = [side.start + first for side, first in zip(core, tile.start, strict=True)]
        box = tuple(slice(low, low + side.stop - side.start) for low, side in zip(start, core, strict=True))
        z, y, x = core
        index = np.nonzero(self._taken[box])
        of_core = logits[:, z, y, x]
        self._logits.append(of_core[:, index[0], index[1], index[2]].T)
        whole = tuple(axis + low for axis, low in zip(index, start, strict=True))
        self._places.append(np.ravel_multi_index(whole, self._taken.shape).astype(np.int64))


@dataclass(frozen=True, eq=False)
class _Grid:
    """The model grid of a volume."""

    prepared: Prepared

    def of_source(self, voxels: UInt8Array | BoolArray) -> UInt8Array:
        """Each voxel with the value of the source voxel that holds its centre, shape (z, y, x) of the model grid."""
        turned = self.prepared.orientation.apply(voxels.view(np.uint8))
        return resample_nearest(turned, self.prepared.spatial_shape)
