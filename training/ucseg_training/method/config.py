"""What may be chosen about the training objective, and what follows from it for one trio."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

from ucseg_training.errors import TrainingError
from ucseg_training.nets import TrioConfig

Mode = Literal["compat", "fixed"]
"""compat: upstream's arithmetic, accidents included. fixed: the same method without them."""

PseudoLabelSource = Literal["upg", "mean", "teacher", "none"]
DiceRule = Literal["slice", "tile", "batch"]
AxisOrder = Literal["zyx", "xyz"]

UPSTREAM_STEPS = 50_000
"""Length of upstream's runs, to which its absolute step numbers belong."""

_UPSTREAM_RAMP_END = 30_000
_UPSTREAM_MIXING_START = {2: 12_000, 3: 6_000}
_MIXING_START = {2: 0.24, 3: 0.12}
_RAMP_END = 0.6
_QUEUE_LENGTH = {2: 1440, 3: 144}


@dataclass(frozen=True)
class MethodConfig:
    """The choices of a run that concern its losses. Valid once constructed; None means the default of the trio.

    Attributes:
        total_steps: Steps over which every schedule runs, T.
        mode: `fixed`, or `compat` to reproduce upstream's numbers.
        use_ccp: Whether the features of both subnets are contrasted (patch and prototype terms).
        use_mixing: Whether unlabelled and labelled tiles are pasted into each other later in the run.
        pseudo_labels: Where the target of unlabelled tiles comes from. `upg`: the fused output. `mean`: the mean of
            both subnets' probabilities; the UPG is then trained beside them without influence on them. `teacher`: a
            running average of the trio, by mean squared error (the mean-teacher baseline). `none`: labels alone.
        dice: What one Dice is taken over. `slice`: tile, channel and slice. `tile`: tile and channel. `batch`: each
            foreground class that occurs, over the whole batch; the rule for partial labels with many classes, since a
            class that is nowhere in a tile costs nothing. None: `slice` in compat, `tile` in fixed.
        largest_component: Whether pseudo-labels and prototype masks keep the largest component of every foreground
            class alone. None: on, but for 2D sigmoid. Turn it off for classes of several parts.
        axis_order: Order of the trio's spatial axes in 3D; says which of them is the slice axis.
        unsupervised_factor: Factor of the weight of the losses against pseudo-labels, which ends at a tenth of it.
        temperature: Of the contrastive terms.
        queue_length: Prototypes kept per class, subnet and level, a multiple of the tiles in a batch. None: 144 in 3D,
            1440 in 2D.
        mixing_start: Fraction of the run after which tiles are mixed. None: 0.12 in 3D, 0.24 in 2D. Compat keeps
            upstream's step numbers whatever the length of the run.
        ramp_end: Fraction of the run after which the unsupervised weight stays. None: 0.6. Compat as above.
        teacher_noise: Standard deviation of the noise on the teacher's image, cut at twice its size.

    Raises:
        TrainingError: A value is out of range, or choices exclude each other.
    """

    total_steps: int = UPSTREAM_STEPS
    mode: Mode = "fixed"
    use_ccp: bool = True
    use_mixing: bool = True
    pseudo_labels: PseudoLabelSource = "upg"
    dice: DiceRule | None = None
    largest_component: bool | None = None
    axis_order: AxisOrder = "zyx"
    unsupervised_factor: float = 150.0
    temperature: float = 0.3
    queue_length: int | None = None
    mixing_start: float | None = None
    ramp_end: float | None = None
    teacher_noise: float = 0.1

    def __post_init__(self) -> None:
        for name, allowed in _ALLOWED.items():
            _check(name, getattr(self, name), getattr(self, name) in allowed, f"one of {allowed}")
        for name in ("total_steps", "queue_length"):
            value = getattr(self, name)
            _check(name, value, value is None or (isinstance(value, int) and value > 0), "an integer above 0")
        for name in ("mixing_start", "ramp_end"):
            value = getattr(self, name)
            _check(name, value, value is None or 0.0 < value <= 1.0, "a fraction of the run, above 0 and at most 1")
            _check(name, value, value is None or self.mode == "fixed", "None in compat, which keeps upstream's steps")
        for name in ("unsupervised_factor", "teacher_noise"):
            value = getattr(self, name)
            _check(name, value, math.isfinite(value) and value >= 0.0, "a finite number of at least 0")
        _check("temperature", self.temperature, math.isfinite(self.temperature) and self.temperature > 0.0, "above 0")
        plain = self.pseudo_labels in ("teacher", "none")
        for name in ("use_ccp", "use_mixing"):
            value = getattr(self, name)
            _check(name, value, not (plain and value), f"False with pseudo_labels={self.pseudo_labels!r}")


