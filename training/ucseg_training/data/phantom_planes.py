"""Made-up planes with one object in each: a bright red bump on mucosa in colour, a dark lesion in speckle in grey.

They teach a network enough for the software around it to be tested, and nothing about medicine.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

from ucseg_runtime.arrays import BoolArray, Float32Array
from ucseg_training.batches import Batch
from ucseg_training.method.targets import one_hot_target

_MUCOSA_RGB = (170.0, 95.0, 80.0)
_OBJECT_RGB = (225.0, 60.0, 55.0)
_TISSUE, _LESION = 120.0, 45.0
# Apart from the numbers of batches.
_FEW = 1_000_000_007


@dataclass(frozen=True, eq=False)
class PhantomPlane:
    """One image with its object.

    Attributes:
        image: float32, shape (channels, y, x), 0 … 255; red, green, blue, or grey.
        mask: bool, shape (y, x).
    """

    image: Float32Array
    mask: BoolArray


def draw_phantom_plane(side: int, channels: int, rng: np.random.Generator) -> PhantomPlane:
    """An image of one ellipse of random place, size and direction, one in ten without it.

    Args:
        side: Pixels along y and x.
        channels: 3 for colour, 1 for grey.
        rng: Everything random comes from it.
    """
    mask = _ellipse(side, rng) if rng.random() > 0.1 else np.zeros((side, side), dtype=bool)
    edge = ndimage.gaussian_filter(mask.astype(np.float32), side / 150)
    light = 1.0 + 0.35 * _clouds(side, side / 5, rng)
    if channels == 3:
        colours = zip(_MUCOSA_RGB, _OBJECT_RGB, strict=True)
        image = np.stack([(around * (1 - edge) + inside * edge) * light for around, inside in colours])
        image += rng.normal(0.0, 6.0, size=image.shape)
    else:
        speckle = ndimage.gaussian_filter(rng.rayleigh(1.0, size=(side, side)), 1.0) / math.sqrt(math.pi / 2)
        image = ((_TISSUE * (1 - edge) + _LESION * edge) * light * speckle)[None]
    return PhantomPlane(np.clip(image * rng.uniform(0.7, 1.25), 0, 255).astype(np.float32), mask)


@dataclass(frozen=True)
class PhantomPlanes:
    """Batches of made-up planes; keeps the `BatchSource` contract.

    Attributes:
        side: Pixels along y and x.
        channels: 3 for colour, given to the network as blue, green, red; 1 for grey.
        tiles: Labelled planes per batch, and as many unlabelled ones.
        seed: Of the planes.
        labelled_planes: How many different labelled planes there are, turned and mirrored when they come again; None
            for new ones in every batch.
        unlabelled: Whether there are unlabelled planes at all.
        stream: Batches of another stream are other ones; the few labelled planes are the same.
    """

    side: int
    channels: int
    tiles: int = 4
    seed: int = 42
    labelled_planes: int | None = None
    unlabelled: bool = True
    stream: int = 0

    def describe(self) -> dict[str, object]:
        """All there is to say."""
        return {"phantom": asdict(self)}

    def draw(self, number: int) -> Batch:
        """The batch with this number."""
        rng = np.random.default_rng((self.seed, number, self.stream))
        labelled = [self._labelled(rng) for _ in range(self.tiles)]
        unlabelled = [draw_phantom_plane(self.side, self.channels, rng) for _ in range(self.tiles * self.unlabelled)]
        labels = torch.from_numpy(np.stack([plane.mask for plane in labelled])).long()
        return Batch(_images(labelled), one_hot_target(labels, 2), _images(unlabelled) if unlabelled else None)

    def _labelled(self, rng: np.random.Generator) -> PhantomPlane:
        if self.labelled_planes is None:
            return draw_phantom_plane(self.side, self.channels, rng)
        which = int(rng.integers(self.labelled_planes))
        plane = draw_phantom_plane(self.side, self.channels, np.random.default_rng((self.seed, _FEW, which)))
        turns, mirrored = int(rng.integers(4)), bool(rng.integers(2))
        image, mask = np.rot90(plane.image, turns, axes=(-2, -1)), np.rot90(plane.mask, turns)
        return PhantomPlane(image[..., ::-1], mask[..., ::-1]) if mirrored else PhantomPlane(image, mask)


def _images(planes: Sequence[PhantomPlane]) -> Tensor:
    return torch.from_numpy(np.stack([plane.image[::-1] for plane in planes]).astype(np.float32) / 255)


def _ellipse(side: int, rng: np.random.Generator) -> BoolArray:
    y, x = np.ogrid[:side, :side]
    row, column = rng.uniform(0.25, 0.75, size=2) * side
    long, short = np.sort(rng.uniform(0.07, 0.22, size=2))[::-1] * side
    angle = rng.uniform(0, math.pi)
    along = (y - row) * math.sin(angle) + (x - column) * math.cos(angle)
    across = (y - row) * math.cos(angle) - (x - column) * math.sin(angle)
    inside: BoolArray = (along / long) ** 2 + (across / short) ** 2 <= 1.0
    return inside


def _clouds(side: int, sigma: float, rng: np.random.Generator) -> Float32Array:
    """Smooth noise of unit standard deviation, float32, (side, side)."""
    noise = ndimage.gaussian_filter(rng.normal(size=(side, side)), sigma, mode="wrap")
    clouds: Float32Array = (noise / noise.std()).astype(np.float32)
    return clouds
