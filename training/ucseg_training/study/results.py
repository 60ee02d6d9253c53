"""What a finished run leaves, and the file in which the results of a study are kept together."""

from __future__ import annotations

import csv
import json
import math
import os
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from ucseg_runtime.errors import OutputError
from ucseg_training.errors import TrainingError
from ucseg_training.scoring import ScoreRow
from ucseg_training.study.design import StudyRun

CURVE_WINDOW = 20
"""Steps that one point of a curve is the mean of."""

STEP = "step"


@dataclass(frozen=True)
class RunResult:
    """A finished run.

    Attributes:
        run: Which.
        precision: Of its training.
        dice: Mean Dice over the test cases, by output and class.
        curves: Terms of the loss and other figures of the training as means of `CURVE_WINDOW` steps, by name; under
            ``step`` the last step of each mean.
    """

    run: StudyRun
    precision: str
    dice: Mapping[str, Mapping[str, float]]
    curves: Mapping[str, Sequence[float | None]]

    def mean(self, output: str, classes: Sequence[str]) -> float:
        """Mean Dice of an output over classes."""
        return statistics.fmean(self.dice[output][name] for name in classes)


def dice_of(rows: Iterable[ScoreRow]) -> dict[str, dict[str, float]]:
    """Mean Dice over the cases, by output and class."""
    groups: dict[str, dict[str, list[float]]] = {}
    for row in rows:
        groups.setdefault(row.output, {}).setdefault(row.segment, []).append(row.scores["dice"])
    return {
        output: {name: round(statistics.fmean(values), 4) for name, values in classes.items()}
        for output, classes in groups.items()
    }


def curves_of(table: Path) -> dict[str, list[float | None]]:
    """Means of the terms in a table that `TermsTable` wrote; None where a term does not occur.

    A run that was interrupted repeats some steps: the last line of a step counts.
    """
    values: dict[str, dict[int, float]] = {}
    with table.open(encoding="utf-8", newline="") as stream:
        for step, name, value in csv.reader(stream):
            values.setdefault(name, {})[int(step)] = float(value)
    steps = sorted(set().union(*values.values()))
    windows = [steps[first : first + CURVE_WINDOW] for first in range(0, len(steps), CURVE_WINDOW)]
    means = {name: [_mean_at(by_step, window) for window in windows] for name, by_step in sorted(values.items())}
    return {STEP: [float(window[-1]) for window in windows], **means}


def _mean_at(by_step: Mapping[int, float], steps: Sequence[int]) -> float | None:
    found = [by_step[step] for step in steps if step in by_step]
    return float(f"{statistics.fmean(found):.5g}") if found and all(map(math.isfinite, found)) else None


def save_results(results: Sequence[RunResult], path: Path) -> None:
    """Write results as JSON, whole or not at all.

    Raises:
        OutputError: The file cannot be written.
    """
    part = path.with_suffix(".part")
    lines = ",\n".join(json.dumps(asdict(result), sort_keys=True) for result in results)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part.write_text(f"[\n{lines}\n]\n", encoding="utf-8")
        os.replace(part, path)
    except OSError as error:
        raise OutputError(
            f"results of the study cannot be written ({type(error).__name__}).", hint="Give another folder."
        ) from error


def load_results(path: Path) -> list[RunResult]:
    """Read what `save_results` wrote; empty where there is no file.

    Raises:
        TrainingError: The file does not hold results.
    """
    if not path.is_file():
        return []
    try:
        items = json.loads(path.read_text(encoding="utf-8"))
        return [RunResult(**{**item, "run": StudyRun(**item["run"])}) for item in items]
    except (ValueError, TypeError, KeyError) as error:
        raise TrainingError(
            f"{path.name} does not hold results of a study ({type(error).__name__}).", hint="Move it away."
        ) from error
