"""``ucseg demo``."""

from __future__ import annotations

import tempfile
from pathlib import Path

import typer

from ucseg_runtime.cli.options import JsonOption, OutOption, OverwriteOption
from ucseg_runtime.cli.reporting import reported
from ucseg_runtime.cli.segment import run_and_report
from ucseg_runtime.cli.server_options import (
    EngineOrServerOption,
    ServerArguments,
    TritonModeOption,
    UrlOption,
    split_engine,
)
from ucseg_runtime.config import WHATEVER_FITS, InferenceOptions, OutputOptions


def demo(
    out: OutOption = Path("demo-output"),
    engine: EngineOrServerOption = "auto",
    url: UrlOption = None,
    triton_mode: TritonModeOption = "tile",
    overwrite: OverwriteOption = False,
    as_json: JsonOption = False,
) -> None:
    """Fetch a real chest CT (LIDC-IDRI-0001, CC BY 3.0, 35 MB) and segment it with the shipped demo model."""
    with reported(as_json):
        from ucseg_runtime.packaged_data import write_demo_study

        local, server = split_engine(engine, ServerArguments(url or [], triton_mode))
        with tempfile.TemporaryDirectory() as folder:
            write_demo_study(Path(folder))
            run_and_report(
                Path(folder),
                out,
                None,
                InferenceOptions(engine=local, server=server),
                OutputOptions(extras=frozenset({"report"}), overwrite=overwrite),
                WHATEVER_FITS,
                as_json,
            )
        if not as_json:
            typer.echo("segmentation.dcm lies over the CT in any DICOM viewer.")
            typer.echo(f"Open in a browser: {out / 'report.html'}")
