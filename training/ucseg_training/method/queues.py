"""Prototypes of past batches, per class, subnet and level: what a prototype is compared with.

Source: behaviour of taozh2017/UCSeg 7251be6 for compat. There one write pointer per subnet and level serves all classes
and advances for each of them, so that a class reaches only every K-th block of its slots and the rest stays noise. In
the fixed form every class has a pointer of its own, and only slots that were written count.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812  (torch's own convention)
from torch import Tensor

from ucseg_training.checkpoint import differences
from ucseg_training.errors import TrainingError
from ucseg_training.method.config import Method
from ucseg_training.method.targets import PartialTarget

LEVELS = 3
"""Encoder stages whose features are contrasted, counted from the deepest."""

_SUBNETS = ("a", "b")
_WRITE_EPSILON = 1e-3


@dataclass(eq=False)
class PrototypeQueue:
    """The prototypes of one subnet at one level. Written in place.

    Attributes:
        vectors: float32, (K, channels, slots).
        filled: int64, (K,): slots of each class that hold something, from slot 0 on.
        pointer: int64, (K,): slot that the next prototype of each class goes to; (1,), for all of them, in compat.
    """

    vectors: Tensor
    filled: Tensor
    pointer: Tensor

    @classmethod
    def empty(cls, num_classes: int, channels: int, slots: int) -> PrototypeQueue:
        """A queue of the fixed form without prototypes."""
        counts = torch.zeros(num_classes, dtype=torch.int64)
        return cls(torch.zeros(num_classes, channels, slots), counts, counts.clone())

    @classmethod
    def noise(
        cls, num_classes: int, channels: int, slots: int, generator: torch.Generator, over_classes: bool
    ) -> PrototypeQueue:
        """A queue of the compat form: every slot counts, and holds Gaussian noise.

        Args:
            num_classes: K.
            channels: Of the features.
            slots: Prototypes per class.
            generator: On the CPU.
            over_classes: Whether the noise has unit length along the classes instead of the channels, as upstream's
                in 2D.
        """
        noise = torch.randn(num_classes, channels, slots, generator=generator)
        vectors = F.normalize(noise, dim=0 if over_classes else 1)
        return cls(vectors, torch.full((num_classes,), slots), torch.zeros(1, dtype=torch.int64))

    @property
    def written(self) -> Tensor:
        """bool, (K, slots): slots that count."""
        slots = torch.arange(self.vectors.shape[2], device=self.vectors.device)
        return slots < self.filled[:, None]

    @property
    def means(self) -> Tensor:
        """float32, (K, channels): mean of the slots that count, 0 where there are none."""
        # Slots that do not count are 0.
        return self.vectors.sum(dim=2) / self.filled[:, None].clamp(min=1)

    def write(self, prototypes: Tensor, occupied: Tensor) -> None:
        """Put the prototypes of a batch over the oldest ones.

        Args:
            prototypes: float32, (tiles, K, channels).
            occupied: bool, (tiles, K): classes that the tile shows. In the fixed form the others are not written: the
                prototype of no voxel is 0, and would pull the mean of its class towards 0.
        """
        compat = len(self.pointer) == 1
        slots = self.vectors.shape[2]
        chosen = torch.ones_like(occupied) if compat else occupied
        order = chosen.cumsum(dim=0) - 1  # (tiles, K): how many the tiles before have written
        start = (
            self.pointer + len(prototypes) * torch.arange(chosen.shape[1], device=chosen.device)
            if compat
            else self.pointer
        )
        tiles, classes = chosen.nonzero(as_tuple=True)
        slot = ((start + order) % slots)[tiles, classes]
        self.vectors[classes, :, slot] = prototypes.detach()[tiles, classes]
        count = chosen.sum(dim=0)
        self.filled.copy_((self.filled + count).clamp(max=slots))
        self.pointer.copy_((self.pointer + (count.sum() if compat else count)) % slots)


class PrototypeQueues:
    """The queues of both subnets at all levels.

    Args:
        method: Sizes and the form of the queues.
        generator: On the CPU; draws the noise of compat.
    """

    def __init__(self, method: Method, generator: torch.Generator) -> None:
        self._queues = {
            (subnet, level): _new_queue(method, level, generator) for subnet in _SUBNETS for level in range(LEVELS)
        }
        self._slots = method.queue_length

    def of(self, subnet: int, level: int) -> PrototypeQueue:
        """The queue of subnet A (0) or B (1) at a level, counted from the deepest."""
        return self._queues[_SUBNETS[subnet], level]

    def check_batch(self, tiles: int) -> None:
        """Raise unless batches of this size fill the queue without a remainder.

        Raises:
            TrainingError: They do not, so that a batch would be torn apart at the end of the queue.
        """
        if self._slots % tiles:
            raise TrainingError(
                f"the batch has {tiles} tiles; the queue length {self._slots} is not a multiple of it.",
                hint=f"Choose a batch whose size divides {self._slots}, or another MethodConfig.queue_length.",
            )

    def to(self, device: torch.device) -> PrototypeQueues:
        """Move all queues, in place."""
        for queue in self._queues.values():
            queue.vectors = queue.vectors.to(device)
            queue.filled = queue.filled.to(device)
            queue.pointer = queue.pointer.to(device)
        return self

    def state(self) -> dict[str, Tensor]:
        """A copy of everything that the next step depends on, by "subnet/level/name"."""
        return {name: tensor.clone() for name, tensor in self._tensors().items()}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Put back what `state` took.

        Raises:
            TrainingError: The state belongs to queues of another form or size; nothing is changed.
        """
        tensors = self._tensors()
        if different := differences(state, tensors):
            raise TrainingError(
                f"the prototype queues of the state do not fit this method; tensors {different}.",
                hint="Continue with the trio, mode and queue_length that the run was started with.",
            )
        for name, tensor in tensors.items():
            tensor.copy_(state[name])

    def _tensors(self) -> dict[str, Tensor]:
        return {
            f"{subnet}/{level}/{name}": getattr(queue, name)
            for (subnet, level), queue in self._queues.items()
            for name in ("vectors", "filled", "pointer")
        }


def labelled_dice(probabilities: Tensor, target: PartialTarget, compat: bool) -> float:
    """Soft Dice of a subnet on the labelled tiles, by which it is decided whether its prototypes are worth keeping.

    Args:
        probabilities: (tiles, K, *spatial), in [0, 1].
        target: Same tiles; only known channels count.
        compat: Whether the mean is over all foreground classes, as upstream. Otherwise over those that the tiles show,
            since a class that is in none of them has a Dice of 0 however good the subnet is; 0 if they show none.
    """
    with torch.no_grad():
        foreground, present = probabilities[:, 1:], target.values[:, 1:]
        axes = (0, *range(2, foreground.ndim))
        overlap = (foreground * present).sum(dim=axes)
        predicted = (foreground if target.complete else foreground * target.known[:, 1:]).sum(dim=axes)
        true = present.sum(dim=axes)
        dice = 2.0 * overlap / (predicted + true + _WRITE_EPSILON)  # (K − 1,)
        judged = torch.ones_like(true) if compat else (true > 0).to(true.dtype)
        return float((dice * judged).sum() / judged.sum().clamp(min=1.0))


def _new_queue(method: Method, level: int, generator: torch.Generator) -> PrototypeQueue:
    num_classes, slots = method.trio.num_classes, method.queue_length
    channels = method.trio.unet_width * 2 ** (4 - level)
    if method.compat:
        return PrototypeQueue.noise(num_classes, channels, slots, generator, over_classes=method.dim == 2)
    return PrototypeQueue.empty(num_classes, channels, slots)
