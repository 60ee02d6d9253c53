"""Copy-paste mixing: one box of every labelled tile changes places with that of an unlabelled one.

Source: behaviour of taozh2017/UCSeg 7251be6.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ucseg_training.errors import TrainingError
from ucseg_training.method.targets import PartialTarget, complete_target


@dataclass(frozen=True)
class Mixing:
    """Where tiles are mixed, and which is pasted into which.

    Attributes:
        box: The same for all tiles of a batch, along the spatial axes.
        labelled_inside: Whether the box shows the labelled tile and the rest the unlabelled one, or the reverse.
    """

    box: tuple[slice, ...]
    labelled_inside: bool

    def image(self, labelled: Tensor, unlabelled: Tensor) -> Tensor:
        """Tiles of which the box comes from one batch and the rest from the other.

        Args:
            labelled: Any type, (tiles, channels, *spatial).
            unlabelled: The same type and shape.

        Raises:
            TrainingError: The batches are not of the same shape.
        """
        if labelled.shape != unlabelled.shape:
            raise TrainingError(
                f"mixing pairs labelled with unlabelled tiles; found {tuple(labelled.shape)} and "
                f"{tuple(unlabelled.shape)}.",
                hint="Draw as many unlabelled as labelled tiles, or turn mixing off.",
            )
        inside, outside = (labelled, unlabelled) if self.labelled_inside else (unlabelled, labelled)
        mixed = outside.clone()
        place = (slice(None), slice(None), *self.box)
        mixed[place] = inside[place]
        return mixed

    def target(self, labelled: PartialTarget, unlabelled: PartialTarget) -> PartialTarget:
        """What is known of the mixed tiles; as `image`."""
        present = self.image(labelled.present, unlabelled.present)
        if labelled.complete and unlabelled.complete:
            return complete_target(present)
        return PartialTarget(present, self.image(labelled.allowed, unlabelled.allowed))


def draw_mixing(tile_shape: Sequence[int], generator: torch.Generator, compat: bool) -> Mixing:
    """A box of two thirds of every side, rounded down, at a random place, and a coin for the direction.

    Args:
        tile_shape: Spatial shape.
        generator: On the CPU.
        compat: Whether the last place along an axis is never drawn, as upstream.
    """
    sides = [2 * side // 3 for side in tile_shape]
    places = [whole - side + (0 if compat else 1) for whole, side in zip(tile_shape, sides, strict=True)]
    starts = [int(torch.randint(count, (), generator=generator)) for count in places]
    box = tuple(slice(start, start + side) for start, side in zip(starts, sides, strict=True))
    return Mixing(box, labelled_inside=bool(torch.rand((), generator=generator) < 0.5))
