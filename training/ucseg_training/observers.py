"""What a training run tells while it goes on: log lines, a progress bar with the time left, TensorBoard."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

import numpy as np
import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch import Tensor

from ucseg_runtime.arrays import UInt8Array
from ucseg_training.nets import DualNet, uncertainty

_LOG = logging.getLogger(__name__)


class Observer(Protocol):
    """Is told what happens; changes nothing."""

    def stepped(self, step: int, terms: Mapping[str, Tensor], learning_rate: float) -> None:
        """A step is done.

        Args:
            step: Steps done so far.
            terms: Value of every term of the loss, detached.
            learning_rate: That was used.
        """

    def validated(self, step: int, score: float) -> None:
        """The weights were scored; `score` is the mean Dice over validation cases and classes."""

    def showed(self, step: int, panel: UInt8Array) -> None:
        """An image panel was drawn: uint8, shape (rows, columns, 3)."""


class LogLines:
    """Mean of every term over the last steps, as one log line.

    Args:
        every: Steps per line.
    """

    def __init__(self, every: int = 50) -> None:
        self._every = every
        self._terms: list[Mapping[str, Tensor]] = []
        self._started = time.monotonic()

    def stepped(self, step: int, terms: Mapping[str, Tensor], learning_rate: float) -> None:
        """See `Observer`."""
        del learning_rate
        self._terms.append(terms)
        if step % self._every:
            return
        seconds = (time.monotonic() - self._started) / len(self._terms)
        names = dict.fromkeys(name for found in self._terms for name in found)
        means = {name: np.mean([float(found[name]) for found in self._terms if name in found]) for name in names}
        words = ", ".join(f"{name} {mean:.3f}" for name, mean in means.items())
        _LOG.info("step %d: %s; %.2f s a step", step, words, seconds)
        self._terms, self._started = [], time.monotonic()

    def validated(self, step: int, score: float) -> None:
        """See `Observer`."""
        _LOG.info("step %d: validation Dice %.4f", step, score)

    def showed(self, step: int, panel: UInt8Array) -> None:
        """See `Observer`; a log shows no images."""


class ProgressBar:
    """A bar with the time left on a terminal; used as a context.

    Args:
        steps: Steps of the whole run.
        done: Steps that were done before.
    """

    def __init__(self, steps: int, done: int = 0) -> None:
        self._progress = Progress(
            TextColumn("training"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn()
        )
        self._task = self._progress.add_task("training", total=steps, completed=done)

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def stepped(self, step: int, terms: Mapping[str, Tensor], learning_rate: float) -> None:
        """See `Observer`."""
        del terms, learning_rate
        self._progress.update(self._task, completed=step)

    def validated(self, step: int, score: float) -> None:
        """See `Observer`; the log says it."""

    def showed(self, step: int, panel: UInt8Array) -> None:
        """See `Observer`; a bar shows no images."""


class TermsTable:
    """Every term of every step as CSV: step, term, value; used as a context. A continued run goes on writing.

    Args:
        path: The file.
    """

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._stream = path.open("a", encoding="utf-8")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stream.close()

    def stepped(self, step: int, terms: Mapping[str, Tensor], learning_rate: float) -> None:
        """See `Observer`."""
        self._stream.write(f"{step},learning_rate,{learning_rate!r}\n")
        self._stream.writelines(f"{step},{name},{float(value)!r}\n" for name, value in terms.items())

    def validated(self, step: int, score: float) -> None:
        """See `Observer`."""
        self._stream.write(f"{step},validation_dice,{score!r}\n")

    def showed(self, step: int, panel: UInt8Array) -> None:
        """See `Observer`; a table shows no images."""


class TensorBoard:
    """Scalars and image panels for TensorBoard; used as a context.

    Args:
        folder: Receives the event files.
        first_step: Step that the run goes on from; later events of an interrupted run are dropped.
        every: Steps per scalar.
    """

    def __init__(self, folder: Path, first_step: int = 0, every: int = 10) -> None:
        # The import takes a second, and not every run wants it.
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(folder), purge_step=first_step)
        self._every = every

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._writer.close()

    def stepped(self, step: int, terms: Mapping[str, Tensor], learning_rate: float) -> None:
        """See `Observer`."""
        if step % self._every:
            return
        for name, value in terms.items():
            self._writer.add_scalar(f"loss/{name}", float(value), step)
        self._writer.add_scalar("learning_rate", learning_rate, step)

    def validated(self, step: int, score: float) -> None:
        """See `Observer`."""
        self._writer.add_scalar("validation/dice", score, step)

    def showed(self, step: int, panel: UInt8Array) -> None:
        """See `Observer`."""
        self._writer.add_image("panel", panel, step, dataformats="HWC")


def draw_panel(net: DualNet, image: Tensor, label_map: Tensor) -> UInt8Array:
    """The middle slice of the first tile: image, labels, prediction and uncertainty side by side.

    Args:
        net: Trio; its mode is as before afterwards.
        image: float32, (tiles, channels, *tile_shape).
        label_map: int64, (tiles, *tile_shape).

    Returns:
        uint8, shape (rows, 4 x columns, 3).
    """
    training = net.training
    with torch.inference_mode():
        logits = net.eval()(image[:1]).fused_logits
    net.train(training)
    middle = () if net.config.dim == 2 else (net.config.tile_shape[0] // 2,)
    predicted = logits[0].argmax(dim=0) if net.config.activation == "softmax" else (logits[0, 1] > 0).long()
    planes = [_grey(image[0, 0][middle]), *(_grey(labels[middle].float()) for labels in (label_map[0], predicted))]
    planes.append((uncertainty(logits)[0, 0][middle].clamp(0, 1) * 255).byte().cpu().numpy())
    row: UInt8Array = np.concatenate(planes, axis=1)
    return np.repeat(row[..., None], 3, axis=2)


def _grey(plane: Tensor) -> UInt8Array:
    least, most = plane.min(), plane.max()
    scaled: UInt8Array = ((plane - least) / (most - least).clamp(min=1e-6) * 255).byte().cpu().numpy()
    return scaled
