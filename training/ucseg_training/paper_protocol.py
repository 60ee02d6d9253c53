"""Inference and scores exactly as the published code has them, for comparison with published figures.

The deployed flow differs on purpose: it spreads its tiles evenly, weights them, works on the source grid and measures
in mm. Arrays are (z, y, x) here too; upstream's own order is (x, y, z).

Source of the whole module: behaviour of taozh2017/UCSeg 7251be6.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias, TypeVar

import cv2
import numpy as np
from scipy import ndimage

from ucseg_runtime.arrays import BoolArray, Float32Array, Float64Array, UInt8Array
from ucseg_runtime.errors import InputError, ModelError
from ucseg_runtime.manifest import Postprocessing
from ucseg_runtime.postprocess import remove_small_components
from ucseg_training.metrics import dice, jaccard, require_masks, surface_distances

Predict: TypeAlias = Callable[[Float32Array], Float32Array]
"""A network in eval mode: float32 tiles (tiles, channels, z, y, x), C-contiguous, to probabilities in [0, 1] of shape
(tiles, K, z, y, x): one channel of foreground for sigmoid models, else one per class, background first. Tiles of
two-dimensional networks have one slice. Whoever brings weights that want (x, y, z) turns the axes in here."""

EmptyPrediction: TypeAlias = Literal["worst", "zero", "undefined"]
"""Scores of an empty prediction: ``worst``: Dice and Jaccard 0, distances 100 voxels, as upstream in 3D; ``zero``: all
four 0, as upstream for ACDC, which flatters the distances; ``undefined``: the distances are NaN."""

STRIDES: tuple[int, int, int] = (4, 18, 18)
"""Upstream's strides along (z, y, x), whatever the tile: 18, 18, 4 in its own order."""

ACDC_SIDE = 256

_Plane = TypeVar("_Plane", Float32Array, UInt8Array)

_WORST_VOXELS = 100.0
_PERCENTILE = 95.0
_RANGE_SLACK = 1e-3
_COLOURS = 3


@dataclass(frozen=True)
class VoxelScores:
    """Scores of one class in one case by the paper's definitions, in voxels or pixels whatever their size in mm.

    Attributes:
        dice: In [0, 1]; NaN where both masks are empty and no rule says otherwise.
        jaccard: The same.
        hd95_voxels: 95th percentile of the surface distances of both directions pooled.
        asd_voxels: *One-way* average surface distance: mean distance of the predicted surface from the reference's.
    """

    dice: float
    jaccard: float
    hd95_voxels: float
    asd_voxels: float


def score_as_paper(predicted: BoolArray, truth: BoolArray, on_empty: EmptyPrediction) -> VoxelScores:
    """Compare one class of one case with its reference, in voxel units.

    Args:
        predicted: bool, shape (z, y, x) or (y, x).
        truth: bool, same shape. Where it alone is empty the distances are NaN; upstream stops there.
        on_empty: ``worst`` reproduces upstream's 3D figures, ``zero`` those of ACDC; ``undefined`` for all else.

    Raises:
        InputError: The arrays are not boolean or differ in shape.

    Source: the definitions of MedPy's dc, jc, hd95 and asd.
    """
    require_masks(predicted, truth)
    if on_empty != "undefined" and not predicted.any():
        distance = _WORST_VOXELS if on_empty == "worst" else 0.0
        return VoxelScores(dice=0.0, jaccard=0.0, hd95_voxels=distance, asd_voxels=distance)
    distances = surface_distances(predicted, truth)
    return VoxelScores(
        dice=dice(predicted, truth),
        jaccard=jaccard(predicted, truth),
        hd95_voxels=math.nan if distances is None else float(np.percentile(distances.pooled, _PERCENTILE)),
        asd_voxels=math.nan if distances is None else float(distances.to_truth.mean()),
    )


def window_starts(size: int, tile: int, stride: int) -> tuple[int, ...]:
    """First voxels of the windows along one axis: multiples of the stride, the last one moved back to the edge.

    Args:
        size: Voxels of the volume, at least `tile`: see `axis_padding`.
        tile: Voxels of a window.
        stride: Voxels between the starts of neighbouring windows.

    Raises:
        InputError: The volume is smaller than the window, the stride leaves gaps, or a number is not positive.
    """
    if not 1 <= stride <= tile <= size:
        raise InputError(
            f"windows of {tile} voxels every {stride} voxels do not cover an axis of {size} voxels; expected "
            "1 <= stride <= window <= axis.",
            hint="Choose a stride no larger than the tile.",
        )
    windows = math.ceil((size - tile) / stride) + 1
    return tuple(min(index * stride, size - tile) for index in range(windows))


