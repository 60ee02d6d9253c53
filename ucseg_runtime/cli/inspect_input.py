"""``ucseg inspect``."""

from __future__ import annotations

import typer

from ucseg_runtime.cli.options import (
    AllowGapsOption,
    InputArgument,
    JsonOption,
    ModelOption,
    SeriesOption,
    VolumeOption,
)
from ucseg_runtime.cli.reporting import print_json, print_table, reported
from ucseg_runtime.config import InputOptions
from ucseg_runtime.errors import EXIT_OK


def inspect(
    input: InputArgument,  # noqa: A002  (the word on the command line)
    model: ModelOption = None,
    series: SeriesOption = None,
    volume: VolumeOption = 0,
    allow_gaps: AllowGapsOption = 0,
    as_json: JsonOption = False,
) -> None:
    """Show the studies and series of an input, which one would be segmented, and why not the others."""
    with reported(as_json):
        from ucseg_runtime.inspection import inspect_input
        from ucseg_runtime.model_folder import default_model_folder, load_model

        modality = load_model(model or default_model_folder()).manifest.modality
        report = inspect_input(input, modality, InputOptions(series, volume, allow_gaps))
        if as_json:
            print_json(report.as_json())
            raise typer.Exit(report.error.exit_code if report.error else EXIT_OK)
        rows = [
            (
                str(row.study),
                str(row.series_number) if row.series_number is not None else "–",
                row.modality,
                f"{row.files} × {row.rows} × {row.columns}",
                row.verdict,
                row.reason,
                row.series_uid,
            )
            for row in report.series
        ]
        print_table(
            "Series of the input",
            ("study", "series", "modality", "size", "verdict", "why", "Series Instance UID"),
            rows,
        )
        if report.skipped:
            counts = [(str(count), code, reason) for (code, reason), count in report.skipped_by_reason().items()]
            print_table("Files that belong to no series", ("files", "code", "reason"), counts)
        if report.error is not None:
            raise report.error
