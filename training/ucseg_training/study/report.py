"""Tables and a plot of a study."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path

from ucseg_training.errors import TrainingError
from ucseg_training.study.design import SEEDS, Study, StudyRun
from ucseg_training.study.results import STEP, RunResult, load_results, save_results
from ucseg_training.torch_backend import DECIDED

_DICE_LOSS = "supervised_fused.dice"


def write_report(study: Study, results: Sequence[RunResult], runs: Sequence[StudyRun], out: Path) -> tuple[Path, ...]:
    """Write the results (JSON), the tables of scores (Markdown) and the plot of scores and losses (PNG).

    Results that `out` already holds of these runs are kept: a study may be done in pieces, on several machines.

    Args:
        study: Of which study.
        results: Of the runs that are finished here.
        runs: All runs, of one number of steps; those that are not finished are counted.
        out: Receives the files.

    Returns:
        Their paths.

    Raises:
        TrainingError: No run is finished.
        OutputError: A file cannot be written.
    """
    stem = f"study-{study.name}-{runs[0].steps}"
    data, table, plot = (out / f"{stem}{suffix}" for suffix in (".json", ".md", ".png"))
    known = {result.run: result for result in (*load_results(data), *results)}
    kept = [known[run] for run in runs if run in known]
    if not kept:
        raise TrainingError("no run of the study is finished.", hint="Run `ucseg-train study` first.")
    save_results(kept, data)
    table.write_text(_tables(study, kept, runs, plot.name), encoding="utf-8")
    _plot(study, kept, plot)
    return data, table, plot


def _tables(study: Study, results: Sequence[RunResult], runs: Sequence[StudyRun], plot: str) -> str:
    precisions = ", ".join(sorted({result.precision for result in results}))
    lines = [
        f"# Study: {study.name}, {runs[0].steps} steps",
        "",
        f"{len(results)} of {len(runs)} runs, trained in {precisions}.",
        f"Dice on the test data, mean over {', '.join(study.classes)}:",
        "mean ± standard deviation over the seeds. Written by `ucseg-train study`.",
        "",
        f"| variant | seeds | {' | '.join(DECIDED)} |",
        "|---|---|" + "---|" * len(DECIDED),
    ]
    groups = _by_variant(results)
    for variant, group in groups.items():
        cells = [_spread([result.mean(output, study.classes) for result in group]) for output in DECIDED]
        seeds = ", ".join(str(result.run.seed) for result in group)
        lines.append(f"| {variant} | {seeds} | {' | '.join(cells)} |")
    if len(study.classes) > 1:
        lines += ["", "Fused output by class:", "", f"| variant | {' | '.join(study.classes)} |"]
        lines += ["|---|" + "---|" * len(study.classes)]
        for variant, group in groups.items():
            cells = [_spread([result.dice["fused"][name] for result in group]) for name in study.classes]
            lines.append(f"| {variant} | {' | '.join(cells)} |")
    lines += ["", f"![Scores and losses]({plot})"]
    return "\n".join(lines) + "\n"


def _by_variant(results: Sequence[RunResult]) -> dict[str, list[RunResult]]:
    groups = {variant: [result for result in results if result.run.variant == variant] for variant in SEEDS}
    return {variant: group for variant, group in groups.items() if group}


def _spread(values: Sequence[float]) -> str:
    mean = f"{statistics.fmean(values):.3f}"
    return f"{mean} ± {statistics.stdev(values):.3f}" if len(values) > 1 else mean


def _plot(study: Study, results: Sequence[RunResult], path: Path) -> None:
    # matplotlib takes a second to import, and chooses a backend with a window unless told otherwise.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    scores, losses = figure.subplots(1, 2)
    groups = _by_variant(results)
    for index, (variant, group) in enumerate(groups.items()):
        means = [result.mean("fused", study.classes) for result in group]
        scores.plot([index] * len(means), means, "o", color=f"C{index}", alpha=0.6)
        scores.plot(index, statistics.fmean(means), "_", color="black", markersize=24, markeredgewidth=2)
        for result in group:
            label = variant if result is group[0] else None
            losses.plot(
                result.curves[STEP], result.curves[_DICE_LOSS], color=f"C{index}", alpha=0.7, linewidth=1, label=label
            )
    scores.set_xticks(range(len(groups)), list(groups), rotation=30, ha="right")
    scores.set_ylabel("Dice of the fused output, mean over classes")
    scores.set_ylim(0, 1)
    scores.set_title("test data: a dot per seed, their mean as a line")
    losses.set_xlabel("step")
    losses.set_ylabel("Dice loss of the fused output on labelled tiles")
    losses.set_title("training, one curve per seed")
    losses.legend(fontsize="small")
    figure.savefig(path, dpi=110, metadata={"Software": None})
