"""``ucseg-train demo``: the model that the package ships."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from ucseg_training.cli.surroundings import OUT, SEED, THREADS, require_known, running

_DIM = typer.Option("--dim", help="3: the demo model. 2: a phantom-trained model for planes.")
_CHANNELS = typer.Option("--channels", help="Of the planes: 3 for colour, 1 for grey.")
_STEPS = typer.Option("--steps", min=1, help="Optimiser steps; default 1300, and 300 for planes.")
_STOP_AFTER = typer.Option("--stop-after", min=1, help="Step to stop at before the schedule has ended.")
_SETTLE_STEPS = typer.Option("--settle-steps", min=0, help="Steps in which the UPG alone is trained on.")
_LEAVE_OUT = typer.Option("--leave-out", help="Patient (B, C or D) that is not trained on.")


def demo(
    out: Annotated[Path, OUT],
    dim: Annotated[Literal["3", "2"], _DIM] = "3",
    channels: Annotated[Literal["1", "3"], _CHANNELS] = "1",
    steps: Annotated[int | None, _STEPS] = None,
    stop_after: Annotated[int | None, _STOP_AFTER] = None,
    settle_steps: Annotated[int, _SETTLE_STEPS] = 200,
    leave_out: Annotated[str | None, _LEAVE_OUT] = None,
    seed: Annotated[int, SEED] = 42,
    threads: Annotated[int, THREADS] = 0,
) -> None:
    """Train the demo model on patients B, C and D and two unlabelled CTs; patient A is never read.

    With --dim 2 a small model for planes, taught on made-up images, for software tests alone.
    """
    if dim == "2":
        _train_phantom(out, int(channels), steps or 300, seed, threads)
        return
    if channels != "1":
        raise typer.BadParameter("3 is for --dim 2", param_hint="--channels")
    from ucseg_training.demo_training import LABELLED, DemoSchedule, train_demo
    from ucseg_training.observers import LogLines

    if leave_out is not None:
        require_known([leave_out], LABELLED, "--leave-out")
    with running(threads, out):
        schedule = DemoSchedule(steps or DemoSchedule.steps, stop_after, settle_steps)
        typer.echo(train_demo(out, schedule, leave_out, seed, observers=[LogLines()]))


def _train_phantom(out: Path, channels: int, steps: int, seed: int, threads: int) -> None:
    from ucseg_training.observers import LogLines
    from ucseg_training.phantom_training import train_phantom

    with running(threads, out):
        typer.echo(train_phantom(out, channels, steps, seed, observers=[LogLines()]))
