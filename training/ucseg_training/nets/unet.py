"""Subnet A: the U-Net, in its 3D and its 2D form, which differ in more than the dimension.

The 3D form normalises per tile (instance norm without parameters) and upsamples with `align_corners=False`; the 2D
form has batch norm, leaky ReLU, a 1x1 convolution before the upsampling and `align_corners=True`. Both concatenate
the skip first.

Source: behaviour of taozh2017/UCSeg 7251be6.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812  (torch's own convention)
from torch import Tensor, nn

from ucseg_training.nets.subnet import SubnetOutput, check_image, init_kaiming

_DROPOUT_3D = 0.3
_DROPOUTS_2D = (0.05, 0.1, 0.2, 0.3, 0.5)


class UNet3d(nn.Module):
    """3D U-Net. The convolutions start Kaiming-normal.

    Args:
        in_channels: Channels of the image.
        num_classes: Logit channels K.
        width: Channels at full resolution; doubled at each of four halvings.
    """

    def __init__(self, in_channels: int, num_classes: int, width: int = 16) -> None:
        super().__init__()
        self.in_channels = in_channels
        w1, w2, w3, w4, w5 = (width * 2**level for level in range(5))
        self.conv1 = _DoubleConv(in_channels, w1)
        self.conv2 = _DoubleConv(w1, w2)
        self.conv3 = _DoubleConv(w2, w3)
        self.conv4 = _DoubleConv(w3, w4)
        self.center = _DoubleConv(w4, w5)
        self.up_concat4 = _UpConcat(w5, w4)
        self.up_concat3 = _UpConcat(w4, w3)
        self.up_concat2 = _UpConcat(w3, w2)
        self.up_concat1 = _UpConcat(w2, w1)
        self.final = nn.Conv3d(w1, num_classes, kernel_size=1)
        self.maxpool = nn.MaxPool3d(2)
        self.dropout = nn.Dropout(_DROPOUT_3D)
        init_kaiming(self)

    def forward(self, image: Tensor) -> SubnetOutput:
        """Logits and features of a batch of tiles.

        Args:
            image: (tiles, in_channels, *spatial), normalised intensities, sides multiples of 16.

        Returns:
            Logits (tiles, K, *spatial); the features are the four encoder stages and the centre after its dropout.

        Raises:
            ValueError: The shape of the image does not fit.
        """
        check_image("UNet3d", image, 3, self.in_channels)
        conv1 = self.conv1(image)  # (tiles, w, *spatial)
        conv2 = self.conv2(self.maxpool(conv1))  # (tiles, 2w, *spatial / 2)
        conv3 = self.conv3(self.maxpool(conv2))  # (tiles, 4w, *spatial / 4)
        conv4 = self.conv4(self.maxpool(conv3))  # (tiles, 8w, *spatial / 8)
        center = self.dropout(self.center(self.maxpool(conv4)))  # (tiles, 16w, *spatial / 16)
        up = self.up_concat4(conv4, center)
        up = self.up_concat3(conv3, up)
        up = self.up_concat2(conv2, up)
        up = self.dropout(self.up_concat1(conv1, up))
        return SubnetOutput(self.final(up), (conv1, conv2, conv3, conv4, center))


class _DoubleConv(nn.Module):
    """Twice [conv 3 -> instance norm without parameters -> ReLU]."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv1 = _conv_norm_relu(in_channels, out_channels)
        self.conv2 = _conv_norm_relu(out_channels, out_channels)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.conv2(self.conv1(x))
        return out


def _conv_norm_relu(in_channels: int, out_channels: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv3d(in_channels, out_channels, kernel_size=3, padding=1),
        nn.InstanceNorm3d(out_channels),
        nn.ReLU(inplace=True),
    )


class _UpConcat(nn.Module):
    """Upsample the deeper map twofold, concatenate [skip, upsampled], double convolution down to the skip's width."""

    def __init__(self, deep_channels: int, skip_channels: int) -> None:
        super().__init__()
        self.conv = _DoubleConv(skip_channels + deep_channels, skip_channels)

    def forward(self, skip: Tensor, deep: Tensor) -> Tensor:
        upsampled = F.interpolate(deep, scale_factor=2.0, mode="trilinear", align_corners=False)
        out: Tensor = self.conv(torch.cat((skip, upsampled), dim=1))
        return out


