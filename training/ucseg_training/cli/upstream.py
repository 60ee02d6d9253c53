"""``ucseg-train import`` and ``emit``: state dicts of upstream's program."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from ucseg_training.cli.surroundings import running

_STATE_DICT = typer.Argument(help="State dict of upstream, for instance best_12000.pth. Nothing in it is run.")
_CHECKPOINT_OUT = typer.Option("--out", help="Checkpoint to write (safetensors).")
_DESCRIBE = typer.Option("--describe", help="YAML or JSON file with what the weights cannot know: classes, spacing …")
_TILE_SHAPE = typer.Option("--tile-shape", help="Sides of the tile in the networks' order of axes, such as 96,96,96.")
_ACTIVATION = typer.Option("--activation", help="sigmoid or softmax; sigmoid for two channels when not given.")
_WITHOUT_UPG = typer.Option(
    "--without-upg", help="The file holds net_1 and net_2 alone; for fusion rules without weights. Needs a tile shape."
)
_CHECKPOINT = typer.Argument(help="Checkpoint of ucseg-train.")
_PTH_OUT = typer.Option("--out", help="State dict to write (.pth).")


def import_command(
    state_dict: Annotated[Path, _STATE_DICT],
    out: Annotated[Path, _CHECKPOINT_OUT],
    describe: Annotated[Path | None, _DESCRIBE] = None,
    tile_shape: Annotated[str | None, _TILE_SHAPE] = None,
    activation: Annotated[Literal["sigmoid", "softmax"] | None, _ACTIVATION] = None,
    without_upg: Annotated[bool, _WITHOUT_UPG] = False,
) -> None:
    """Turn a state dict of upstream into a checkpoint, strictly."""
    from ucseg_training.upstream import import_upstream

    shape = None if tile_shape is None else _sides(tile_shape)
    with running():
        report = import_upstream(
            state_dict,
            out,
            description=describe,
            tile_shape=shape,
            activation=activation,
            with_upg=not without_upg,
        )
        for note in report.notes:
            typer.echo(note, err=True)
        typer.echo(out)


def emit_command(checkpoint: Annotated[Path, _CHECKPOINT], out: Annotated[Path, _PTH_OUT]) -> None:
    """Write a checkpoint as a state dict of upstream."""
    from ucseg_training.upstream import emit_upstream

    with running():
        for note in emit_upstream(checkpoint, out):
            typer.echo(note, err=True)
        typer.echo(out)


def _sides(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(side) for side in text.split(","))
    except ValueError:
        raise typer.BadParameter(f"{text!r} is not a list of whole numbers", param_hint="--tile-shape") from None
