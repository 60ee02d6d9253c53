"""The commands of ``ucseg``, wired together."""

from __future__ import annotations

import logging
import resource
from functools import partial
from typing import Annotated

import typer

from ucseg_runtime.cli.batch import batch
from ucseg_runtime.cli.demo import demo
from ucseg_runtime.cli.doctor import doctor
from ucseg_runtime.cli.inspect_input import inspect
from ucseg_runtime.cli.models import models
from ucseg_runtime.cli.pacs import pacs_app
from ucseg_runtime.cli.plan import plan
from ucseg_runtime.cli.segment import segment
from ucseg_runtime.cli.unsigned import AllowUnsignedOption
from ucseg_runtime.cli.verify import verify
from ucseg_runtime.version import __version__

app = typer.Typer(
    name="ucseg",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,  # its tracebacks can print local variables, and those can hold patient data
)
app.command()(segment)
app.command()(batch)
app.command()(inspect)
app.command()(plan)
app.command()(models)
app.command()(doctor)
app.command()(demo)
app.command()(verify)
app.add_typer(pacs_app)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"ucseg {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    context: typer.Context,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Log stages and their durations.")] = False,
    allow_unsigned: AllowUnsignedOption = False,  # noqa: ARG001  (its callback does it)
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version and leave.")
    ] = False,
) -> None:
    """Segment DICOM studies: masks, uncertainty and measurements as DICOM objects. Not for clinical use."""
    _forbid_core_files()
    if verbose:
        logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(message)s")
        logger = logging.getLogger("ucseg_runtime")
        context.call_on_close(partial(logger.setLevel, logger.level))
        logger.setLevel(logging.INFO)


def _forbid_core_files() -> None:
    """A crash of this process or of its children writes no memory to the disk: it holds the headers of the study."""
    _, hard = resource.getrlimit(resource.RLIMIT_CORE)
    resource.setrlimit(resource.RLIMIT_CORE, (0, hard))


def main() -> None:
    """Entry point of the console script."""
    app()
