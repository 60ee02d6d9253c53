"""``ucseg inspect``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from ucseg_runtime.cli.options import (
    AllowGapsOption,
    ChooseOption,
    ExcludeOption,
    InputArgument,
    JsonOption,
    ModelOption,
    SeriesOption,
    VolumeOption,
    series_rules,
)
from ucseg_runtime.cli.reporting import print_json, print_table, reported
from ucseg_runtime.config import InputOptions
from ucseg_runtime.errors import EXIT_OK

if TYPE_CHECKING:
    from ucseg_runtime.inspection import InputReport, SeriesReport
    from ucseg_runtime.nifti_input import NiftiImage

WhyOption = Annotated[bool, typer.Option("--why", help="Show every check and every rule for every series.")]
ShowPathsOption = Annotated[
    bool,
    typer.Option("--show-paths", help="Show which file each number means. Names of files can hold patient data."),
]


def inspect(
    input: InputArgument,  # noqa: A002  (the word on the command line)
    model: ModelOption = None,
    series: SeriesOption = None,
    volume: VolumeOption = 0,
    allow_gaps: AllowGapsOption = 0,
    choose: ChooseOption = None,
    exclude: ExcludeOption = None,
    why: WhyOption = False,
    show_paths: ShowPathsOption = False,
    as_json: JsonOption = False,
) -> None:
    """Show the studies and series of an input, which one would be segmented, and why not the others."""
    wanted = InputOptions(series, volume, allow_gaps, rules=series_rules(choose, exclude))
    with reported(as_json):
        from ucseg_runtime.inputs import image_in
        from ucseg_runtime.inspection import inspect_input
        from ucseg_runtime.model_folder import default_model_folder, load_model
        from ucseg_runtime.nifti_input import is_nifti

        manifest = load_model(model or default_model_folder()).manifest
        if is_nifti(input):
            _show_image(image_in(input, manifest, wanted), as_json)
            return
        report = inspect_input(input, manifest, wanted)
        if as_json:
            named = {"files": list(report.names)} if show_paths else {}
            print_json({**report.as_json(), **named})
            raise typer.Exit(report.error.exit_code if report.error else EXIT_OK)
        _show_tables(report, why, show_paths)
        if report.error is not None:
            raise report.error


def _show_tables(report: InputReport, why: bool, show_paths: bool) -> None:
    header = ("study", "series", "modality", "size", "verdict", "why", "Series Instance UID")
    print_table("Series of the input", header, [_row(row) for row in report.series])
    if why:
        for row in report.series:
            checks = [("passed" if item.passed else "failed", item.rule, item.found) for item in row.checks]
            title = f"Study {row.study}, series {_number(row)}, {row.files} files: {row.verdict}"
            print_table(title, ("outcome", "check or rule", "found"), checks)
    if report.skipped:
        counts = [(str(count), code, reason) for (code, reason), count in report.skipped_by_reason().items()]
        print_table("Files that belong to no series", ("files", "code", "reason"), counts)
    if show_paths:
        for ordinal, name in enumerate(report.names, start=1):
            # Escaped, because a name can hold what a terminal obeys.
            typer.echo(f"{ordinal}\t{name.encode('unicode_escape').decode()}")


def _row(row: SeriesReport) -> tuple[str, ...]:
    size = f"{row.files} × {row.rows} × {row.columns}"
    return str(row.study), _number(row), row.modality, size, row.verdict, row.reason, row.series_uid


def _number(row: SeriesReport) -> str:
    return "–" if row.series_number is None else str(row.series_number)


def _show_image(image: NiftiImage, as_json: bool) -> None:
    geometry = image.geometry
    if as_json:
        facts = {"shape": geometry.shape, "spacing_mm": geometry.spacing_mm, "lps_affine": geometry.affine.tolist()}
        print_json({**image.as_json(), **facts, "error": None})
        return
    rows = [
        ("modality", f"{image.modality} (taken from the model)"),
        ("voxels (z, y, x)", " x ".join(map(str, geometry.shape))),
        ("spacing mm", " x ".join(f"{side:.3f}" for side in geometry.spacing_mm)),
        ("stored as", str(image.dtype)),
    ]
    print_table("NIfTI image", ("what", "found"), rows)
