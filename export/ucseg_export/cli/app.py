"""The commands of ``ucseg-export``, wired together."""

from __future__ import annotations

import typer

from ucseg_export.cli.calibrate import calibrate
from ucseg_export.cli.everything import everything
from ucseg_export.cli.fusion import fusion
from ucseg_export.cli.int8 import int8
from ucseg_export.cli.onnx import onnx
from ucseg_export.cli.prove import prove
from ucseg_export.cli.ranges import ranges
from ucseg_export.cli.sign import sign
from ucseg_export.cli.tensorrt import tensorrt

app = typer.Typer(
    name="ucseg-export",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command()(onnx)
app.command()(fusion)
app.command()(prove)
app.command()(calibrate)
app.command()(ranges)
app.command()(int8)
app.command()(tensorrt)
app.command()(sign)
app.command("all")(everything)


@app.callback()
def _root() -> None:
    """Export trained trios to model folders that ucseg runs, and prove engines on them."""


def main() -> None:
    """Entry point of the console script."""
    app()
