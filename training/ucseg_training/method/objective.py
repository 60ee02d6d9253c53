"""The whole training objective of UC-Seg: from a batch to one number, with every term that it is made of.

Source: behaviour of taozh2017/UCSeg 7251be6.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ucseg_training.errors import TrainingError
from ucseg_training.method import schedule
from ucseg_training.method.config import Method, MethodConfig
from ucseg_training.method.losses import Readout, hard_parts, mean_squared_difference, supervised_parts
from ucseg_training.method.mixing import draw_mixing
from ucseg_training.method.pseudo_labels import pseudo_labels
from ucseg_training.method.queues import PrototypeQueues, labelled_dice
from ucseg_training.method.schedule import TermWeights
from ucseg_training.method.subnet_pair import (
    SUBNETS,
    SubnetPair,
    contrast_terms,
    difference_terms,
    write_prototypes,
)
from ucseg_training.method.targets import PartialTarget
from ucseg_training.method.terms import Terms, TermSum
from ucseg_training.nets import DualNet, SubnetOutput, TrioConfig, TrioOutput

_MOST_NOISE = 2.0
"""Of the teacher's image, in standard deviations."""


@dataclass(frozen=True, eq=False)
class _Seen:
    """What the trio makes of a batch.

    Attributes:
        pair: Both subnets, in one group of labelled tiles and one of unlabelled tiles, if there are any.
        fused: The UPG, in the same groups; of labelled tiles alone where it gives no pseudo-labels.
    """

    pair: SubnetPair
    fused: tuple[Readout, ...]


@dataclass(frozen=True, eq=False)
class _Mixed:
    """Both subnets on the mixed tiles, and what those tiles show."""

    pair: SubnetPair
    target: PartialTarget


