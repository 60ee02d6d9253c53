"""What a batch found, as tables: one row for each series."""

from __future__ import annotations

import csv
import io
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from ucseg_runtime.batch.places import Places
from ucseg_runtime.batch.plan import SeriesOutcome
from ucseg_runtime.decision import OUTCOMES, Outcome
from ucseg_runtime.manifest import SegmentClass
from ucseg_runtime.publish import RECORD, reported_as_output_error
from ucseg_runtime.safe_files import replace_checked

SUMMARY, FAILURES = "summary.csv", "failures.csv"

_SIZES = {"volume_ml": "ml", "frames": "frames", "largest_area_px": "largest_area_px"}
"""Figures of a record, of which volumes have the first and clips the others, and what they are called in a table."""

_WITH_RESULTS = frozenset({"done", "segmented"})

Row = Mapping[str, object]


def summary_rows(outcomes: Iterable[SeriesOutcome], places: Places, classes: Sequence[SegmentClass]) -> list[Row]:
    """One row for each series with results, from its record; in the order of the folders."""
    rows = []
    for outcome in outcomes:
        if outcome.state not in _WITH_RESULTS:
            continue
        record = _record_in(outcome.folder)
        measured = {item["label"]: item for item in record["measurements"]}
        row: dict[str, object] = {
            "study": places.study_name(outcome.series),
            "series": places.series_name(outcome.series),
            "slices": len(record["source_sop_uids"]),
            "notes": " ".join(record["notes"]),
        }
        if "decision" in record:  # pictures and clips have none
            row |= _decision_columns(record["decision"])
        for item in classes:
            found = measured[item.label]
            for figure, name in _SIZES.items():
                if figure in found:
                    row[f"{item.name}_{name}"] = found[figure]
            row[f"{item.name}_uncertainty"] = found["mean_uncertainty"]
        rows.append(row)
    return sorted(rows, key=lambda row: (row["study"], row["series"]))


def decided(outcomes: Iterable[SeriesOutcome]) -> Counter[Outcome]:
    """How many series with results are to be accepted, reviewed and rejected, from their records."""
    found = [decided_in(outcome.folder) for outcome in outcomes if outcome.state in _WITH_RESULTS]
    return Counter({outcome: found.count(outcome) for outcome in OUTCOMES if outcome in found})


def decided_in(folder: Path) -> Outcome | None:
    """What is to be done with the results in a folder, from their record; None where that is not decided."""
    decision = _record_in(folder).get("decision")
    return None if decision is None else cast(Outcome, decision["outcome"])  # what `Decision.as_json` has written


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
        if outcome.state not in _WITH_RESULTS
    ]
    return sorted(rows, key=lambda row: (row["study"], row["series"]))


def _record_in(folder: Path) -> dict[str, Any]:
    record: dict[str, Any] = json.loads((folder / RECORD).read_text(encoding="utf-8"))
    return record


def _decision_columns(decision: Mapping[str, Any]) -> Row:
    """The decision and the first of its reasons, which are sentences without patient data."""
    return {
        "decision": decision["outcome"],
        "calibrated": decision["calibrated"],
        "score": round(decision["score"], 4),
        "reason": decision["reasons"][0]["text"] if decision["reasons"] else "",
    }


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
