"""``ucseg-train run``: train a trio on a data set."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from ucseg_training.cli.surroundings import OUT, THREADS, running

if TYPE_CHECKING:
    from ucseg_training.run_training import DryRun

_DATA = typer.Argument(help="Folder of the data set, or a list of cases in JSON or CSV.")
_SPEC = typer.Option("--spec", help="Preset (la, pancreas_ct, brats2019, acdc, polyp, isic2018, thyroid_us) or YAML.")
_LABELLED = typer.Option("--labelled", help="Training cases that are labelled: a number, or a name such as 10%.")
_STEPS = typer.Option("--steps", min=1, help="Optimiser steps.")
_STOP_AFTER = typer.Option("--stop-after", min=1, help="Step to stop at before the schedule has ended.")
_SIZE = typer.Option("--size", help="full: upstream's networks. slim: half as wide, with a small UPG.")
_MODE = typer.Option("--mode", help="fixed, or compat: upstream's arithmetic, accidents included.")
_METHOD = typer.Option("--method", help="upg: UC-Seg. mean, teacher, none: pseudo-labels of the baselines.")
_PRECISION = typer.Option("--precision", help="Of the networks; losses are float32.")
_DEVICE = typer.Option("--device", help="auto takes a GPU where there is one.")
_BATCH = typer.Option("--batch-size", min=2, help="Tiles per batch, half of them labelled; default of the data set.")
_ACCUMULATE = typer.Option("--accumulate", min=1, help="Batches whose gradients make one step.")
_VALIDATE = typer.Option("--validate-every", min=0, help="Steps between validations; 0 keeps the last weights.")
_CHECKPOINT = typer.Option("--checkpoint-every", min=1, help="Steps between states on disk.")
_SKIP = typer.Option("--skip-bad-cases", help="Leave out cases that cannot be used, and list them.")
_DRY = typer.Option("--dry-run", help="Check every case and try three steps; train nothing.")
_EXAMPLE_OUT = typer.Option("--out", help="Folder for images, list of cases and description.")
_LARGEST = typer.Option(
    "--largest-component/--no-largest-component",
    help="Whether pseudo-labels keep the largest piece of every class alone; default for all but 2D binary. Turn it "
    "off for classes of several pieces.",
)
_SEED = typer.Option("--seed", min=0, help="Seed of everything random; default of the data set.")


def run(
    data: Annotated[Path, _DATA],
    spec: Annotated[str, _SPEC],
    out: Annotated[Path, OUT],
    labelled: Annotated[str | None, _LABELLED] = None,
    steps: Annotated[int, _STEPS] = 50_000,
    stop_after: Annotated[int | None, _STOP_AFTER] = None,
    size: Annotated[Literal["full", "slim"], _SIZE] = "full",
    mode: Annotated[Literal["fixed", "compat"], _MODE] = "fixed",
    method: Annotated[Literal["upg", "mean", "teacher", "none"], _METHOD] = "upg",
    precision: Annotated[Literal["f32", "bf16"], _PRECISION] = "f32",
    device: Annotated[Literal["auto", "cpu", "cuda"], _DEVICE] = "auto",
    batch_size: Annotated[int | None, _BATCH] = None,
    accumulate: Annotated[int, _ACCUMULATE] = 1,
    validate_every: Annotated[int, _VALIDATE] = 200,
    checkpoint_every: Annotated[int, _CHECKPOINT] = 200,
    skip_bad_cases: Annotated[bool, _SKIP] = False,
    dry_run: Annotated[bool, _DRY] = False,
    seed: Annotated[int | None, _SEED] = None,
    largest_component: Annotated[bool | None, _LARGEST] = None,
    threads: Annotated[int, THREADS] = 0,
) -> None:
    """Train UC-Seg, or a baseline, on a data set. The same command goes on where it was interrupted.

    Several GPUs or processes: torchrun --nproc-per-node N -m ucseg_training.cli.app run …
    """
    from ucseg_training.run_training import RunOptions, run_training, try_training

    options = RunOptions(
        data=data,
        spec_name=spec,
        labelled=labelled,
        steps=steps,
        size=size,
        mode=mode,
        method=method,
        precision=precision,
        device=device,
        batch_size=batch_size,
        accumulate=accumulate,
        validate_every=validate_every,
        checkpoint_every=checkpoint_every,
        stop_after=stop_after,
        skip_bad_cases=skip_bad_cases,
        seed=seed,
        largest_component=largest_component,
    )
    with running(threads, out):
        if dry_run:
            _say_what_it_would_take(try_training(options, out), steps)
        else:
            typer.echo(run_training(options, out, show_progress=sys.stderr.isatty()))


def _say_what_it_would_take(found: DryRun, steps: int) -> None:
    hours = found.seconds_per_step * steps / 3600
    typer.echo(f"samples: {found.labelled} labelled, {found.unlabelled} unlabelled, {found.validation} to validate")
    typer.echo(f"cases left out: {found.refused}")
    typer.echo(f"{found.seconds_per_step:.2f} s a step, {hours:.1f} h for {steps} steps")
    typer.echo(f"peak memory: {found.peak_memory_mb:.0f} MB of {found.memory_mb:.0f} MB")


def example(out: Annotated[Path, _EXAMPLE_OUT]) -> None:
    """Write a small real data set to try `run` with: liver on three public CTs."""
    from ucseg_training.data.example_set import write_example_set

    with running():
        for path in write_example_set(out):
            typer.echo(path)
