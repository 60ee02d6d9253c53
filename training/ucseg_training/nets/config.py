"""What fixes the architecture of a trio: one frozen, JSON-able value that is stored in every checkpoint."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

Activation = Literal["sigmoid", "softmax"]

SIDE_DIVISOR = 16
"""Both subnets halve every spatial side four times."""

_HEAD_STAGES_BEFORE_LAST = 5
_LOWEST_INTEGERS = {
    "dim": 2,
    "in_channels": 1,
    "num_classes": 2,
    "unet_width": 1,
    "vnet_width": 1,
    "token_side": 1,
    "attention_width": 1,
    "heads": 1,
    "head_dim": 1,
    "mlp_hidden": 1,
}


@dataclass(frozen=True)
class TrioConfig:
    """Sizes of subnet A, subnet B and the UPG. Valid once constructed.

    The defaults are upstream's 3D sizes. The 2D networks use a smaller attention: start from `upstream_2d_binary` or
    `upstream_acdc` there.

    Attributes:
        dim: Spatial dimensions of the networks, 2 or 3.
        in_channels: Channels of the image.
        num_classes: Logit channels K, background included.
        tile_shape: Spatial shape of every tile, in voxels. The UPG's position table belongs to this one shape.
        unet_width: Channels of subnet A at full resolution; doubled at each of four halvings.
        vnet_width: The same for subnet B.
        token_side: Side of one UPG token, in voxels; divides every side of the tile.
        attention_width: Channels of an embedded token.
        heads: Attention heads.
        head_dim: Channels of one attention head; heads * head_dim need not equal attention_width.
        mlp_hidden: Hidden channels of the perceptron after the attention.
        head_widths: Channels of the first five stages of the fusion head; the sixth has K.
        activation: How logits become probabilities: sigmoid per channel, or softmax over the channels.

    Raises:
        ValueError: A value is out of range, or the sides of the tile do not fit the networks.
    """

    dim: int
    in_channels: int
    num_classes: int
    tile_shape: tuple[int, ...]
    unet_width: int = 16
    vnet_width: int = 16
    token_side: int = 16
    attention_width: int = 1024
    heads: int = 8
    head_dim: int = 128
    mlp_hidden: int = 384
    head_widths: tuple[int, ...] = (16, 32, 64, 32, 16)
    activation: Activation = "sigmoid"

    def __post_init__(self) -> None:
        self._check_scalars()
        self._check_tile_shape()
        self._check_head_widths()
        if self.activation not in get_args(Activation):
            raise ValueError(f"TrioConfig.activation is {self.activation!r}; expected one of {get_args(Activation)}.")

    @classmethod
    def upstream_3d(cls, tile_shape: tuple[int, int, int] = (96, 96, 96)) -> TrioConfig:
        """Upstream's 3D trio: one input channel, background and foreground as two sigmoid channels."""
        return cls(dim=3, in_channels=1, num_classes=2, tile_shape=tile_shape)

    @classmethod
    def upstream_2d_binary(cls) -> TrioConfig:
        """Upstream's trio for colour images of 224 x 224, background and foreground as two sigmoid channels."""
        return cls(
            dim=2,
            in_channels=3,
            num_classes=2,
            tile_shape=(224, 224),
            token_side=14,
            attention_width=96,
            head_dim=64,
        )

    @classmethod
    def upstream_acdc(cls) -> TrioConfig:
        """Upstream's trio for ACDC slices of 256 x 256: grey repeated on three channels, four softmax classes."""
        return cls(
            dim=2,
            in_channels=3,
            num_classes=4,
            tile_shape=(256, 256),
            attention_width=96,
            head_dim=64,
            activation="softmax",
        )

    @classmethod
    def from_dict(cls, values: Mapping[str, object]) -> TrioConfig:
        """The configuration that `to_dict` wrote, also after a round trip through JSON.

        Raises:
            ValueError: A key is missing or unknown, or a value is not valid.
        """
        names = {field.name for field in dataclasses.fields(cls)}
        if names != set(values):
            missing, unknown = sorted(names - set(values)), sorted(set(values) - names)
            raise ValueError(f"TrioConfig: missing keys {missing}, unknown keys {unknown}.")
        # Any: the constructor checks every value.
        arguments: dict[str, Any] = {n: tuple(v) if isinstance(v, list) else v for n, v in values.items()}
        return cls(**arguments)

    def to_dict(self) -> dict[str, object]:
        """All fields by name, with lists for tuples, so that JSON keeps it as it is."""
        values = dataclasses.asdict(self)
        return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}

    @property
    def token_grid(self) -> tuple[int, ...]:
        """Tokens along each spatial axis."""
        return tuple(side // self.token_side for side in self.tile_shape)

    @property
    def token_count(self) -> int:
        """Tokens in one tile, N."""
        return math.prod(self.token_grid)

    @property
    def token_length(self) -> int:
        """Voxels in one token."""
        return math.prod([self.token_side] * self.dim)

    def _check_scalars(self) -> None:
        for name, lowest in _LOWEST_INTEGERS.items():
            _check_int(name, getattr(self, name), lowest)
        if self.dim > 3:
            raise ValueError(f"TrioConfig.dim is {self.dim}; expected 2 or 3.")

    def _check_tile_shape(self) -> None:
        _check_ints("tile_shape", self.tile_shape, self.dim)
        for divisor, reason in ((SIDE_DIVISOR, "four halvings"), (self.token_side, "token_side")):
            if any(side % divisor for side in self.tile_shape):
                raise ValueError(
                    f"TrioConfig.tile_shape is {self.tile_shape}; every side must be a multiple of {divisor} "
                    f"({reason})."
                )
        if self.dim == 2 and len(set(self.tile_shape)) != 1:
            raise ValueError(f"TrioConfig.tile_shape is {self.tile_shape}; 2D tiles must be square.")
        if math.prod(self.tile_shape) == SIDE_DIVISOR**self.dim:
            raise ValueError(
                f"TrioConfig.tile_shape is {self.tile_shape}; the deepest stage would hold one voxel, which cannot be "
                f"normalised. Use at least one side of {2 * SIDE_DIVISOR}."
            )

    def _check_head_widths(self) -> None:
        _check_ints("head_widths", self.head_widths, _HEAD_STAGES_BEFORE_LAST)


def _check_int(name: str, value: object, lowest: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < lowest:
        raise ValueError(f"TrioConfig.{name} is {value!r}; expected an integer of at least {lowest}.")


def _check_ints(name: str, values: Sequence[object], length: int) -> None:
    if not isinstance(values, tuple) or len(values) != length:
        raise ValueError(f"TrioConfig.{name} is {values!r}; expected a tuple of {length} integers.")
    for index, value in enumerate(values):
        _check_int(f"{name}[{index}]", value, 1)
