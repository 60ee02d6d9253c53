"""Tables and a plot of the study, from the files that its runs left."""

from __future__ import annotations

import csv
import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ucseg_training.errors import TrainingError
from ucseg_training.study import SCORES_NAME, TERMS_NAME, StudyRun
from ucseg_training.torch_backend import DECIDED

PLOT_NAME = "study.png"
TABLE_NAME = "study-scores.md"


@dataclass(frozen=True)
class RunScores:
    """Scores of one finished run.

    Attributes:
        run: Which.
        dice: Dice by output and class.
    """

    run: StudyRun
    dice: Mapping[tuple[str, str], float]

    def mean(self, output: str, classes: Sequence[str]) -> float:
        """Mean Dice of an output over classes."""
        return statistics.fmean(self.dice[output, name] for name in classes)


def finished_runs(folder: Path, runs: Sequence[StudyRun]) -> list[RunScores]:
    """The scores of those runs that are done."""
    found = []
    for run in runs:
        path = folder / run.name / SCORES_NAME
        if path.is_file():
            rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
            found.append(RunScores(run, {(row["output"], row["segment"]): row["dice"] for row in rows}))
    return found


def write_report(folder: Path, out: Path, runs: Sequence[StudyRun], classes: Sequence[str]) -> tuple[Path, Path]:
    """Write the table of scores (Markdown) and the plot of scores and losses (PNG).

    Args:
        folder: Of the study.
        out: Receives both files.
        runs: Which runs to report; those that are not finished are named as missing.
        classes: Classes that the means are over.

    Returns:
        Paths of the table and the plot.

    Raises:
        TrainingError: No run is finished.
    """
    scored = finished_runs(folder, runs)
    if not scored:
        raise TrainingError("no run of the study is finished.", hint="Run `ucseg-train study` first.")
    out.mkdir(parents=True, exist_ok=True)
    table, plot = out / TABLE_NAME, out / PLOT_NAME
    table.write_text(_tables(scored, runs, classes), encoding="utf-8")
    _plot(folder, scored, classes, plot)
    return table, plot


def _tables(scored: Sequence[RunScores], runs: Sequence[StudyRun], classes: Sequence[str]) -> str:
    missing = len(runs) - len(scored)
    head = f"{len(scored)} of {len(runs)} runs, {runs[0].steps} steps each" + (
        f"; {missing} not done" if missing else ""
    )
    lines = [
        f"{head}. Dice on the test patient: mean over runs, and the standard deviation where there are several.",
        "",
    ]
    lines += [f"| variant | seeds | {' | '.join(DECIDED)} |", "|---|---|" + "---|" * len(DECIDED)]
    for variant, group in _by_variant(scored).items():
        cells = [_spread([run.mean(output, classes) for run in group]) for output in DECIDED]
        seeds = ", ".join(str(run.run.seed) for run in group)
        lines.append(f"| {variant} | {seeds} | {' | '.join(cells)} |")
    lines += ["", f"Mean over {', '.join(classes)}. Fused output by class:", ""]
    lines += [f"| variant | {' | '.join(classes)} |", "|---|" + "---|" * len(classes)]
    for variant, group in _by_variant(scored).items():
        cells = [_spread([run.dice["fused", name] for run in group]) for name in classes]
        lines.append(f"| {variant} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _by_variant(scored: Sequence[RunScores]) -> dict[str, list[RunScores]]:
    groups: dict[str, list[RunScores]] = {}
    for run in scored:
        groups.setdefault(run.run.variant, []).append(run)
    return groups


def _spread(values: Sequence[float]) -> str:
    mean = f"{statistics.fmean(values):.3f}"
    return f"{mean} ± {statistics.stdev(values):.3f}" if len(values) > 1 else mean


def _plot(folder: Path, scored: Sequence[RunScores], classes: Sequence[str], path: Path) -> None:
    # matplotlib takes a second to import, and chooses a backend with a window unless told otherwise.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    scores, losses = figure.subplots(1, 2)
    groups = _by_variant(scored)
    for index, group in enumerate(groups.values()):
        means = [run.mean("fused", classes) for run in group]
        scores.plot([index] * len(means), means, "o", color="C0", alpha=0.6)
        scores.plot(index, statistics.fmean(means), "_", color="C1", markersize=24, markeredgewidth=3)
    scores.set_xticks(range(len(groups)), list(groups), rotation=30, ha="right")
    scores.set_ylabel("Dice of the fused output, mean over classes")
    scores.set_ylim(0, 1)
    scores.set_title("test patient, one dot per seed")
    for index, (variant, group) in enumerate(groups.items()):
        steps, values = _fused_loss(folder / group[0].run.name / TERMS_NAME)
        losses.plot(steps, values, color=f"C{index}", label=f"{variant} ({group[0].run.seed})")
    losses.set_xlabel("step")
    losses.set_ylabel("supervised loss of the fused output, mean of 25 steps")
    losses.legend(fontsize="small")
    figure.savefig(path, dpi=110, metadata={"Software": None})


def _fused_loss(path: Path, window: int = 25) -> tuple[list[int], list[float]]:
    """Supervised loss of the fused output over the steps, as means of `window` steps."""
    sums: dict[int, float] = {}
    with path.open(encoding="utf-8", newline="") as stream:
        for step, name, value in csv.reader(stream):
            if name.startswith("supervised_fused."):
                sums[int(step)] = sums.get(int(step), 0.0) + float(value)
    steps = sorted(sums)
    blocks = [steps[first : first + window] for first in range(0, len(steps), window)]
    return [block[-1] for block in blocks], [float(np.mean([sums[step] for step in block])) for block in blocks]
