"""What the two subnets share: their output, their rule for spatial sides and the Kaiming initialisation."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor, nn

from ucseg_training.nets.config import SIDE_DIVISOR


class SubnetOutput(NamedTuple):
    """What a subnet makes of a batch of tiles. A named tuple, because `torch.export` knows how to take it apart.

    Attributes:
        logits: (tiles, K, *spatial).
        features: Five maps, widths w, 2w, 4w, 8w, 16w at full, 1/2, 1/4, 1/8, 1/16 resolution.
    """

    logits: Tensor
    features: tuple[Tensor, ...]


def check_image(name: str, image: Tensor, dim: int, in_channels: int) -> None:
    """Raise unless the image has the rank and channels of the network and sides that survive four halvings.

    Reads only sizes that are constants under `torch.export` with a dynamic number of tiles.

    Raises:
        ValueError: The shape does not fit, with the expected and the found one.
    """
    fits = image.ndim == dim + 2 and image.shape[1] == in_channels
    if not fits or any(side % SIDE_DIVISOR for side in image.shape[2:]):
        raise ValueError(
            f"{name}: the image has shape {tuple(image.shape)}; expected (tiles, {in_channels}, ...) with {dim} "
            f"spatial sides that are multiples of {SIDE_DIVISOR}."
        )


def init_kaiming(module: nn.Module) -> None:
    """Every convolution and transposed convolution in the module has Kaiming-normal weights; biases are untouched.

    Fan-in is counted on axis 1 of the weight, as the library does, also for transposed convolutions. The gain is
    that of a ReLU.

    Source: behaviour of taozh2017/UCSeg 7251be6.
    """
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d | nn.Conv3d | nn.ConvTranspose2d | nn.ConvTranspose3d):
            nn.init.kaiming_normal_(layer.weight, mode="fan_in", nonlinearity="relu")
