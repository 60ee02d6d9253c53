"""``ucseg-export fusion``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from ucseg_export.cli.onnx import CasesOption, OverwriteOption, SpecOption, TilesOption, print_folder
from ucseg_runtime.cli.options import JsonOption
from ucseg_runtime.cli.reporting import reported

_SOURCE = typer.Argument(help="Model folder, or checkpoint of ucseg-train, also one without a UPG.")
_RULE = typer.Option("--rule", help="How the subnets are fused; upg is the learned rule.")
_OUT = typer.Option("--out", help="Model folder to make.")
_COST = typer.Option("--cost", help="Misclassification cost of coranet, more than 1; 5 when not given.")
_TAU = typer.Option("--tau", help="Entropy above which burl takes the surer subnet, between 0 and 1; 0.5 by default.")


def fusion(
    source: Annotated[Path, _SOURCE],
    rule: Annotated[Literal["upg", "mean", "dempster", "entropy", "coranet", "dual", "burl"], _RULE],
    out: Annotated[Path, _OUT],
    cost: Annotated[float | None, _COST] = None,
    tau: Annotated[float | None, _TAU] = None,
    spec: SpecOption = None,
    cases: CasesOption = None,
    tiles_per_set: TilesOption = 2,
    overwrite: OverwriteOption = False,
    as_json: JsonOption = False,
) -> None:
    """Make a model folder with another fusion rule from the same subnets, after proving it against NumPy."""
    from ucseg_runtime.fusion_names import complete_parameters

    if spec is not None and source.is_dir():
        raise typer.BadParameter("a model folder has its description in its manifest", param_hint="--spec")
    parameters = {name: value for name, value in (("cost", cost), ("tau", tau)) if value is not None}
    try:
        complete_parameters(rule, parameters)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint=" / ".join(f"--{name}" for name in parameters)) from error
    with reported(as_json):
        from ucseg_export.fusion import FusionRequest, export_fusion

        request = FusionRequest(source, rule, out, parameters, spec, cases, tiles_per_set, overwrite)
        print_folder(export_fusion(request), as_json)
