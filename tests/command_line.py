"""The command line as tests call it, in their own process."""

from __future__ import annotations

from typer.testing import CliRunner, Result

from tests.phantoms import PHI_CANARIES
from ucseg_runtime.cli.app import app

EXTRAS = ("--rtstruct", "--nifti", "--nrrd", "--preview", "--report")
"""Options for every object that is left out unless it is asked for."""


def run(*arguments: object) -> Result:
    """What ``ucseg`` does with these arguments."""
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def assert_no_patient_data(text: str) -> None:
    """Nothing that identifies the phantom's patient is in what people or programs are told."""
    assert not [canary for canary in PHI_CANARIES if canary in text.lower()]
