"""Agreement of the subnets: the numbers of a slow reference that puts both label maps together voxel by voxel."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from tests.model_phantom import ModelPhantom
from tests.volume_phantom import OBLIQUE, STRAIGHT, centred_geometry, volume_of
from ucseg_runtime.arrays import Float32Array
from ucseg_runtime.backends import Backend, BackendInfo, TileOutput, open_backend
from ucseg_runtime.config import InferenceOptions
from ucseg_runtime.errors import BackendError
from ucseg_runtime.manifest import Manifest
from ucseg_runtime.model_folder import Model, load_model
from ucseg_runtime.pipeline import segment_volume
from ucseg_runtime.preprocess import model_grid_of
from ucseg_runtime.segmentation import ClassAgreement, EngineInfo
from ucseg_runtime.subnet_agreement import AgreementCounter
from ucseg_runtime.tiling import TilePlan, plan_tiles

PHANTOM = ModelPhantom(tile_shape=(6, 9, 7))
OPTIONS = InferenceOptions(engine="openvino", precision="f32", threads=1, gate=False)
COUNTED = replace(OPTIONS, subnet_agreement=True)
VOLUME = volume_of(centred_geometry((14, 40, 36), (3.0, 1.5, 1.2), OBLIQUE))


class NoisySubnets:
    """Passes a backend on, with logits of the subnets that change from tile to tile, so that overlaps disagree."""

    def __init__(self, backend: Backend) -> None:
        self.info = BackendInfo(EngineInfo("noisy", "0", "f32", "CPU"), batch_atol=0.0, parallel_tiles=3)
        self.seen: list[TileOutput] = []
        self._backend = backend
        self._noise = np.random.default_rng(0)

    def infer(self, tiles: Float32Array, *, with_logits: bool = False) -> TileOutput:
        output = self._backend.infer(tiles, with_logits=with_logits)
        if not with_logits:
            return output
        assert output.logits_a is not None
        shape = output.logits_a.shape
        noisy = [output.logits_a + self._noise.normal(0.0, 6.0, shape).astype(np.float32) for _ in "ab"]
        changed = replace(output, logits_a=noisy[0], logits_b=noisy[1])
        self.seen.append(changed)
        return changed


@pytest.fixture(scope="module", params=["softmax", "sigmoid"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Model:
    centres = (0.0, 0.5, 1.0) if request.param == "softmax" else (0.0, 0.5)
    phantom = replace(PHANTOM, activation=request.param, centres=centres)
    return load_model(phantom.write(tmp_path_factory.mktemp("models") / request.param))


def nearest_starts(plan: TilePlan, axis: int) -> list[int]:
    """For every voxel along an axis the start of the tile with the nearest centre; of two as near the later one."""
    starts = sorted({tile.start[axis] for tile in plan.tiles}, reverse=True)
    middle = (plan.tiling.tile_shape[axis] - 1) / 2
    return [min(starts, key=lambda start: abs(voxel - (start + middle))) for voxel in range(plan.spatial_shape[axis])]


def reference(plan: TilePlan, logits: list[tuple[Float32Array, Float32Array]], spec: Manifest) -> list[float]:
    """Dice of every class from two whole label maps, put together voxel by voxel, with NumPy's own argmax."""
    nearest = [nearest_starts(plan, axis) for axis in range(3)]
    by_start = {tile.start: pair for tile, pair in zip(plan.tiles, logits, strict=True)}
    maps = np.zeros((2, *plan.spatial_shape), dtype=np.int64)
    for voxel in np.ndindex(plan.spatial_shape):
        start = tuple(axis[place] for axis, place in zip(nearest, voxel, strict=True))
        inside = tuple(place - first for place, first in zip(voxel, start, strict=True))
        for subnet, values in enumerate(by_start[start]):
            column = values[(slice(None), *inside)]
            maps[(subnet, *voxel)] = column.argmax() if spec.activation == "softmax" else column[1] > 0
    a, b = maps
    return [2 * ((a == k) & (b == k)).sum() / ((a == k).sum() + (b == k).sum()) for k in range(1, spec.num_classes)]


