"""``ucseg-export calibrate``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ucseg_export.cli.options import ModelArgument
from ucseg_runtime.cli.options import DeviceOption, EngineOption, JsonOption, PrecisionOption
from ucseg_runtime.cli.reporting import print_json, print_table, reported

if TYPE_CHECKING:
    from ucseg_runtime.calibration import Calibration, Estimate
    from ucseg_runtime.manifest import Manifest
    from ucseg_runtime.model_folder import Model

_CASES = typer.Option("--cases", help="Folder with labelled cases (NPZ); files of one case name are of one patient.")
_APPLY = typer.Option("--apply", help="Model folder to make with the temperature, if it helps held-out patients.")
_OVERWRITE = typer.Option("--overwrite", help="Replace a model folder that --apply finds at its place.")
_TABLE = typer.Option("--table", help="Print everything as Markdown tables.")
_RISK = "Most mean of 1 - Dice of cases that pass without "


def calibrate(
    model: ModelArgument,
    cases: Annotated[Path, _CASES],
    apply: Annotated[Path | None, _APPLY] = None,
    overwrite: Annotated[bool, _OVERWRITE] = False,
    accept_risk: Annotated[float, typer.Option(min=0.0, max=1.0, help=f"{_RISK}review.")] = 0.1,
    review_risk: Annotated[float, typer.Option(min=0.0, max=1.0, help=f"{_RISK}rejection.")] = 0.25,
    engine: EngineOption = "auto",
    precision: PrecisionOption = "auto",
    device: DeviceOption = 0,
    table: Annotated[bool, _TABLE] = False,
    as_json: JsonOption = False,
) -> None:
    """Measure on labelled cases what probabilities, uncertainty and volumes are worth; writes calibration.json."""
    with reported(as_json):
        from ucseg_export.calibration.calibrate import calibrate, calibration_options, write_calibration
        from ucseg_export.calibration.scores import AcceptedRisk
        from ucseg_export.export_model import check_place
        from ucseg_export.prove_cases import labelled_cases
        from ucseg_runtime.model_folder import load_model

        if review_risk < accept_risk:
            raise typer.BadParameter("--review-risk must not be below --accept-risk.")
        if apply is not None:
            check_place(apply, overwrite)
        loaded = load_model(model, whoever_made_it=True)
        options, risk = calibration_options(engine, precision, device), AcceptedRisk(accept_risk, review_risk)
        found = calibrate(loaded, labelled_cases(cases, loaded.manifest), options, risk)
        write_calibration(loaded, found)
        if apply is not None:
            loaded = _with_temperature(loaded, found, apply, overwrite=overwrite)
            found = calibrate(loaded, labelled_cases(cases, loaded.manifest), options, risk)
            write_calibration(loaded, found)
        _show(loaded.manifest, found, table=table, as_json=as_json)


def _with_temperature(model: Model, found: Calibration, folder: Path, *, overwrite: bool) -> Model:
    """The model with the temperature that was found, in a folder of its own.

    Raises:
        UcsegError: See `require_helpful` and `apply_temperature`.
    """
    from ucseg_export.calibration.calibrate import require_helpful
    from ucseg_export.calibration.temperature_node import apply_temperature
    from ucseg_runtime.model_folder import load_model

    fitted_on = f"fitted on {found.cases} cases of {found.patients} patients by ucseg-export calibrate"
    apply_temperature(model, require_helpful(found), fitted_on, folder, overwrite=overwrite)
    return load_model(folder, whoever_made_it=True)


def _show(manifest: Manifest, found: Calibration, *, table: bool, as_json: bool) -> None:
    from ucseg_export.calibration.tables import calibration_tables

    if as_json:
        print_json(found.model_dump(mode="json"))
    elif table:
        typer.echo(calibration_tables(f"{manifest.name} {manifest.version}", found))
    else:
        _print_summary(manifest, found)


def _print_summary(manifest: Manifest, found: Calibration) -> None:
    rows = [("all", "–", *map(_text, _figures(found.all_voxels)))]
    rows += [(item.name, _text(item.dice), *map(_text, _figures(item))) for item in found.classes]
    header = ("class", "Dice", "calibration error", "AUROC of errors", "AUPR of errors")
    print_table(f"{manifest.name} {manifest.version}, {found.engine}", header, rows)
    typer.echo(f"{found.cases} cases of {found.patients} patients")
    if found.too_few:
        typer.echo(f"TOO FEW: {found.too_few}")
    temperature = found.temperature
    if temperature.value is not None:
        typer.echo(
            f"temperature {temperature.value:.3g} {'helps' if temperature.helps else 'does not help'} "
            f"{temperature.patients} held-out patients"
        )
    typer.echo(f"score limits: {found.score_limits_reason or found.score_limits}")


def _figures(item: object) -> tuple[Estimate, ...]:
    return tuple(getattr(item, name) for name in ("calibration_error", "error_auroc", "error_aupr"))


def _text(figure: Estimate) -> str:
    if figure.value is None:
        return "–"
    return f"{figure.value:.3f}" if figure.low is None else f"{figure.value:.3f} ({figure.low:.3f}–{figure.high:.3f})"
