"""``ucseg-train evaluate``: how well a checkpoint agrees with labels."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from ucseg_training.cli.surroundings import THREADS, require_known, running

if TYPE_CHECKING:
    from ucseg_training.scoring import ScoreRow

_TEST_PATIENT = "A"

_CHECKPOINT = typer.Argument(help="Checkpoint of ucseg-train.")
_PATIENT = typer.Option("--patient", help="Patient of the demo: A (test), B, C or D; may be repeated.")
_CASES = typer.Option("--cases", help="Folder of the demo's prepared cases; made when missing.")
_DATA = typer.Option("--data", help="Folder, JSON or CSV list of a data set, instead of --patient.")
_SPEC = typer.Option("--spec", help="Preset or YAML file that describes the data set.")
_SPLIT = typer.Option("--split", help="Part of the data set that is scored: val or test.")
_PAPER = typer.Option("--paper-protocol", help="Windows, rules and scores of the paper, in voxels.")
_LARGEST = typer.Option(
    "--largest-component/--no-largest-component",
    help="With --paper-protocol: whether only the largest component counts; default for volumes with one class.",
)
_SUMMARY = typer.Option("--summary", help="One line per class and score instead of one per case.")


def evaluate(
    checkpoint: Annotated[Path, _CHECKPOINT],
    patient: Annotated[list[str] | None, _PATIENT] = None,
    cases: Annotated[Path, _CASES] = Path("runs/cases"),
    data: Annotated[Path | None, _DATA] = None,
    spec: Annotated[str | None, _SPEC] = None,
    split: Annotated[Literal["val", "test"], _SPLIT] = "test",
    paper_protocol: Annotated[bool, _PAPER] = False,
    largest_component: Annotated[bool | None, _LARGEST] = None,
    summary: Annotated[bool, _SUMMARY] = False,
    threads: Annotated[int, THREADS] = 0,
) -> None:
    """Dice, Jaccard and surface distances per case, class and output, as JSON lines.

    Scores of the demo's patients are agreement with the TotalSegmentator network, not with people.
    """
    if bool(patient) == bool(data):
        raise typer.BadParameter("give either --patient or --data", param_hint="--patient")
    if data is not None and spec is None:
        raise typer.BadParameter("needed with --data", param_hint="--spec")
    if paper_protocol and data is None:
        raise typer.BadParameter("needs --data", param_hint="--paper-protocol")
    from ucseg_training.demo_training import LABELLED

    require_known(patient or [], (_TEST_PATIENT, *LABELLED), "--patient")
    with running(threads):
        if data is not None and spec is not None:
            from ucseg_training.data_set_scores import score_data_set

            rows = score_data_set(
                checkpoint, data, spec, split, paper=paper_protocol, largest_component=largest_component
            )
            _print(rows, summary, as_paper=paper_protocol)
        else:
            _print(_of_patients(checkpoint, patient or [], cases), summary)


def _of_patients(checkpoint: Path, patients: list[str], folder: Path) -> Iterator[ScoreRow]:
    from ucseg_training.demo_training import prepared_cases
    from ucseg_training.evaluate import evaluate as run_evaluation

    chosen = []
    if set(patients) - {_TEST_PATIENT}:
        chosen += [case for case in prepared_cases(folder) if case.name in patients]
    if _TEST_PATIENT in patients:
        from ucseg_training.data.patient_a import patient_a

        chosen.append(patient_a())
    return run_evaluation(checkpoint, chosen)


def _print(rows: Iterable[ScoreRow], summary: bool, *, as_paper: bool = False) -> None:
    from ucseg_training.scoring import summarise, summarise_as_paper

    if summary:
        for line in summarise_as_paper(rows) if as_paper else summarise(rows):
            typer.echo(json.dumps(line.as_json(), allow_nan=False))
        return
    for row in rows:
        typer.echo(json.dumps(row.as_json(), allow_nan=False))