@pytest.mark.parametrize("spatial_shape", [(15, 16, 18), (6, 9, 7), (4, 21, 5)], ids=str)
@pytest.mark.parametrize("overlap", [0.0, 0.3, 0.5, 0.8])
def test_dice_is_that_of_whole_label_maps_by_the_most_central_tile(
    model: Model, spatial_shape: tuple[int, int, int], overlap: float
) -> None:
    spec = model.manifest
    plan = plan_tiles(spatial_shape, spec.tiling.model_copy(update={"overlap": overlap}))
    random = np.random.default_rng(1)
    sides = (len(plan.tiles), 2, spec.num_classes, *spec.tiling.tile_shape)
    logits = random.normal(size=sides).astype(np.float32)
    counter = AgreementCounter(plan, spec)
    first = 0
    for batch in plan.batches(4):
        part = logits[first : first + len(batch)]
        counter.add(batch, TileOutput(part[:, 0, :1], part[:, 0, :1], part[:, 0], part[:, 1]))
        first += len(batch)
    found = counter.classes()
    assert [item.dice for item in found] == reference(plan, [(pair[0], pair[1]) for pair in logits], spec)
    assert all(0.0 < item.dice < 1.0 for item in found), "the subnets must agree on some voxels and differ on others"
    if spec.activation == "sigmoid":
        return
    assert sum(item.voxels_a for item in found) < np.prod(spatial_shape), "background is no class"


def test_cores_of_the_tiles_are_a_partition_of_the_volume(model: Model) -> None:
    spec = model.manifest
    plan = plan_tiles((15, 20, 18), spec.tiling)
    counter = AgreementCounter(plan, spec)
    sure = np.zeros((1, spec.num_classes, *spec.tiling.tile_shape), dtype=np.float32)
    sure[:, 1] = 5.0  # label 1 everywhere, from both
    for tile in plan.tiles:
        counter.add((tile,), TileOutput(sure, sure, sure, sure))
    first = counter.classes()[0]
    assert (first.voxels_a, first.voxels_b, first.voxels_both, first.dice) == (5400, 5400, 5400, 1.0)


def test_a_class_that_neither_subnet_finds_has_no_dice(model: Model) -> None:
    spec = model.manifest
    plan = plan_tiles(spec.tiling.tile_shape, spec.tiling)
    counter = AgreementCounter(plan, spec)
    background = np.zeros((1, spec.num_classes, *spec.tiling.tile_shape), dtype=np.float32)  # wins ties
    counter.add(plan.tiles, TileOutput(background, background, background, background))
    assert all(math.isnan(item.dice) and item.voxels_a == item.voxels_b == 0 for item in counter.classes())


def test_pipeline_counts_what_the_subnets_said_of_every_tile(model: Model) -> None:
    spec = model.manifest
    volume = volume_of(centred_geometry((8, 20, 18), (3.0, 2.5, 2.0), STRAIGHT))
    options = replace(COUNTED, skip_air=False)
    with open_backend(model, options) as backend:
        noisy = NoisySubnets(backend)
        result = segment_volume(volume, spec, noisy, options)
    logits = [
        pair
        for output in noisy.seen
        for pair in zip(np.asarray(output.logits_a), np.asarray(output.logits_b), strict=True)
    ]
    plan = plan_tiles(model_grid_of(volume.geometry, spec.preprocessing).shape, spec.tiling)
    assert [item.dice for item in result.agreement] == reference(plan, logits, spec)


def test_labels_are_the_same_whether_or_not_agreement_is_counted(model: Model) -> None:
    with open_backend(model, OPTIONS) as backend:
        plain = segment_volume(VOLUME, model.manifest, backend, OPTIONS)
    with open_backend(model, COUNTED) as backend:
        counted = segment_volume(VOLUME, model.manifest, backend, COUNTED)
    np.testing.assert_array_equal(counted.label_map, plain.label_map)
    assert plain.agreement == ()
    assert [item.name for item in counted.agreement] == [item.name for item in model.manifest.classes]
    # Subnet B of the phantom is twice as sure as A, and decides the same.
    assert all(item.dice == 1.0 and item.voxels_both for item in counted.agreement)


def test_merged_graph_gives_no_logits_to_count(model: Model) -> None:
    with open_backend(model, OPTIONS) as backend, pytest.raises(BackendError, match="gives no logits"):
        segment_volume(VOLUME, model.manifest, backend, COUNTED)


def test_results_without_logits_are_an_error(model: Model) -> None:
    spec = model.manifest
    plan = plan_tiles(spec.tiling.tile_shape, spec.tiling)
    values = np.zeros((1, 1, *spec.tiling.tile_shape), dtype=np.float32)
    with pytest.raises(BackendError, match="no logits of a subnet"):
        AgreementCounter(plan, spec).add(plan.tiles, TileOutput(values, values))


def test_dice_follows_from_the_counts() -> None:
    assert ClassAgreement(1, "liver", voxels_a=10, voxels_b=30, voxels_both=8).dice == 0.4
