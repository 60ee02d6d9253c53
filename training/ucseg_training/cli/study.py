"""``ucseg-train study``: what each part of the method adds, with as many runs as there is time for."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from ucseg_training.cli.surroundings import OUT, THREADS, require_known, running

if TYPE_CHECKING:
    from ucseg_training.study.design import Study

_DATA = typer.Option("--data", help="torso: CTs of the demo, scored on patient A. phantom: made-up planes.")
_STEPS = typer.Option("--steps", min=1, help="Optimiser steps of every run.")
_ONLY = typer.Option("--only", help="Run of this name alone, for instance uc_seg-42; may be repeated.")
_REPORT = typer.Option("--report", help="Folder for results, tables and plot of the runs that are finished.")


def study(
    out: Annotated[Path, OUT],
    data: Annotated[Literal["torso", "phantom"], _DATA] = "torso",
    steps: Annotated[int, _STEPS] = 600,
    only: Annotated[list[str] | None, _ONLY] = None,
    report: Annotated[Path | None, _REPORT] = None,
    threads: Annotated[int, THREADS] = 0,
) -> None:
    """Compare supervised training, mean teacher, UC-Seg and UC-Seg without its parts.

    The same command goes on where it was interrupted.
    """
    from ucseg_training.study.design import study_runs
    from ucseg_training.study.report import write_report
    from ucseg_training.study.runner import finished, run_study

    runs = study_runs(steps)
    require_known(only or [], [run.name for run in runs], "--only")
    with running(threads, out):
        chosen = _study(data, out)
        run_study(chosen, out, [run for run in runs if only is None or run.name in only])
        if report is not None:
            for path in write_report(chosen, finished(out, runs), runs, report):
                typer.echo(path)


def _study(data: Literal["torso", "phantom"], out: Path) -> Study:
    if data == "phantom":
        from ucseg_training.study.phantom import phantom_study

        return phantom_study()
    from ucseg_training.data.patient_a import patient_a
    from ucseg_training.demo_training import prepared_cases
    from ucseg_training.study.torso import STUDY_PREPROCESSING, torso_study

    return torso_study(prepared_cases(out / "cases", STUDY_PREPROCESSING), patient_a())
