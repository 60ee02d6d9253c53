"""``ucseg-train``: make and evaluate the demo model. Parsing and printing only."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from ucseg_runtime.errors import EXIT_INTERRUPTED, UcsegError

app = typer.Typer(name="ucseg-train", no_args_is_help=True, add_completion=False, pretty_exceptions_show_locals=False)

_LOG_NAME = "train.log"
_TEST_PATIENT = "A"

_OUT = typer.Option("--out", help="Folder for state, checkpoint and log; a run found there is continued.")
_STEPS = typer.Option("--steps", min=1, help="Optimiser steps.")
_STOP_AFTER = typer.Option("--stop-after", min=1, help="Step to stop at before the schedule has ended.")
_SETTLE_STEPS = typer.Option("--settle-steps", min=1, help="Steps in which the UPG alone is trained on.")
_LEAVE_OUT = typer.Option("--leave-out", help="Patient (B, C or D) that is not trained on.")
_SEED = typer.Option("--seed", min=0, help="Seed of everything random.")
_THREADS = typer.Option("--threads", min=0, help="Threads of torch; 0 means every core.")
_CHECKPOINT = typer.Argument(help="Checkpoint that `ucseg-train demo` wrote.")
_PATIENT = typer.Option("--patient", help="A (test), B, C or D; may be repeated.")
_CASES = typer.Option("--cases", help="Folder of prepared cases; made when missing.")


@app.callback()
def _root() -> None:
    """Training of UC-Seg trios."""


@app.command()
def demo(
    out: Annotated[Path, _OUT],
    steps: Annotated[int, _STEPS] = 1300,
    stop_after: Annotated[int | None, _STOP_AFTER] = None,
    settle_steps: Annotated[int, _SETTLE_STEPS] = 200,
    leave_out: Annotated[str | None, _LEAVE_OUT] = None,
    seed: Annotated[int, _SEED] = 42,
    threads: Annotated[int, _THREADS] = 0,
) -> None:
    """Train the demo model on patients B, C and D and two unlabelled CTs; patient A is never read."""
    from ucseg_training.demo_training import LABELLED, DemoSchedule, train_demo

    if leave_out is not None:
        _require_known([leave_out], LABELLED, "--leave-out")
    _set_threads(threads)
    with _reported(), _logging_to(out):
        typer.echo(train_demo(out, DemoSchedule(steps, stop_after, settle_steps), leave_out, seed))


@app.command()
def evaluate(
    checkpoint: Annotated[Path, _CHECKPOINT],
    patient: Annotated[list[str], _PATIENT],
    cases: Annotated[Path, _CASES] = Path("runs/cases"),
    threads: Annotated[int, _THREADS] = 0,
) -> None:
    """Agreement (Dice) with the labels of the TotalSegmentator network, per class and per output, as JSON lines."""
    from ucseg_training.demo_training import LABELLED, prepared_cases
    from ucseg_training.evaluate import evaluate as run_evaluation

    _require_known(patient, (_TEST_PATIENT, *LABELLED), "--patient")
    _set_threads(threads)
    with _reported():
        chosen = []
        if set(patient) - {_TEST_PATIENT}:
            chosen += [case for case in prepared_cases(cases) if case.name in patient]
        if _TEST_PATIENT in patient:
            from ucseg_training.data.patient_a import patient_a

            chosen.append(patient_a())
        for row in run_evaluation(checkpoint, chosen):
            typer.echo(json.dumps(row.model_dump()))


def _require_known(patients: list[str], known: tuple[str, ...], option: str) -> None:
    for patient in patients:
        if patient not in known:
            raise typer.BadParameter(f"{patient!r} is not one of {', '.join(known)}", param_hint=option)


def _set_threads(threads: int) -> None:
    import torch

    if threads:
        torch.set_num_threads(threads)


@contextmanager
def _reported() -> Iterator[None]:
    """Errors that the user can act on become one line and an exit code."""
    try:
        yield
    except UcsegError as error:
        typer.echo(f"{error.code} {type(error).__name__}: {error}", err=True)
        raise typer.Exit(error.exit_code) from None
    except KeyboardInterrupt:
        typer.echo("interrupted; the same command continues after the last saved step", err=True)
        raise typer.Exit(EXIT_INTERRUPTED) from None


@contextmanager
def _logging_to(folder: Path) -> Iterator[None]:
    """The figures of a run go to standard error and to a file in its folder."""
    folder.mkdir(parents=True, exist_ok=True)
    logger = logging.getLogger("ucseg_training")
    handlers = (logging.StreamHandler(), logging.FileHandler(folder / _LOG_NAME, encoding="utf-8"))
    level = logger.level
    logger.setLevel(logging.INFO)
    for handler in handlers:
        handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
        logger.addHandler(handler)
    try:
        yield
    finally:
        logger.setLevel(level)
        for handler in handlers:
            logger.removeHandler(handler)
            handler.close()


def main() -> None:
    """Entry point of the console script."""
    app()
