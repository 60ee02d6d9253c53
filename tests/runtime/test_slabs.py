"""Results that are handed on slab by slab are bit for bit those of a canvas of the whole model grid."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from tests.fake_backend import FakeBackend
from tests.model_phantom import ModelPhantom, manifest_fields
from tests.volume_phantom import OBLIQUE, STRAIGHT, centred_geometry, orientations
from tests.whole_canvas import segment_at_once
from ucseg_runtime.arrays import Float32Array
from ucseg_runtime.backends.graphs import GRAPHS
from ucseg_runtime.config import InferenceOptions
from ucseg_runtime.geometry import VolumeGeometry
from ucseg_runtime.manifest import Manifest
from ucseg_runtime.pipeline import segment_volume
from ucseg_runtime.volume import Volume

AXIAL = STRAIGHT[:, ::-1]
THREE_CLASSES = ModelPhantom(tile_shape=(16, 24, 20), largest_component=(1,))
BINARY = ModelPhantom(tile_shape=(16, 24, 20), centres=(0.0, 1.0), activation="sigmoid")


def manifest_of(phantom: ModelPhantom) -> Manifest:
    return Manifest.model_validate(manifest_fields(phantom, dict.fromkeys(GRAPHS, b"")))


def softmax_of(tile: Float32Array) -> Float32Array:
    """Three classes that follow the intensities and the place in the tile, so that no two tiles agree."""
    place = np.linspace(-0.3, 0.3, tile[0].size, dtype=np.float32).reshape(tile[0].shape)
    scores = np.exp(4 * np.stack([np.full_like(place, 0.3), tile[0] + place, np.float32(0.6) - tile[0]]))
    return (scores / scores.sum(axis=0)).astype(np.float32)


def sigmoid_of(tile: Float32Array) -> Float32Array:
    return softmax_of(tile)[1:2]


class PlacedUncertainty(FakeBackend):
    """Uncertainty that differs from voxel to voxel too."""

    def infer(self, tiles: Float32Array, *, with_logits: bool = False):  # type: ignore[no-untyped-def]  # as the base
        output = super().infer(tiles, with_logits=with_logits)
        return replace(output, uncertainty=np.ascontiguousarray(1 - output.probabilities.max(axis=1, keepdims=True)))


def noisy(geometry: VolumeGeometry) -> Volume:
    """Smooth noise between −20 and 120 HU: every class somewhere, in many components."""
    rng = np.random.default_rng(0)
    coarse = rng.integers(-20, 120, size=tuple(side // 5 + 1 for side in geometry.shape))
    fine = coarse.repeat(5, 0).repeat(5, 1).repeat(5, 2)[tuple(slice(side) for side in geometry.shape)]
    return Volume(np.ascontiguousarray(fine, dtype=np.int16), geometry, "CT")


def assert_same_bits(geometry: VolumeGeometry, phantom: ModelPhantom, batch_size: int = 2) -> None:
    manifest, volume = manifest_of(phantom), noisy(geometry)
    backend = PlacedUncertainty(manifest, sigmoid_of if phantom.activation == "sigmoid" else softmax_of)
    expected = segment_at_once(volume, manifest, backend)
    options = InferenceOptions(batch_size=batch_size, keep_probabilities=True)
    found = segment_volume(volume, manifest, backend, options)
    assert expected.label_map.any()
    assert not expected.label_map.all()
    assert len(np.unique(expected.uncertainty)) > 100
    np.testing.assert_array_equal(found.label_map, expected.label_map)
    np.testing.assert_array_equal(found.uncertainty, expected.uncertainty)
    assert found.probabilities is not None
    np.testing.assert_array_equal(found.probabilities, expected.probabilities)


@pytest.mark.parametrize("phantom", [THREE_CLASSES, BINARY], ids=["softmax", "sigmoid"])
@pytest.mark.parametrize(
    ("shape", "spacing_mm"),
    [
        pytest.param((30, 44, 50), (2.0, 2.0, 2.0), id="equal grids"),
        pytest.param((12, 66, 75), (5.0, 1.2, 1.1), id="thick slices"),
        pytest.param((97, 30, 25), (0.7, 3.1, 3.3), id="thin slices"),
        pytest.param((5, 40, 41), (2.0, 2.0, 2.0), id="thinner than a tile"),
        pytest.param((1, 60, 60), (2.5, 1.5, 1.5), id="one slice"),
        pytest.param((150, 20, 20), (0.4, 2.0, 2.0), id="many slices on few"),
    ],
)
def test_slabs_do_not_change_a_bit_on_any_grid(
    shape: tuple[int, int, int], spacing_mm: tuple[float, float, float], phantom: ModelPhantom
) -> None:
    assert_same_bits(centred_geometry(shape, spacing_mm, AXIAL), phantom)


@pytest.mark.parametrize("rotation", [STRAIGHT, OBLIQUE], ids=["straight", "oblique"])
@pytest.mark.parametrize("number", range(0, 48, 5))
def test_slabs_do_not_change_a_bit_from_any_orientation(number: int, rotation: np.ndarray) -> None:
    direction = list(orientations(rotation))[number]
    assert_same_bits(centred_geometry((26, 33, 41), (3.3, 1.5, 1.2), direction), THREE_CLASSES)


@pytest.mark.parametrize("weighting", ["uniform", "gaussian"])
@pytest.mark.parametrize("overlap", [0.0, 0.25, 0.8])
@pytest.mark.parametrize("batch_size", [1, 3, 1000])
def test_slabs_do_not_change_a_bit_for_any_plan(overlap: float, weighting: str, batch_size: int) -> None:
    phantom = replace(THREE_CLASSES, overlap=overlap, weighting=weighting)  # type: ignore[arg-type]  # parametrised
    assert_same_bits(centred_geometry((40, 33, 41), (1.7, 1.5, 1.2), AXIAL), phantom, batch_size)
