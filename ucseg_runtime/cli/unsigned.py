"""The option ``--allow-unsigned`` of a whole program: it holds for the command and for every process that it starts."""

from __future__ import annotations

import os
from typing import Annotated

import typer


def _allow(context: typer.Context, wanted: bool) -> bool:
    """Set the variable that `load_model` reads here and in child processes, until the command ends."""
    if wanted:
        from ucseg_runtime.signatures import ALLOW_UNSIGNED_VARIABLE, unsigned_allowed

        if not unsigned_allowed():
            os.environ[ALLOW_UNSIGNED_VARIABLE] = "1"
            context.call_on_close(lambda: os.environ.pop(ALLOW_UNSIGNED_VARIABLE, None))
    return wanted


AllowUnsignedOption = Annotated[
    bool,
    typer.Option(
        "--allow-unsigned",
        callback=_allow,
        help="Take models for which no key of the trust store (UCSEG_TRUST_STORE) vouches.",
    ),
]
