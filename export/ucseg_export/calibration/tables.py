"""A calibration as Markdown tables, for a model card."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from ucseg_runtime.calibration import Calibration, ClassInterval, Estimate

_SHOWN_LEFT_OUT = (0.0, 0.1, 0.25, 0.5, 0.75)


def calibration_tables(name: str, found: Calibration) -> str:
    """Everything that `found` holds but the single points of curves.

    Args:
        name: Of the model.
        found: Its calibration.
    """
    sampling = found.resampling
    subjects = f"{_counted(found.cases, 'case')} of {_counted(found.patients, 'patient')}"
    parts = [
        f"{name}, {found.engine}: {subjects}. Intervals: {sampling.level:.0%}, percentile bootstrap over patients, "
        f"{sampling.resamples} resamples, seed {sampling.seed}.",
        *([f"**Too few patients.** {found.too_few}"] if found.too_few else []),
        f"Region: {found.region}; {found.all_voxels.voxels} voxels.",
        _table(("region", "value", "interval"), _voxel_rows(found)),
        _table(("left out, most uncertain first", "error rate of the rest"), _sparsification_rows(found)),
        _table(
            ("class", "Dice", "calibration error", "AUROC", "AUPR"),
            [
                (item.name, *map(_both, (item.dice, item.calibration_error, item.error_auroc, item.error_aupr)))
                for item in found.classes
            ],
        ),
        _table(("case", "patient", "score", "Dice"), _case_rows(found)),
        f"Rank correlation of score and Dice: {_both(found.case_scores.spearman)}. Score limits: "
        + (
            f"review above {found.score_limits.review:.3f}, reject above {found.score_limits.reject:.3f}."
            if found.score_limits
            else f"none, {found.score_limits_reason}"
        ),
        _temperature(found),
        _table(
            (
                "volume interval of",
                "cases",
                "patients",
                "hold the labelled volume, factor 1",
                "fitted factor",
                "held out",
            ),
            [_interval_row(item) for item in found.volume_intervals.classes],
        ),
    ]
    return "\n\n".join(parts) + "\n"


def _voxel_rows(found: Calibration) -> Iterable[tuple[str, ...]]:
    voxels = found.all_voxels
    for name, figure in (
        ("error rate", voxels.error_rate),
        ("calibration error of the decided class", voxels.calibration_error),
        ("uncertainty finds errors: AUROC", voxels.error_auroc),
        ("uncertainty finds errors: AUPR", voxels.error_aupr),
        ("area under risk–coverage", voxels.aurc),
    ):
        yield name, _number(figure.value), _range(figure)


def _sparsification_rows(found: Calibration) -> Iterable[tuple[str, ...]]:
    voxels = found.all_voxels
    pairs = dict(zip(voxels.left_out, voxels.sparsification, strict=False))
    return ((f"{share:.0%}", _number(pairs[share])) for share in _SHOWN_LEFT_OUT if share in pairs)


def _case_rows(found: Calibration) -> Iterable[tuple[str, ...]]:
    for point in found.case_scores.points:
        yield point.case, str(point.patient), _number(point.score), _number(point.dice)


def _interval_row(item: ClassInterval) -> tuple[str, ...]:
    return (
        item.name,
        str(item.cases),
        str(item.patients),
        f"{item.covered_with_factor_1} of {item.cases}",
        "– (uncalibrated)" if item.factor is None else f"{item.factor:.2f}",
        "–" if item.covered is None else f"{item.covered} of {item.cases}",
    )


def _temperature(found: Calibration) -> str:
    item = found.temperature
    if item.value is None:
        return f"Temperature: none; {_counted(item.patients, 'patient')} with complete labels."
    verdict = "helps" if item.helps else "does not help, so it is not kept"
    return (
        f"Temperature {item.value:.2f} ({item.voxels} voxels), judged on {_counted(item.patients, 'patient')} in turn "
        f"held out: {verdict}. Calibration error {_both(item.calibration_error)} without, "
        f"{_both(item.calibration_error_after)} with it; negative log-likelihood {_both(item.nll)} and "
        f"{_both(item.nll_after)}."
    )


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _counted(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def _both(figure: Estimate) -> str:
    return f"{_number(figure.value)} ({_range(figure)})"


def _range(figure: Estimate) -> str:
    return "–" if figure.low is None else f"{_number(figure.low)} … {_number(figure.high)}"


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"