def axis_padding(size: int, tile: int) -> tuple[int, int]:
    """Voxels of zeros before and after an axis that is shorter than the tile; the odd one comes after."""
    missing = max(tile - size, 0)
    return missing // 2, missing - missing // 2


def slide(
    voxels: Float32Array,
    predict: Predict,
    tile_shape: tuple[int, int, int],
    strides: tuple[int, int, int] = STRIDES,
    batch_size: int = 1,
) -> Float32Array:
    """Mean of the probabilities of all windows over each voxel, every window counting alike.

    Besides the result, float64 sums of the size of the volume and one batch of tiles are held in memory.

    Args:
        voxels: float32, shape (channels, z, y, x), already normalised: what is missing to a tile is filled with zeros.
        predict: The network.
        tile_shape: Voxels of a window along (z, y, x).
        strides: Voxels between windows along (z, y, x), no larger than the tile.
        batch_size: Windows that the network sees at a time.

    Returns:
        float32, shape (K, z, y, x), in [0, 1].

    Raises:
        InputError: The volume does not have four axes, the strides do not fit the tile, or a batch holds no tile.
        ModelError: The network returned another shape than expected, or values that are no probabilities.
    """
    if voxels.ndim != 4 or not voxels.size or batch_size < 1:
        raise InputError(
            f"a volume of shape {voxels.shape} was given with batches of {batch_size}; expected (channels, z, y, x) "
            "and at least one tile at a time."
        )
    pads = [axis_padding(size, tile) for size, tile in zip(voxels.shape[1:], tile_shape, strict=True)]
    padded = np.pad(voxels, [(0, 0), *pads]) if any(map(any, pads)) else voxels
    axes = list(zip(padded.shape[1:], tile_shape, strides, strict=True))
    starts = [window_starts(size, tile, stride) for size, tile, stride in axes]
    sums: Float64Array | None = None
    for boxes in _batches(_boxes(starts, tile_shape), batch_size):
        probabilities = _predicted(predict, np.stack([padded[(slice(None), *box)] for box in boxes], dtype=np.float32))
        if sums is None:
            sums = np.zeros((probabilities.shape[1], *padded.shape[1:]))
        for box, tile_probabilities in zip(boxes, probabilities, strict=True):
            sums[(slice(None), *box)] += tile_probabilities
    assert sums is not None  # noqa: S101  (every axis has at least one window)
    # Windows form a grid, so a voxel's count is the product of the counts along the axes.
    z, y, x = (_counts(first, tile, size) for first, (size, tile, _) in zip(starts, axes, strict=True))
    sums /= z[:, None, None] * y[:, None] * x
    inside = tuple(slice(left, left + size) for (left, _), size in zip(pads, voxels.shape[1:], strict=True))
    return sums[(slice(None), *inside)].astype(np.float32)


def decide(probabilities: Float32Array, *, largest_component: bool) -> UInt8Array:
    """Labels of mean probabilities.

    Args:
        probabilities: float32, shape (K, z, y, x). One channel: foreground where it exceeds 0.5; else the channel of
            the greatest one, the lowest of equal ones.
        largest_component: Whether only the largest 26-connected component of every label is kept, of equally large
            ones the first. Upstream always does so in 3D, which suits a single object, and never in 2D and for ACDC.

    Returns:
        uint8, shape (z, y, x), C-contiguous; 0 is background.
    """
    label_map: UInt8Array = np.ascontiguousarray(
        probabilities[0] > 0.5 if len(probabilities) == 1 else probabilities.argmax(axis=0), dtype=np.uint8
    )
    if largest_component:
        labels = tuple(range(1, max(len(probabilities), 2)))
        remove_small_components(label_map, Postprocessing(largest_component=labels), voxel_volume_ml=1.0)
    return label_map


