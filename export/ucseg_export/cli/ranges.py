"""``ucseg-export ranges``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ucseg_export.cli.options import ModelArgument
from ucseg_runtime.cli.options import JsonOption
from ucseg_runtime.cli.reporting import print_json, print_table, reported

if TYPE_CHECKING:
    from ucseg_runtime.training_ranges import TrainingRanges

_DATA = typer.Option("--data", help="Folder, JSON or CSV list of the data set that the model was trained on.")
_SPEC = typer.Option("--spec", help="Preset or YAML file that describes the data set.")
_DEMO = typer.Option("--demo-cases", help="The demo model's training cases, which are fetched once.")


def ranges(
    model: ModelArgument,
    data: Annotated[Path | None, _DATA] = None,
    spec: Annotated[str | None, _SPEC] = None,
    demo_cases: Annotated[bool, _DEMO] = False,
    as_json: JsonOption = False,
) -> None:
    """Measure the training cases, and put the ranges of the figures into the manifest, for decisions.

    The digest of the model changes: prove its engines after this.
    """
    if (data is None) == (not demo_cases) or (data is None) != (spec is None):
        raise typer.BadParameter("give either --data and --spec, or --demo-cases", param_hint="--data")
    with reported(as_json):
        from ucseg_export.training_ranges import measure_ranges, training_volumes, write_ranges
        from ucseg_runtime.model_folder import load_model
        from ucseg_training.data.demo_cases import demo_volumes

        cases = training_volumes(data, spec) if data is not None and spec is not None else demo_volumes()
        found = measure_ranges(load_model(model, whoever_made_it=True), cases)
        write_ranges(model, found)
        if as_json:
            print_json(found.model_dump(mode="json"))
        else:
            _print_ranges(found)


def _print_ranges(found: TrainingRanges) -> None:
    rows = [(key, f"{low:.3f}", f"{high:.3f}") for key, (low, high) in found.figures.items()]
    print_table(f"ranges over {found.cases} training cases", ("figure", "least", "greatest"), rows)
    typer.echo("The manifest has changed: run ucseg-export prove again.")
