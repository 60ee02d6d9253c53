"""Modality units to network input: the rules that a manifest may name, each with its exact formula.

Every rule is computed in float32. Means and standard deviations are those of the population, accumulated in float64 and
rounded once. Rules that look at the voxels have to see the whole volume: a tile by itself would be mapped otherwise.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeAlias

import numpy as np
from pydantic import BaseModel, ConfigDict, Discriminator, Field, FiniteFloat, Tag, field_validator, model_validator

from ucseg_runtime.arrays import BoolArray, Float32Array
from ucseg_runtime.errors import InputError

VoxelSet = Literal["all", "non_zero", "positive", "non_zero_box"]
"""Voxels that a figure is taken of: all; those that are not 0; those above 0; the smallest box that holds every voxel
that is not 0."""

IntensityMap: TypeAlias = Callable[[Float32Array], Float32Array]
"""float32 of any shape in modality units to network input of the same shape."""

_PART = 1 << 20


class _Rule(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class PiecewiseLinear(_Rule):
    """Network input = linear interpolation between knots; constant outside them.

    Attributes:
        knots: Pairs (modality units, network input), strictly ascending in the first.
    """

    kind: Literal["piecewise_linear"] = "piecewise_linear"
    knots: tuple[tuple[FiniteFloat, FiniteFloat], ...]

    @field_validator("knots")
    @classmethod
    def _ascending(cls, knots: tuple[tuple[float, float], ...]) -> tuple[tuple[float, float], ...]:
        if len(knots) < 2 or any(left[0] >= right[0] for left, right in zip(knots, knots[1:], strict=False)):
            raise ValueError("knots need at least two pairs, strictly ascending in modality units")
        return knots


class Identity(_Rule):
    """Network input = voxel: the images come normalised."""

    kind: Literal["identity"] = "identity"


class DivideBy255(_Rule):
    """Network input = voxel / 255, for images of 8 bits.

    Attributes:
        channel_order: Order in which the network takes the channels of a colour image. Images are read as RGB.
    """

    kind: Literal["divide_by_255"] = "divide_by_255"
    channel_order: Literal["rgb", "bgr"]


class MinMax(_Rule):
    """Network input = (voxel − least) / (greatest − least), with the least and greatest voxel of the volume; [0, 1]."""

    kind: Literal["min_max"] = "min_max"


class _Window(_Rule):
    low: FiniteFloat
    high: FiniteFloat

    @model_validator(mode="after")
    def _ascending(self) -> _Window:
        if self.low >= self.high:
            raise ValueError("low must be less than high")
        return self


class ClipMinMax(_Window):
    """Network input = (clip(voxel, low, high) − low) / (high − low); [0, 1].

    Attributes:
        low: Modality units.
        high: Modality units, more than `low`.
    """

    kind: Literal["clip_min_max"] = "clip_min_max"


class ZScore(_Rule):
    """Network input = (voxel − mean) / standard deviation, for every voxel of the volume.

    Attributes:
        over: Voxels whose mean and standard deviation are taken.
    """

    kind: Literal["z_score"] = "z_score"
    over: VoxelSet = "all"


class ClipZScore(_Window):
    """Network input = (clip(voxel, low, high) − mean) / standard deviation, both of all clipped voxels.

    Attributes:
        low: Modality units.
        high: Modality units, more than `low`.
    """

    kind: Literal["clip_z_score"] = "clip_z_score"


class PercentileClip(_Rule):
    """Voxels are clipped to two percentiles of the volume and then scaled.

    Percentiles are interpolated linearly between the sorted voxels. With ``min_max`` the result is (clipped − low) /
    (high − low), in [0, 1]; with ``z_score`` it is (clipped − mean) / standard deviation.

    Attributes:
        lower: Percentile in [0, 100); 0 is the least voxel.
        upper: Percentile in (0, 100], more than `lower`.
        over: Voxels whose percentiles are taken.
        scale: What follows the clipping.
        scale_over: Voxels whose mean and standard deviation are taken, chosen by their values before the clipping;
            without meaning for ``min_max``.
    """

    kind: Literal["percentile_clip"] = "percentile_clip"
    lower: Annotated[float, Field(ge=0.0, lt=100.0)] = 0.0
    upper: Annotated[float, Field(gt=0.0, le=100.0)]
    over: VoxelSet = "all"
    scale: Literal["min_max", "z_score"]
    scale_over: VoxelSet = "all"

    @model_validator(mode="after")
    def _ascending(self) -> PercentileClip:
        if self.lower >= self.upper:
            raise ValueError("lower must be less than upper")
        return self


def _kind(rule: Any) -> object:  # noqa: ANN401  (whatever stands in the manifest)
    # Manifests were once written without the kind, when there was but one.
    return rule.get("kind", "piecewise_linear") if isinstance(rule, dict) else getattr(rule, "kind", None)


Intensity = Annotated[
    Annotated[PiecewiseLinear, Tag("piecewise_linear")]
    | Annotated[Identity, Tag("identity")]
    | Annotated[DivideBy255, Tag("divide_by_255")]
    | Annotated[MinMax, Tag("min_max")]
    | Annotated[ClipMinMax, Tag("clip_min_max")]
    | Annotated[ZScore, Tag("z_score")]
    | Annotated[ClipZScore, Tag("clip_z_score")]
    | Annotated[PercentileClip, Tag("percentile_clip")],
    Discriminator(_kind),
]
"""Any rule, told apart by its `kind`."""


@dataclass(frozen=True)
class _ClippedLinear:
    """value = (clip(voxel, low, high) − shift) / scale, in float32."""

    shift: float = 0.0
    scale: float = 1.0
    low: float = -np.inf
    high: float = np.inf

    def __call__(self, voxels: Float32Array) -> Float32Array:
        values = np.clip(voxels, np.float32(self.low), np.float32(self.high)).astype(np.float32, copy=False)
        values = values - np.float32(self.shift)
        values /= np.float32(self.scale)
        return values


@dataclass(frozen=True)
class _Interpolated:
    rule: PiecewiseLinear

    def __call__(self, voxels: Float32Array) -> Float32Array:
        units, values = zip(*self.rule.knots, strict=True)
        values_at: Float32Array = np.interp(voxels, units, values).astype(np.float32)
        return values_at


def intensity_map(voxels: Float32Array, rule: Intensity) -> IntensityMap:
    """The way from modality units to network input that a rule takes for one volume.

    What lies outside the volume goes the same way as what lies inside: apply the result to both.

    Args:
        voxels: float32, the whole volume, one channel, modality units, finite.
        rule: From the manifest.

    Returns:
        A function of voxels alone. Where all voxels that a figure is taken of are equal, or there are none, the divisor
        is 1 instead of 0; the mean of none is 0 and they are not clipped.
    """
    match rule:
        case PiecewiseLinear():
            return _Interpolated(rule)
        case Identity():
            return _ClippedLinear()
        case DivideBy255():
            return _ClippedLinear(scale=255.0)
        case MinMax():
            return _between(float(voxels.min()), float(voxels.max()))
        case ClipMinMax():
            return _between(rule.low, rule.high)
        case ZScore():
            return _standardised(_chosen(voxels, rule.over), -np.inf, np.inf)
        case ClipZScore():
            return _standardised(voxels, rule.low, rule.high)
        case PercentileClip():
            return _percentile_clip(voxels, rule)


def apply_intensity(voxels: Float32Array, rule: Intensity) -> Float32Array:
    """Modality units to network input, float32, same shape; `voxels` is the whole volume, one channel."""
    return intensity_map(voxels, rule)(voxels)


def looks_at_volume(rule: Intensity) -> bool:
    """Whether the rule has to see the whole volume; False where each voxel is mapped by itself."""
    return isinstance(rule, MinMax | ZScore | ClipZScore | PercentileClip)


def in_network_order(channels: Float32Array, rule: Intensity) -> Float32Array:
    """The channels of a colour image in the order in which the network takes them.

    Args:
        channels: Shape (channels, …); red, green, blue, or one channel of grey.
        rule: From the manifest.

    Returns:
        A view; unchanged for rules without an order and for grey images.

    Raises:
        InputError: The rule has an order and there are neither one nor three channels.
    """
    if not isinstance(rule, DivideBy255):
        return channels
    if len(channels) not in (1, 3):
        raise InputError(f"a colour image has {len(channels)} channels; expected red, green and blue, or one of grey.")
    return channels[::-1] if rule.channel_order == "bgr" else channels


def as_network_takes(channels: Float32Array, rule: Intensity, count: int) -> Float32Array:
    """Channels in the order of the network, grey repeated as often as the network has channels; contiguous.

    Args:
        channels: Shape (channels, …); red, green, blue, or one channel of grey.
        rule: From the manifest.
        count: Channels of the network.

    Returns:
        float32, shape (count, …); `channels` itself where nothing is to be done.

    Raises:
        InputError: See `in_network_order`; or the channels of the image cannot become those of the network.
    """
    ordered = in_network_order(channels, rule)
    if len(channels) not in (1, count):
        raise InputError(f"the image has {len(channels)} channels; the network takes {count}.")
    repeated = ordered if len(ordered) == count else np.repeat(ordered, count, axis=0)
    return np.ascontiguousarray(repeated)


def _between(low: float, high: float) -> _ClippedLinear:
    return _ClippedLinear(shift=low, scale=_divisor(low, high, high - low), low=low, high=high)


def _standardised(chosen: Float32Array, low: float, high: float) -> _ClippedLinear:
    """Mean 0 and standard deviation 1 of the chosen voxels after clipping."""
    if not chosen.size:
        return _ClippedLinear(low=low, high=high)
    clipped = np.clip(chosen, np.float32(low), np.float32(high))
    mean = float(clipped.mean(dtype=np.float64))
    flat = clipped.reshape(-1)
    # Part by part: the deviations of a whole volume in float64 would need twice its memory.
    parts = (flat[first : first + _PART].astype(np.float64) for first in range(0, flat.size, _PART))
    squares = sum(float(np.square(part - mean).sum()) for part in parts)
    scale = _divisor(float(clipped.min()), float(clipped.max()), (squares / clipped.size) ** 0.5)
    return _ClippedLinear(shift=mean, scale=scale, low=low, high=high)


def _percentile_clip(voxels: Float32Array, rule: PercentileClip) -> _ClippedLinear:
    ranked = _chosen(voxels, rule.over)
    if not ranked.size:
        return _ClippedLinear()
    low, high = (float(value) for value in np.percentile(ranked, (rule.lower, rule.upper)))
    if rule.scale == "min_max":
        return _between(low, high)
    return _standardised(_chosen(voxels, rule.scale_over), low, high)


def _chosen(voxels: Float32Array, over: VoxelSet) -> Float32Array:
    if over == "all":
        return voxels
    if over == "positive":
        above: Float32Array = voxels[voxels > 0]
        return above
    marked: BoolArray = voxels != 0
    if over == "non_zero":
        return voxels[marked]
    if not marked.any():
        return voxels[:0]
    axes = range(voxels.ndim)
    sides = [np.flatnonzero(marked.any(axis=tuple(other for other in axes if other != axis))) for axis in axes]
    box: Float32Array = voxels[tuple(slice(int(side[0]), int(side[-1]) + 1) for side in sides)]
    return box


def _divisor(least: float, greatest: float, divisor: float) -> float:
    """1 where all voxels are equal: rounding leaves a deviation that is not quite 0."""
    return divisor if least < greatest else 1.0
