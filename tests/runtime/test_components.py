"""Components by runs against `scipy.ndimage.label`, which is the slow reference."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from ucseg_runtime.components import Components, erase, find_components

NEIGHBOURS_26 = np.ones((3, 3, 3), dtype=bool)


def _component_map(components: Components, shape: tuple[int, ...]) -> np.ndarray:
    """Component of every voxel plus one; 0 is background."""
    flat = np.zeros(int(np.prod(shape)), dtype=np.int64)
    for start, end, component in zip(components.starts, components.ends, components.component_of, strict=True):
        flat[start:end] = component + 1
    return flat.reshape(shape)


@pytest.mark.parametrize("seed", range(60))
def test_components_are_those_of_the_reference(seed: int) -> None:
    rng = np.random.default_rng(seed)
    shape = tuple(rng.integers(1, 10, size=3))
    label_map = ((rng.random(shape) < rng.uniform(0.05, 0.6)) * rng.integers(1, 4, size=shape)).astype(np.uint8)
    components = find_components(label_map)
    found = _component_map(components, shape)
    assert np.array_equal(found > 0, label_map > 0)
    expected = 0
    for label in (1, 2, 3):
        reference, count = ndimage.label(label_map == label, structure=NEIGHBOURS_26)
        expected += count
        for index in range(1, count + 1):
            (component,) = np.unique(found[reference == index])
            assert components.voxels[component - 1] == (reference == index).sum()
            assert components.labels[component - 1] == label
    assert len(components.voxels) == expected


def test_components_are_numbered_by_their_first_voxel() -> None:
    label_map = np.zeros((2, 3, 9), dtype=np.uint8)
    label_map[0, 0, 6], label_map[0, 1, 0], label_map[1, 2, 8], label_map[0, 0, 8] = 3, 1, 2, 3
    components = find_components(label_map)
    assert components.labels.tolist() == [3, 3, 1, 2]
    assert _component_map(components, label_map.shape)[0, 0, [6, 8]].tolist() == [1, 2]


@pytest.mark.parametrize("second", [(0, 1, 0), (1, 0, 0), (1, 1, 0)])
def test_the_end_of_a_row_does_not_touch_the_start_of_another(second: tuple[int, int, int]) -> None:
    label_map = np.zeros((2, 3, 4), dtype=np.uint8)
    label_map[0, 0, 3] = label_map[second] = 1
    assert find_components(label_map).voxels.tolist() == [1, 1]


def test_the_last_row_of_a_slice_does_not_touch_the_first_of_the_next() -> None:
    label_map = np.zeros((2, 3, 4), dtype=np.uint8)
    label_map[0, 2, :] = label_map[1, 0, :] = 1
    assert find_components(label_map).voxels.tolist() == [4, 4]


def test_nothing_is_found_in_an_empty_label_map() -> None:
    label_map = np.zeros((3, 4, 5), dtype=np.uint8)
    components = find_components(label_map)
    assert len(components.voxels) == 0
    erase(label_map, components, np.zeros(0, dtype=bool))
    assert not label_map.any()


def test_erased_components_are_background_and_the_others_stay() -> None:
    label_map = np.zeros((2, 2, 7), dtype=np.uint8)
    label_map[0, 0, :2], label_map[1, 1, 4:], label_map[0, 0, 4] = 1, 2, 1
    components = find_components(label_map)
    erase(label_map, components, components.labels == 1)
    assert np.flatnonzero(label_map).tolist() == [25, 26, 27]
