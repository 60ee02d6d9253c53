"""Subnet B: a V-Net without normalisation, residuals inside the blocks or dropout; its skips are additions.

Source: behaviour of taozh2017/UCSeg 7251be6.
"""

from __future__ import annotations

from torch import Tensor, nn

from ucseg_training.nets.subnet import SubnetOutput, check_image, init_kaiming

_CONV: dict[int, type[nn.Conv2d] | type[nn.Conv3d]] = {2: nn.Conv2d, 3: nn.Conv3d}
_TRANSPOSED: dict[int, type[nn.ConvTranspose2d] | type[nn.ConvTranspose3d]] = {
    2: nn.ConvTranspose2d,
    3: nn.ConvTranspose3d,
}


class VNet(nn.Module):
    """V-Net in 2D or 3D.

    The 2D one starts Kaiming-normal, the 3D one as the library leaves it; `init_kaiming` changes that for a caller
    who wants it.

    Args:
        dim: Spatial dimensions, 2 or 3.
        in_channels: Channels of the image.
        num_classes: Logit channels K.
        width: Channels at full resolution; doubled at each of four halvings.
    """

    def __init__(self, dim: int, in_channels: int, num_classes: int, width: int = 16) -> None:
        super().__init__()
        self.dim = dim
        self.in_channels = in_channels
        w1, w2, w3, w4, w5 = (width * 2**level for level in range(5))
        self.block_one = _Block(dim, in_channels, w1, convs=1)
        self.block_one_dw = _Down(dim, w1, w2)
        self.block_two = _Block(dim, w2, w2, convs=2)
        self.block_two_dw = _Down(dim, w2, w3)
        self.block_three = _Block(dim, w3, w3, convs=3)
        self.block_three_dw = _Down(dim, w3, w4)
        self.block_four = _Block(dim, w4, w4, convs=3)
        self.block_four_dw = _Down(dim, w4, w5)
        self.block_five = _Block(dim, w5, w5, convs=3)
        self.block_five_up = _Up(dim, w5, w4)
        self.block_six = _Block(dim, w4, w4, convs=3)
        self.block_six_up = _Up(dim, w4, w3)
        self.block_seven = _Block(dim, w3, w3, convs=3)
        self.block_seven_up = _Up(dim, w3, w2)
        self.block_eight = _Block(dim, w2, w2, convs=2)
        self.block_eight_up = _Up(dim, w2, w1)
        self.block_nine = _Block(dim, w1, w1, convs=1)
        self.out_conv = _CONV[dim](w1, num_classes, kernel_size=1)
        if dim == 2:
            init_kaiming(self)

    def forward(self, image: Tensor) -> SubnetOutput:
        """Logits and features of a batch of tiles.

        Args:
            image: (tiles, in_channels, *spatial), normalised intensities, sides multiples of 16.

        Returns:
            Logits (tiles, K, *spatial); the features are blocks one to five.

        Raises:
            ValueError: The shape of the image does not fit.
        """
        check_image("VNet", image, self.dim, self.in_channels)
        one = self.block_one(image)  # (tiles, w, *spatial)
        two = self.block_two(self.block_one_dw(one))  # (tiles, 2w, *spatial / 2)
        three = self.block_three(self.block_two_dw(two))  # (tiles, 4w, *spatial / 4)
        four = self.block_four(self.block_three_dw(three))  # (tiles, 8w, *spatial / 8)
        five = self.block_five(self.block_four_dw(four))  # (tiles, 16w, *spatial / 16)
        # The skip is added after the ReLU of the upsampling, and no ReLU follows the sum.
        six = self.block_six(self.block_five_up(five) + four)
        seven = self.block_seven(self.block_six_up(six) + three)
        eight = self.block_eight(self.block_seven_up(seven) + two)
        nine = self.block_nine(self.block_eight_up(eight) + one)
        return SubnetOutput(self.out_conv(nine), (one, two, three, four, five))


class _Chain(nn.Module):
    """Layers in a row, under the key `conv`."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.conv = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.conv(x)
        return out


class _Block(_Chain):
    """`convs` times [conv 3 -> ReLU] at one resolution."""

    def __init__(self, dim: int, in_channels: int, out_channels: int, convs: int) -> None:
        layers: list[nn.Module] = []
        for index in range(convs):
            source = in_channels if index == 0 else out_channels
            layers += [_CONV[dim](source, out_channels, kernel_size=3, padding=1), nn.ReLU(inplace=True)]
        super().__init__(*layers)


class _Down(_Chain):
    """Convolution with kernel and stride 2, then ReLU."""

    def __init__(self, dim: int, in_channels: int, out_channels: int) -> None:
        super().__init__(_CONV[dim](in_channels, out_channels, kernel_size=2, stride=2), nn.ReLU(inplace=True))


class _Up(_Chain):
    """Transposed convolution with kernel and stride 2, then ReLU."""

    def __init__(self, dim: int, in_channels: int, out_channels: int) -> None:
        super().__init__(_TRANSPOSED[dim](in_channels, out_channels, kernel_size=2, stride=2), nn.ReLU(inplace=True))
