"""``ucseg-train study``: what each part of the method adds, with as many runs as there is time for."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ucseg_training.cli.surroundings import OUT, THREADS, require_known, running

_STEPS = typer.Option("--steps", min=1, help="Optimiser steps of every run.")
_ONLY = typer.Option("--only", help="Run of this name alone, for instance uc_seg-42; may be repeated.")
_REPORT = typer.Option("--report", help="Folder for the table and the plot of the runs that are finished.")


def study(
    out: Annotated[Path, OUT],
    steps: Annotated[int, _STEPS] = 600,
    only: Annotated[list[str] | None, _ONLY] = None,
    report: Annotated[Path | None, _REPORT] = None,
    threads: Annotated[int, THREADS] = 0,
) -> None:
    """Compare supervised training, mean teacher and UC-Seg on the demo's patients; scored on patient A.

    The same command goes on where it was interrupted.
    """
    from ucseg_training.data.patient_a import patient_a
    from ucseg_training.demo_training import prepared_cases
    from ucseg_training.study import REPORTED_CLASSES, STUDY_PREPROCESSING, run_study, study_runs
    from ucseg_training.study_report import write_report

    runs = study_runs(steps)
    require_known(only or [], [run.name for run in runs], "--only")
    with running(threads, out):
        chosen = [run for run in runs if only is None or run.name in only]
        run_study(out, prepared_cases(out / "cases", STUDY_PREPROCESSING), patient_a(), chosen)
        if report is not None:
            for path in write_report(out, report, runs, REPORTED_CLASSES):
                typer.echo(path)
