"""``ucseg verify``."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from ucseg_runtime.cli.options import JsonOption, ModelOption, VolumeOption
from ucseg_runtime.cli.reporting import print_json, print_table, reported
from ucseg_runtime.errors import VerificationError

_RESULTS = typer.Argument(help="Folder with the results of one series.")
_IMAGES = typer.Option("--images", help="The source images, to be compared with those that were segmented.")
_CHECKPOINT = typer.Option("--checkpoint", help="The checkpoint that the model was exported from.")


def verify(
    results: Annotated[Path, _RESULTS],
    model: ModelOption = None,
    images: Annotated[Path | None, _IMAGES] = None,
    checkpoint: Annotated[Path | None, _CHECKPOINT] = None,
    volume: VolumeOption = 0,
    as_json: JsonOption = False,
) -> None:
    """Prove where results come from: files, images, model, its signature, engine and training, link by link."""
    with reported(as_json):
        from ucseg_runtime.verification import Evidence, verify_results

        links = verify_results(results, Evidence(model, images, volume, checkpoint))
        broken = [link.name for link in links if link.state == "broken"]
        if as_json:
            print_json({"links": [asdict(link) for link in links], "verified": not broken})
        else:
            print_table(
                "From the results back",
                ("link", "state", "what was found"),
                [tuple(asdict(link).values()) for link in links],
            )
        if broken:
            error = VerificationError(
                f"the chain is broken at {', '.join(broken)}.", hint="Do not use these results; see the table."
            )
            if as_json:
                raise typer.Exit(error.exit_code)
            raise error