def segment_planes(image: Float32Array, predict: Predict, side: int, *, largest_component: bool = False) -> UInt8Array:
    """Labels of planes on the grid on which upstream scores them, against `resize_nearest` of their reference.

    Args:
        image: float32, shape (channels, z, y, x), on its own grid in network input units. Upstream's are the colours
            in the order blue, green, red divided by 255.
        predict: A network for planes; gets and returns one tile of 1 x side x side.
        side: Of the network's tile; upstream's is 224.
        largest_component: As for `decide`.

    Returns:
        uint8, shape (z, side, side).

    Raises:
        ModelError: The network returned another shape, or values that are no probabilities.
    """
    channels = np.stack([resize_nearest(channel, side) for channel in image])  # (channels, z, side, side)
    label_map = np.empty(channels.shape[1:], dtype=np.uint8)
    for z, target in enumerate(label_map):
        probabilities = _predicted(predict, np.ascontiguousarray(channels[None, :, z : z + 1]))[0]
        target[...] = decide(probabilities, largest_component=largest_component)[0]
    return label_map


def resize_nearest(planes: _Plane, side: int) -> _Plane:
    """Planes of shape (z, y, x) at side x side, by OpenCV's nearest neighbours, which lie up and left of the centre."""
    resized = [cv2.resize(plane, (side, side), interpolation=cv2.INTER_NEAREST) for plane in planes]
    return np.stack(resized).astype(planes.dtype, copy=False)


def segment_acdc(voxels: Float32Array, predict: Predict) -> UInt8Array:
    """Labels of a cardiac volume, slice by slice at 256 x 256 and back, nearest neighbours both ways.

    Args:
        voxels: float32, shape (z, y, x), already normalised to [0, 1].
        predict: A softmax network; gets and returns one tile of 1 x 256 x 256 with the grey value in three channels.

    Returns:
        uint8, shape (z, y, x).

    Raises:
        InputError: The volume does not have three axes.
        ModelError: The network returned another shape, or values that are no probabilities.
    """
    if voxels.ndim != 3 or not voxels.size:
        raise InputError(f"the volume has shape {voxels.shape}; expected (z, y, x).")
    label_map = np.empty(voxels.shape, dtype=np.uint8)
    for plane, target in zip(voxels, label_map, strict=True):
        grey = _zoom(plane.astype(np.float32, copy=False), (ACDC_SIDE, ACDC_SIDE))
        tile = np.repeat(grey[None, None, None], _COLOURS, axis=1)  # (1, 3, 1, 256, 256)
        labels = decide(_predicted(predict, tile)[0], largest_component=False)
        target[...] = _zoom(labels[0], target.shape)
    return label_map


def _boxes(starts: Sequence[tuple[int, ...]], tile_shape: tuple[int, int, int]) -> Iterator[tuple[slice, ...]]:
    for corner in itertools.product(*starts):
        yield tuple(slice(first, first + side) for first, side in zip(corner, tile_shape, strict=True))


def _batches(boxes: Iterator[tuple[slice, ...]], size: int) -> Iterator[list[tuple[slice, ...]]]:
    while batch := list(itertools.islice(boxes, size)):
        yield batch


def _counts(starts: tuple[int, ...], tile: int, size: int) -> Float64Array:
    """Windows over each voxel of one axis, float64, (voxels,)."""
    counts = np.zeros(size)
    for first in starts:
        counts[first : first + tile] += 1.0
    return counts


def _predicted(predict: Predict, tiles: Float32Array) -> Float32Array:
    """Checked probabilities of one batch of tiles."""
    probabilities = predict(tiles)
    found = (len(probabilities), *probabilities.shape[2:])
    expected = (len(tiles), *tiles.shape[2:])
    if probabilities.ndim != tiles.ndim or not probabilities.shape[1] or found != expected:
        raise ModelError(
            f"the network returned an array of shape {probabilities.shape} for tiles of shape {tiles.shape}; expected "
            "the same number of tiles and the same sides."
        )
    # Comparisons with NaN are false, so this refuses NaN and infinities too.
    if not (probabilities.min() >= -_RANGE_SLACK and probabilities.max() <= 1.0 + _RANGE_SLACK):
        raise ModelError(
            "the network returned values that are not finite or lie outside [0, 1].",
            hint="Give probabilities, not logits; NaN comes from training that has diverged.",
        )
    return probabilities


def _zoom(plane: _Plane, shape: tuple[int, ...]) -> _Plane:
    factors = [new / old for new, old in zip(shape, plane.shape, strict=True)]
    return ndimage.zoom(plane, factors, order=0)
