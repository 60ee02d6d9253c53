"""``ucseg-export sign``."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from ucseg_export.cli.options import ModelArgument
from ucseg_runtime.cli.reporting import reported

_KEY = typer.Option("--key", help="PEM file with an Ed25519 private key; its password comes from UCSEG_KEY_PASSWORD.")
_OVERWRITE = typer.Option("--overwrite", help="Replace a signature that is there.")


def sign(model: ModelArgument, key: Annotated[Path, _KEY], overwrite: Annotated[bool, _OVERWRITE] = False) -> None:
    """Sign a model folder, so that sites which trust the key run it."""
    with reported(as_json=False):
        from ucseg_export.sign import sign_model

        signature = sign_model(model, key, os.environ.get("UCSEG_KEY_PASSWORD"), overwrite=overwrite)
        typer.echo(f"model {signature.model_digest}\nsigned with key {signature.key}")