@dataclass(frozen=True)
class Method:
    """A configuration applied to one trio: every value that the losses read, with no default left open.

    Attributes:
        config: The choices.
        trio: Sizes of the networks.

    Raises:
        TrainingError: The choices do not fit the networks.
    """

    config: MethodConfig
    trio: TrioConfig

    def __post_init__(self) -> None:
        trio, config = self.trio, self.config
        if trio.activation == "sigmoid" and trio.num_classes != 2:
            raise TrainingError(
                f"the trio has {trio.num_classes} sigmoid channels; sigmoid is for background and foreground, 2.",
                hint="Use activation 'softmax' for more classes.",
            )
        if config.use_ccp and trio.unet_width != trio.vnet_width:
            raise TrainingError(
                f"the contrastive terms compare features of both subnets, which are {trio.unet_width} and "
                f"{trio.vnet_width} wide at full resolution.",
                hint="Make both widths equal, or set use_ccp to False.",
            )
        if self.compat and self._is_2d_sigmoid and config.largest_component:
            raise TrainingError(
                "largest_component is True for a 2D sigmoid trio in compat; upstream has no such variant.",
                hint="Leave it at None, or use mode 'fixed'.",
            )

    @property
    def compat(self) -> bool:
        """Whether upstream's arithmetic is asked for, accidents included."""
        return self.config.mode == "compat"

    @property
    def dim(self) -> int:
        """Spatial dimensions, 2 or 3."""
        return self.trio.dim

    @property
    def sigmoid(self) -> bool:
        """Whether the channels are background and foreground with a sigmoid each; otherwise softmax."""
        return self.trio.activation == "sigmoid"

    @property
    def dice_rule(self) -> DiceRule:
        """What one Dice is taken over."""
        return self.config.dice or ("slice" if self.compat else "tile")

    @property
    def largest_component(self) -> bool:
        """Whether pseudo-labels and prototype masks keep only the largest component of every foreground class."""
        chosen = self.config.largest_component
        return not self._is_2d_sigmoid if chosen is None else chosen

    @property
    def queue_length(self) -> int:
        """Prototypes kept per class, subnet and level."""
        return self.config.queue_length or _QUEUE_LENGTH[self.dim]

    @property
    def mixing_start(self) -> float:
        """Step from which tiles are mixed."""
        if self.compat:
            return _UPSTREAM_MIXING_START[self.dim]
        return (self.config.mixing_start or _MIXING_START[self.dim]) * self.config.total_steps

    @property
    def ramp_end(self) -> float:
        """Step from which the unsupervised weight stays as it is."""
        return _UPSTREAM_RAMP_END if self.compat else (self.config.ramp_end or _RAMP_END) * self.config.total_steps

    @property
    def _is_2d_sigmoid(self) -> bool:
        return self.dim == 2 and self.sigmoid


_ALLOWED: dict[str, tuple[str | None, ...]] = {
    "mode": get_args(Mode),
    "pseudo_labels": get_args(PseudoLabelSource),
    "axis_order": get_args(AxisOrder),
    "dice": (*get_args(DiceRule), None),
}


def _check(name: str, value: object, fits: bool, expected: str) -> None:
    if not fits:
        raise TrainingError(f"MethodConfig.{name} is {value!r}; expected {expected}.")
