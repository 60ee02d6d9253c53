"""Options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

ModelArgument = Annotated[Path, typer.Argument(help="Model folder.")]
CalibrationOption = Annotated[
    Path, typer.Option("--cases", help="Folder with DICOM series or training cases (NPZ) to calibrate on.")
]
TilesPerCaseOption = Annotated[
    int, typer.Option("--tiles-per-case", min=1, help="Most tiles of each case to calibrate on.")
]
EngineCasesOption = Annotated[
    Path | None,
    typer.Option(
        "--cases", help="Folder with DICOM series or training cases (NPZ); int8 and fp8 are calibrated on it."
    ),
]
EnginePrecisionOption = Annotated[
    Literal["fp32", "tf32", "fp16", "int8", "fp8"],
    typer.Option("--precision", help="fp16, int8, fp8: of the convolutions; what is sensitive stays in float32."),
]
MaxBatchOption = Annotated[int, typer.Option("--max-batch", min=1, help="Most tiles of a call.")]
CapabilityOption = Annotated[
    str | None,
    typer.Option("--compute-capability", help="GPU to build for, such as 8.6, where there is none here."),
]
EnginesOption = Annotated[
    Path | None,
    typer.Option("--out", help="Folder of all engines; UCSEG_ENGINES, else one in the cache folder, when not given."),
]
