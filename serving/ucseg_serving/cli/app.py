"""The commands of ``ucseg-serve``, wired together."""

from __future__ import annotations

import typer

from ucseg_runtime.cli.unsigned import AllowUnsignedOption
from ucseg_serving.cli.health import health
from ucseg_serving.cli.local import install_local, local
from ucseg_serving.cli.repository import repository, template, verify

app = typer.Typer(
    name="ucseg-serve",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command()(repository)
app.command()(verify)
app.command()(template)
app.command("install-local")(install_local)
app.command()(local)
app.command()(health)


@app.callback()
def _root(allow_unsigned: AllowUnsignedOption = False) -> None:  # noqa: ARG001  (its callback does it)
    """Serve models through NVIDIA Triton."""


def main() -> None:
    """Entry point of the console script."""
    app()
