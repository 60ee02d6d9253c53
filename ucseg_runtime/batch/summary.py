"""What a batch found, as tables: one row for each series."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from ucseg_runtime.batch.places import Places
from ucseg_runtime.batch.plan import SeriesOutcome
from ucseg_runtime.manifest import SegmentClass
from ucseg_runtime.publish import RECORD, reported_as_output_error
from ucseg_runtime.safe_files import replace_checked

SUMMARY, FAILURES = "summary.csv", "failures.csv"

_SIZES = {"volume_ml": "ml", "frames": "frames", "largest_area_px": "largest_area_px"}
"""Figures of a record, of which volumes have the first and clips the others, and what they are called in a table."""

Row = Mapping[str, object]


def summary_rows(outcomes: Iterable[SeriesOutcome], places: Places, classes: Sequence[SegmentClass]) -> list[Row]:
    """One row for each series with results, from its record; in the order of the folders."""
    rows = []
    for outcome in outcomes:
        if outcome.state not in {"done", "segmented"}:
            continue
        record = json.loads((outcome.folder / RECORD).read_text(encoding="utf-8"))
        measured = {item["label"]: item for item in record["measurements"]}
        row: dict[str, object] = {
            "study": places.study_name(outcome.series),
            "series": places.series_name(outcome.series),
            "slices": len(record["source_sop_uids"]),
            "notes": " ".join(record["notes"]),
        }
        for item in classes:
            found = measured[item.label]
            for figure, name in _SIZES.items():
                if figure in found:
                    row[f"{item.name}_{name}"] = found[figure]
            row[f"{item.name}_uncertainty"] = found["mean_uncertainty"]
        rows.append(row)
    return sorted(rows, key=lambda row: (row["study"], row["series"]))


def failure_rows(outcomes: Iterable[SeriesOutcome], places: Places) -> list[Row]:
    """One row for each series without results, with code and reason."""
    rows: list[Row] = [
        {
            "study": places.study_name(outcome.series),
            "series": places.series_name(outcome.series),
            "state": outcome.state,
            "code": outcome.code,
            "reason": outcome.reason,
        }
        for outcome in outcomes
        if outcome.state not in {"done", "segmented"}
    ]
    return sorted(rows, key=lambda row: (row["study"], row["series"]))


def write_csv(path: Path, header: Sequence[str], rows: Sequence[Row]) -> None:
    """Write a table beside its place and rename it, so that nobody reads half of one.

    Raises:
        OutputError: It cannot be written.
    """
    text = io.StringIO()
    table = csv.DictWriter(text, header, lineterminator="\n")
    table.writeheader()
    table.writerows(rows)
    with reported_as_output_error():
        replace_checked(path, text.getvalue().encode())