class UcSegObjective:
    """The losses of a run, with the queues of prototypes as their only state.

    A step without unlabelled tiles has the terms that need none: the supervised ones and, unless pseudo-labels are
    `none` or the teacher's, difference and contrast over the labelled tiles.

    Args:
        trio: Sizes of the networks.
        config: The choices.
        generator: On the CPU; draws the noise that the queues of compat start from.

    Raises:
        TrainingError: The choices do not fit the networks.
    """

    def __init__(self, trio: TrioConfig, config: MethodConfig, generator: torch.Generator) -> None:
        self.method = Method(config, trio)
        self._queues = PrototypeQueues(self.method, generator) if config.use_ccp else None
        self._compares = config.pseudo_labels in ("upg", "mean")

    def __call__(
        self,
        net: DualNet,
        images: Tensor,
        target: PartialTarget,
        unlabelled: Tensor | None,
        step: int,
        generator: torch.Generator,
        teacher: DualNet | None = None,
    ) -> Terms:
        """Run the networks on a batch and say what it costs; then keep its prototypes if they are good enough.

        The networks run in the caller's autocast mode, the losses in float32. Whether networks are in training mode is
        the caller's choice.

        Args:
            net: The trio.
            images: (tiles, in_channels, *tile_shape), labelled.
            target: What is known of them.
            unlabelled: (tiles, in_channels, *tile_shape), or None. As many as labelled ones where tiles are mixed.
            step: Steps done, from 0.
            generator: On the CPU. All that this object draws comes from it; dropout is torch's own.
            teacher: The running average of the trio, for pseudo-labels `teacher` alone.

        Raises:
            TrainingError: Batch and configuration do not fit, or a term is not finite. The queues are then unchanged.
        """
        self._check(images, target, unlabelled, step, teacher)
        seen = self._see(net, images, unlabelled)
        pseudo = self._pseudo_labels(seen)
        mixed = None
        if unlabelled is not None and pseudo is not None and schedule.is_mixing(step, self.method):
            mixed = self._mix(net, (images, unlabelled), (target, pseudo), generator)
        weights = schedule.term_weights(step, self.method, mixing=mixed is not None)
        terms = TermSum()
        with _exact(images):
            self._add_supervised(terms, seen, target, step)
            if self._compares:
                self._add_comparison(terms, seen.pair, weights)
            if pseudo is not None:
                self._add_hard(terms, "unsupervised", seen.pair.groups[1], pseudo, weights)
            if mixed is not None:
                self._add_hard(terms, "mixed", mixed.pair.groups[0], mixed.target, weights)
                self._add_comparison(terms, mixed.pair, weights, "mixed_")
        if teacher is not None and unlabelled is not None:
            self._add_consistency(terms, seen, self._ask(teacher, unlabelled, generator), step)
        with _exact(images):
            quality = self._labelled_dice(seen, target)
            result = terms.finish(step, quality)
            self._keep_prototypes(seen.pair, target, pseudo, quality, step)
        return result

    def to(self, device: torch.device) -> UcSegObjective:
        """Move the state, in place."""
        if self._queues is not None:
            self._queues.to(device)
        return self

    def state(self) -> dict[str, Tensor]:
        """A copy of all state as flat tensors; empty without prototypes."""
        return {} if self._queues is None else self._queues.state()

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Put back what `state` took, so that the next step is that of an undisturbed run.

        Raises:
            TrainingError: The state belongs to another method; nothing is changed.
        """
        if self._queues is not None:
            self._queues.restore(state)
        elif state:
            raise TrainingError(
                f"the state holds {len(state)} tensors of prototype queues; this method has none.",
                hint="Continue with the configuration that the run was started with.",
            )

    def _see(self, net: DualNet, images: Tensor, unlabelled: Tensor | None) -> _Seen:
        """One forward pass of everything, labelled tiles first."""
        activation, labelled = self.method.trio.activation, len(images)
        batch = images if unlabelled is None else torch.cat((images, unlabelled))
        sizes = [labelled] if unlabelled is None else [labelled, len(unlabelled)]
        if self.method.config.pseudo_labels == "mean":
            # The UPG learns to fuse what it is given, but the subnets learn nothing through it.
            a, b = net.subnet_a(batch), net.subnet_b(batch)
            fused_logits: Sequence[Tensor] = [net.upg(a.logits[:labelled].detach(), b.logits[:labelled].detach())]
        else:
            output: TrioOutput = net(batch)
            a = SubnetOutput(output.logits_a, output.features_a)
            b = SubnetOutput(output.logits_b, output.features_b)
            fused_logits = torch.split(output.fused_logits, sizes)
        with _exact(images):
            fused = tuple(Readout.of(logits, activation) for logits in fused_logits)
            return _Seen(SubnetPair.of(a, b, sizes, activation), fused)

    def _pseudo_labels(self, seen: _Seen) -> PartialTarget | None:
        """Of the unlabelled tiles; None without such tiles, or where no hard labels are asked for."""
        if not self._compares or len(seen.pair.groups) == 1:
            return None
        with _exact(seen.fused[0].logits):
            if self.method.config.pseudo_labels == "upg":
                return pseudo_labels(seen.fused[1].probabilities, self.method)
            a, b = seen.pair.groups[1]
            return pseudo_labels(0.5 * (a.probabilities.detach() + b.probabilities.detach()), self.method)

    def _mix(
        self,
        net: DualNet,
        images: tuple[Tensor, Tensor],
        targets: tuple[PartialTarget, PartialTarget],
        generator: torch.Generator,
    ) -> _Mixed:
        """Labelled and unlabelled tiles pasted into each other, seen by both subnets. Nothing asks for the UPG here."""
        mixing = draw_mixing(self.method.trio.tile_shape, generator, self.method.compat)
        image = mixing.image(*images)
        a, b = net.subnet_a(image), net.subnet_b(image)
        with _exact(image):
            pair = SubnetPair.of(a, b, [len(image)], self.method.trio.activation)
            return _Mixed(pair, mixing.target(*targets))

    def _ask(self, teacher: DualNet, unlabelled: Tensor, generator: torch.Generator) -> Tensor:
        """The teacher's probabilities for unlabelled tiles with noise, (tiles, K, *tile_shape)."""
        noise = torch.randn(unlabelled.shape, generator=generator).clamp(-_MOST_NOISE, _MOST_NOISE)
        noisy = unlabelled + self.method.config.teacher_noise * noise.to(unlabelled)
        with torch.no_grad():
            fused_logits = teacher(noisy).fused_logits
            with _exact(unlabelled):
                return Readout.of(fused_logits, self.method.trio.activation).probabilities

    def _add_supervised(self, terms: TermSum, seen: _Seen, target: PartialTarget, step: int) -> None:
        weight = schedule.uncertainty_weight(step, self.method)
        rule, axis_order = self.method.dice_rule, self.method.config.axis_order
        for name, share, readout in _outputs(seen, 0):
            terms.add(f"supervised_{name}", share, supervised_parts(readout, target, weight, rule, axis_order))

    def _add_hard(
        self, terms: TermSum, name: str, readouts: tuple[Readout, Readout], target: PartialTarget, weights: TermWeights
    ) -> None:
        rule, axis_order = self.method.dice_rule, self.method.config.axis_order
        for subnet, readout in zip(SUBNETS, readouts, strict=True):
            terms.add(f"{name}_{subnet}", weights.unsupervised, hard_parts(readout, target, rule, axis_order))

    def _add_comparison(self, terms: TermSum, pair: SubnetPair, weights: TermWeights, prefix: str = "") -> None:
        for subnet, difference in zip(SUBNETS, difference_terms(pair, self.method.compat), strict=True):
            terms.add(f"{prefix}difference_{subnet}", weights.difference, difference)
        if self._queues is None:
            return
        contrast = contrast_terms(pair, self._queues, self.method)
        terms.add(f"{prefix}patch", weights.patch, contrast.patch)
        for subnet, prototype in zip(SUBNETS, contrast.prototype, strict=True):
            terms.add(f"{prefix}prototype_{subnet}", weights.prototype, prototype)

    def _add_consistency(self, terms: TermSum, seen: _Seen, probabilities: Tensor, step: int) -> None:
        """Squared difference of all three outputs from the teacher's, in the shares of the supervised losses."""
        weight = schedule.ramp(step, self.method)
        with _exact(probabilities):
            for name, share, readout in _outputs(seen, 1):
                terms.add(f"consistency_{name}", share * weight, mean_squared_difference(readout, probabilities))

    def _labelled_dice(self, seen: _Seen, target: PartialTarget) -> tuple[float, float] | None:
        if self._queues is None:
            return None
        a, b = (labelled_dice(readout.probabilities, target, self.method.compat) for readout in seen.pair.groups[0])
        return a, b

    def _keep_prototypes(
        self,
        pair: SubnetPair,
        target: PartialTarget,
        pseudo: PartialTarget | None,
        quality: tuple[float, float] | None,
        step: int,
    ) -> None:
        """Write the prototypes of each subnet that is good enough on the labelled tiles."""
        if self._queues is None or quality is None:
            return
        threshold = schedule.write_threshold(step, self.method)
        labels = target.present if pseudo is None else torch.cat((target.present, pseudo.present))
        for subnet, dice in enumerate(quality):
            if dice > threshold:
                write_prototypes(pair, subnet, labels, self._queues, self.method.compat)

    def _check(
        self, images: Tensor, target: PartialTarget, unlabelled: Tensor | None, step: int, teacher: DualNet | None
    ) -> None:
        trio, config = self.method.trio, self.method.config
        if step < 0:
            raise TrainingError(f"the step is {step}; expected 0 or more.")
        expected = (len(images), trio.num_classes, *trio.tile_shape)
        if tuple(target.present.shape) != expected:
            raise TrainingError(f"the target has shape {tuple(target.present.shape)}; expected {expected}.")
        if (teacher is not None) != (config.pseudo_labels == "teacher"):
            found = "no teacher" if teacher is None else "a teacher"
            raise TrainingError(f"there is {found}; pseudo_labels is {config.pseudo_labels!r}.")
        if unlabelled is not None:
            self._check_unlabelled(len(images), len(unlabelled))
        if self._queues is not None:
            self._queues.check_batch(len(images) + (0 if unlabelled is None else len(unlabelled)))

    def _check_unlabelled(self, labelled: int, unlabelled: int) -> None:
        config = self.method.config
        if config.pseudo_labels == "none":
            raise TrainingError(
                f"there are {unlabelled} unlabelled tiles, and pseudo_labels is 'none'.",
                hint="Draw no unlabelled tiles, or choose where their pseudo-labels come from.",
            )
        # Said in the first step, not in the one that mixing starts with.
        if config.use_mixing and labelled != unlabelled:
            raise TrainingError(
                f"the batch has {labelled} labelled and {unlabelled} unlabelled tiles; mixing pairs them.",
                hint="Draw as many unlabelled as labelled tiles, or set use_mixing to False.",
            )


def _outputs(seen: _Seen, group: int) -> tuple[tuple[str, float, Readout], ...]:
    """Name, share in the total and readout of all three outputs for one group of tiles."""
    a, b = seen.pair.groups[group]
    return (SUBNETS[0], 0.5, a), (SUBNETS[1], 0.5, b), ("fused", 1.0, seen.fused[group])


def _exact(tensor: Tensor) -> torch.autocast:
    """No lower precision than the tensors have: half precision has too few digits for sums over a tile."""
    return torch.autocast(tensor.device.type, enabled=False)
