"""The trio: subnet A, subnet B and the UPG as one network, which is what is trained and stored.

Source: behaviour of taozh2017/UCSeg 7251be6.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor, nn

from ucseg_training.nets.config import TrioConfig
from ucseg_training.nets.subnet import SubnetOutput
from ucseg_training.nets.unet import UNet2d, UNet3d
from ucseg_training.nets.upg import Upg
from ucseg_training.nets.vnet import VNet


class TrioOutput(NamedTuple):
    """Everything one forward pass gives. A named tuple, because `torch.export` knows how to take it apart.

    Attributes:
        logits_a: (tiles, K, *tile_shape), of subnet A.
        features_a: Five maps of subnet A, full to 1/16 resolution.
        logits_b: (tiles, K, *tile_shape), of subnet B.
        features_b: Five maps of subnet B.
        fused_logits: (tiles, K, *tile_shape), of the UPG: the only output that inference uses.
    """

    logits_a: Tensor
    features_a: tuple[Tensor, ...]
    logits_b: Tensor
    features_b: tuple[Tensor, ...]
    fused_logits: Tensor


class DualNet(nn.Module):
    """Subnet A, subnet B and the UPG. No gradient is stopped: a loss on the fused logits trains all three.

    Args:
        config: Sizes of all three networks.
    """

    def __init__(self, config: TrioConfig) -> None:
        super().__init__()
        self.config = config
        subnet_a = UNet3d if config.dim == 3 else UNet2d
        self.net_1: UNet2d | UNet3d = subnet_a(config.in_channels, config.num_classes, config.unet_width)
        self.net_2 = VNet(config.dim, config.in_channels, config.num_classes, config.vnet_width)
        self.generate_pseudo_simple = Upg(config)

    @property
    def subnet_a(self) -> UNet2d | UNet3d:
        """The U-Net."""
        return self.net_1

    @property
    def subnet_b(self) -> VNet:
        """The V-Net."""
        return self.net_2

    @property
    def upg(self) -> Upg:
        """The module that takes (logits_a, logits_b) to the fused logits."""
        return self.generate_pseudo_simple

    def forward(self, image: Tensor) -> TrioOutput:
        """Logits of both subnets, their features and the fused logits.

        Args:
            image: (tiles, in_channels, *tile_shape), normalised intensities.

        Returns:
            All five results, in the order of the batch.

        Raises:
            ValueError: The shape of the image differs from (tiles, in_channels, *tile_shape).
        """
        self._check(image)
        output_a: SubnetOutput = self.net_1(image)
        output_b: SubnetOutput = self.net_2(image)
        fused_logits: Tensor = self.generate_pseudo_simple(output_a.logits, output_b.logits)
        return TrioOutput(output_a.logits, output_a.features, output_b.logits, output_b.features, fused_logits)

    def _check(self, image: Tensor) -> None:
        expected = (self.config.in_channels, *self.config.tile_shape)
        if tuple(image.shape[1:]) != expected:
            raise ValueError(
                f"DualNet: the image has shape {tuple(image.shape)}; expected "
                f"(tiles, {', '.join(map(str, expected))}). Cut larger volumes into tiles of this shape."
            )
