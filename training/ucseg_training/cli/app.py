"""The program ``ucseg-train`` and its commands."""

from __future__ import annotations

import typer

from ucseg_training.cli.demo import demo
from ucseg_training.cli.evaluate import evaluate
from ucseg_training.cli.run import example, run
from ucseg_training.cli.study import study
from ucseg_training.cli.upstream import emit_command, import_command

app = typer.Typer(name="ucseg-train", no_args_is_help=True, add_completion=False, pretty_exceptions_show_locals=False)
app.command("demo")(demo)
app.command("example")(example)
app.command("run")(run)
app.command("evaluate")(evaluate)
app.command("study")(study)
app.command("import")(import_command)
app.command("emit")(emit_command)


@app.callback()
def _root() -> None:
    """Training of UC-Seg trios."""


def main() -> None:
    """Entry point of the console script."""
    app()


if __name__ == "__main__":
    main()
