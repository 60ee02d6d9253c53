"""``ucseg-export int8``."""

from __future__ import annotations

import typer

from ucseg_export.cli.options import CalibrationOption, ModelArgument, TilesPerCaseOption
from ucseg_runtime.cli.reporting import reported


def int8(model: ModelArgument, cases: CalibrationOption, tiles_per_case: TilesPerCaseOption = 6) -> None:
    """Add a graph with 8-bit integers to a model folder, calibrated on real tiles; then prove the model again."""
    with reported(as_json=False):
        from ucseg_export.quantize import add_int8_graph
        from ucseg_runtime.manifest import INT8_MERGED

        manifest = add_int8_graph(model, cases, tiles_per_case)
        artifact = manifest.artifacts[INT8_MERGED]
        typer.echo(f"{artifact.file}: {artifact.size / 1e6:.2f} MB. Next: ucseg-export prove, or nothing serves it.")