class UNet2d(nn.Module):
    """2D U-Net. The convolutions start as the library leaves them.

    Args:
        in_channels: Channels of the image.
        num_classes: Logit channels K.
        width: Channels at full resolution; doubled at each of four halvings.
    """

    def __init__(self, in_channels: int, num_classes: int, width: int = 16) -> None:
        super().__init__()
        self.in_channels = in_channels
        widths = tuple(width * 2**level for level in range(5))
        self.encoder = _Encoder2d(in_channels, widths)
        self.decoder = _Decoder2d(widths, num_classes)

    def forward(self, image: Tensor) -> SubnetOutput:
        """Logits and features of a batch of tiles.

        Args:
            image: (tiles, in_channels, *spatial), normalised intensities, sides multiples of 16.

        Returns:
            Logits (tiles, K, *spatial); the features are the five encoder stages.

        Raises:
            ValueError: The shape of the image does not fit.
        """
        check_image("UNet2d", image, 2, self.in_channels)
        features: tuple[Tensor, ...] = self.encoder(image)
        return SubnetOutput(self.decoder(features), features)


class _Encoder2d(nn.Module):
    def __init__(self, in_channels: int, widths: tuple[int, ...]) -> None:
        super().__init__()
        w1, w2, w3, w4, w5 = widths
        p1, p2, p3, p4, p5 = _DROPOUTS_2D
        self.in_conv = _ConvBlock(in_channels, w1, p1)
        self.down1 = _Down(w1, w2, p2)
        self.down2 = _Down(w2, w3, p3)
        self.down3 = _Down(w3, w4, p4)
        self.down4 = _Down(w4, w5, p5)

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        full = self.in_conv(image)  # (tiles, w, *spatial)
        half = self.down1(full)
        quarter = self.down2(half)
        eighth = self.down3(quarter)
        return full, half, quarter, eighth, self.down4(eighth)  # last: (tiles, 16w, *spatial / 16)


class _Decoder2d(nn.Module):
    def __init__(self, widths: tuple[int, ...], num_classes: int) -> None:
        super().__init__()
        w1, w2, w3, w4, w5 = widths
        self.up1 = _Up(w5, w4)
        self.up2 = _Up(w4, w3)
        self.up3 = _Up(w3, w2)
        self.up4 = _Up(w2, w1)
        self.out_conv = nn.Conv2d(w1, num_classes, kernel_size=3, padding=1)

    def forward(self, features: tuple[Tensor, ...]) -> Tensor:
        full, half, quarter, eighth, deepest = features
        up = self.up1(eighth, deepest)
        up = self.up2(quarter, up)
        up = self.up3(half, up)
        logits: Tensor = self.out_conv(self.up4(full, up))
        return logits


class _ConvBlock(nn.Module):
    """Twice [conv 3 -> batch norm -> leaky ReLU 0.01], with dropout in between."""

    def __init__(self, in_channels: int, out_channels: int, dropout: float) -> None:
        super().__init__()
        self.conv_conv = nn.Sequential(
            nn.Conv2d(in_channels, out_channels, kernel_size=3, padding=1),
            nn.BatchNorm2d(out_channels),
            nn.LeakyReLU(0.01, inplace=True),
            nn.Dropout(dropout),
            nn.Conv2d(out_channels, out_channels, kernel_size=3, padding=1),
            nn.BatchNorm2d(out_channels),
            nn.LeakyReLU(0.01, inplace=True),
        )

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.conv_conv(x)
        return out


class _Down(nn.Module):
    """Halve the sides by maximum, then a convolution block."""

    def __init__(self, in_channels: int, out_channels: int, dropout: float) -> None:
        super().__init__()
        self.maxpool_conv = nn.Sequential(nn.MaxPool2d(2), _ConvBlock(in_channels, out_channels, dropout))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.maxpool_conv(x)
        return out


class _Up(nn.Module):
    """1x1 convolution to the skip's width, upsample twofold, concatenate [skip, upsampled], convolution block."""

    def __init__(self, deep_channels: int, skip_channels: int) -> None:
        super().__init__()
        self.conv1x1 = nn.Conv2d(deep_channels, skip_channels, kernel_size=1)
        self.conv = _ConvBlock(2 * skip_channels, skip_channels, dropout=0.0)

    def forward(self, skip: Tensor, deep: Tensor) -> Tensor:
        upsampled = F.interpolate(self.conv1x1(deep), scale_factor=2.0, mode="bilinear", align_corners=True)
        out: Tensor = self.conv(torch.cat((skip, upsampled), dim=1))
        return out
