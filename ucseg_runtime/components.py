"""Connected components of all labels of a label map at once, by runs along the rows.

A row of a segmented volume has few runs of equal labels, so that components are found among some hundred thousand runs
instead of tens of millions of voxels: the demo study takes 0.2 s instead of the 4 s of one call of
`scipy.ndimage.label` per label, with the same result.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import sparse

from ucseg_runtime.arrays import UInt8Array

_Indices = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Components:
    """The 26-connected components of the foreground, as runs of voxels in index order.

    Attributes:
        starts: int64, (runs,), flat index of the first voxel of each run.
        ends: int64, (runs,), flat index after the last one.
        component_of: int32, (runs,), component that a run belongs to; numbered by their first voxel in index order.
        labels: uint8, (components,), label of each component.
        voxels: int64, (components,), size of each component.
    """

    starts: _Indices
    ends: _Indices
    component_of: npt.NDArray[np.int32]
    labels: UInt8Array
    voxels: _Indices


def find_components(label_map: UInt8Array) -> Components:
    """Components of every label but 0. Voxels that share a face, an edge or a corner are connected.

    Args:
        label_map: uint8, C-contiguous, shape (z, y, x).
    """
    flat = label_map.reshape(-1)
    _, height, width = label_map.shape
    starts, ends = _foreground_runs(label_map)
    if not len(starts):
        return Components(starts, ends, np.zeros(0, np.int32), np.zeros(0, np.uint8), np.zeros(0, np.int64))
    # Rows are laid out in a frame of empty columns and rows: an index difference is then the same step everywhere.
    padded_width, padded_height = width + 2, height + 1
    row = starts // width
    shift = row * 2 + (row // height) * padded_width
    first, last = starts + shift, ends - 1 + shift
    steps = (padded_width, *(padded_height * padded_width + dy * padded_width for dy in (-1, 0, 1)))
    pairs = [_touching(first, last, step) for step in steps]
    run_a, run_b = (np.concatenate(side) for side in zip(*pairs, strict=True))
    labels = flat[starts]
    same = labels[run_a] == labels[run_b]
    graph = sparse.coo_array((same[same], (run_a[same], run_b[same])), shape=(len(starts),) * 2)
    count, found = sparse.csgraph.connected_components(graph, directed=False)
    component_of = _in_order_of_appearance(found, count)
    voxels = np.bincount(component_of, weights=ends - starts, minlength=count).astype(np.int64)
    label_of = np.zeros(count, dtype=np.uint8)
    label_of[component_of] = labels
    return Components(starts, ends, component_of, label_of, voxels)


def erase(label_map: UInt8Array, components: Components, rejected: npt.NDArray[np.bool_]) -> None:
    """Turn the voxels of some components into background, in place.

    Args:
        label_map: What the components were found in.
        components: Its components.
        rejected: bool, (components,), which of them.
    """
    flat = label_map.reshape(-1)
    chosen = rejected[components.component_of]
    for start, end in zip(components.starts[chosen].tolist(), components.ends[chosen].tolist(), strict=True):
        flat[start:end] = 0


def _foreground_runs(label_map: UInt8Array) -> tuple[_Indices, _Indices]:
    """First flat index of every run of equal labels but 0 within a row, and the one after its last, in index order."""
    height, width = label_map.shape[1:]
    row_starts = np.arange(0, height * width + 1, width)
    starts, ends = [], []
    for z, plane in enumerate(label_map):  # plane by plane: a mask of all changes would take a byte a voxel
        flat = plane.reshape(-1)
        borders = np.union1d(np.flatnonzero(flat[1:] != flat[:-1]) + 1, row_starts)
        foreground = flat[borders[:-1]] > 0
        starts.append(borders[:-1][foreground] + z * flat.size)
        ends.append(borders[1:][foreground] + z * flat.size)
    return np.concatenate(starts), np.concatenate(ends)


def _touching(first: _Indices, last: _Indices, step: int) -> tuple[_Indices, _Indices]:
    """Pairs of runs of which the second, moved back by `step`, overlaps the first or meets it at an end."""
    begin = np.searchsorted(last, first + step - 1)
    end = np.searchsorted(first, last + step + 1, side="right")
    counts = np.maximum(end - begin, 0)
    run_a = np.repeat(np.arange(len(first)), counts)
    offset = np.arange(len(run_a)) - np.repeat(np.cumsum(counts) - counts, counts)
    return run_a, np.repeat(begin, counts) + offset


def _in_order_of_appearance(found: npt.NDArray[np.int32], count: int) -> npt.NDArray[np.int32]:
    _, first = np.unique(found, return_index=True)
    rank = np.empty(count, dtype=np.int32)
    rank[np.argsort(first)] = np.arange(count, dtype=np.int32)
    return rank[found]
