"""What every command does with errors, progress and tables. Data to standard output, the rest to standard error."""

from __future__ import annotations

import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import FrameType

import typer

from ucseg_runtime.errors import EXIT_DEFECT, EXIT_INTERRUPTED, UcsegError, type_and_place
from ucseg_runtime.json_text import json_text

DEBUG_VARIABLE = "UCSEG_DEBUG"

_PIPE_WIDTH = 200
"""Of tables that do not go to a terminal: two UIDs of 64 characters and some columns more."""


@contextmanager
def reported(as_json: bool) -> Iterator[None]:
    """Turn errors into one line (or one JSON object) and the exit code that belongs to them."""
    for signum in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(signum, _stop)
    try:
        yield
    except UcsegError as error:
        _print_traceback()
        _print_error(error.as_json(), f"{error.code} {type(error).__name__}: {error}", as_json)
        raise typer.Exit(error.exit_code) from None
    except KeyboardInterrupt:
        raise _stopped(EXIT_INTERRUPTED, as_json) from None
    except _StoppedBySignal as stop:
        raise _stopped(stop.exit_code, as_json) from None
    except (typer.Exit, typer.BadParameter):
        raise
    except BrokenPipeError:
        # Whoever read the output has closed it, as `| head` does; nothing more can be said there.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise typer.Exit(128 + signal.SIGPIPE) from None
    except Exception as error:  # noqa: BLE001  (the edge of the command line: a defect of ucseg, reported as such)
        # The message of a foreign exception can hold values of the headers: only its type and place are shown.
        _print_traceback()
        message = f"defect in ucseg: {type_and_place(error)}. Set {DEBUG_VARIABLE}=1 to see the whole traceback."
        report = {"code": "UCSEG-E199", "error": type(error).__name__, "message": message, "exit_code": EXIT_DEFECT}
        _print_error(report, f"UCSEG-E199 {message}", as_json)
        raise typer.Exit(EXIT_DEFECT) from None


def print_json(value: object) -> None:
    """One JSON document on standard output. NaN becomes null, since JSON has none."""
    typer.echo(json_text(value))


def print_table(title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A table on standard output, in colour on a terminal; what has no room is broken, never cut: UIDs are copied."""
    # Imported here because `ucseg --help` must not wait for it.
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    # Text, because rich takes what stands in square brackets in a plain string for markup and swallows it.
    table = Table(title=Text(title), title_justify="left")
    for index, name in enumerate(header):
        table.add_column(name, justify="right" if index > 0 and _numeric(rows, index) else "left", overflow="fold")
    for row in rows:
        table.add_row(*map(Text, row))
    console = Console()
    if not console.is_terminal:
        console = Console(width=_PIPE_WIDTH)
    console.print(table)


@contextmanager
def tile_progress(quiet: bool) -> Iterator[Callable[[int, int], None]]:
    """A progress bar on a terminal, a plain line per quarter otherwise, nothing when quiet."""
    if quiet:
        yield lambda done, total: None
    elif sys.stderr.isatty():
        with _bar() as update:
            yield update
    else:
        yield _quarter_lines()


@contextmanager
def _bar() -> Iterator[Callable[[int, int], None]]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("segmenting"), BarColumn(), MofNCompleteColumn(), TextColumn("tiles"), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("tiles")
        yield lambda done, total: progress.update(task, completed=done, total=total)


def _quarter_lines() -> Callable[[int, int], None]:
    shown = 0

    def update(done: int, total: int) -> None:
        nonlocal shown
        if 4 * done // total > shown:
            shown = 4 * done // total
            typer.echo(f"tiles: {done} of {total}", err=True)

    return update


def _print_error(report: Mapping[str, object], line: str, as_json: bool) -> None:
    if as_json:
        print_json({"error": report})
    typer.echo(line, err=True)


def _numeric(rows: Sequence[Sequence[str]], index: int) -> bool:
    return bool(rows) and all(
        row[index].replace(".", "", 1).replace("–", "").strip().isdigit() for row in rows if row[index]
    )


class _StoppedBySignal(BaseException):
    """Unwinds the stack, so that everything staged is removed."""

    def __init__(self, exit_code: int) -> None:
        super().__init__()
        self.exit_code = exit_code


def _stop(signum: int, frame: FrameType | None) -> None:
    raise _StoppedBySignal(128 + signum)


def _stopped(exit_code: int, as_json: bool) -> typer.Exit:
    message = "stopped before the end; results are complete or absent"
    report = {"code": "UCSEG-E198", "error": "Stopped", "message": message, "exit_code": exit_code}
    _print_error(report, f"UCSEG-E198 {message}", as_json)
    return typer.Exit(exit_code)


def _print_traceback() -> None:
    """The causes, for those who ask for them and know that they can hold values of the headers."""
    if os.environ.get(DEBUG_VARIABLE):
        traceback.print_exc()
