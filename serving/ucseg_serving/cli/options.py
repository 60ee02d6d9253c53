"""Options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from ucseg_runtime.config import EngineChoice
from ucseg_serving.serving_options import VolumeOver

ModelArgument = Annotated[
    Path | None, typer.Argument(help="Model folder; the shipped demo model when not given.", show_default=False)
]
ServableArgument = Annotated[
    Path | None,
    typer.Argument(help="Model folder, or repository; the shipped demo model when not given.", show_default=False),
]
MaxBatchOption = Annotated[int, typer.Option("--max-batch", min=1, help="Most tiles of a request.")]
InstancesOption = Annotated[
    int,
    typer.Option(
        "--instances", min=2, help="Copies of each stage that run at once; a single one would let requests lie."
    ),
]
ServedEngineOption = Annotated[EngineChoice, typer.Option("--engine", help="Engine of the cpu target.")]
ServedPrecisionOption = Annotated[
    Literal["f32", "bf16"], typer.Option("--precision", help="Arithmetic of the cpu target.")
]
VolumeOverOption = Annotated[
    VolumeOver,
    typer.Option(
        "--volume-over",
        help="Model that the volume model sends its tiles to; with ucseg_logits the metrics say how far the subnets "
        "agree, and a volume takes longer.",
    ),
]
VolumeMemoryOption = Annotated[
    float, typer.Option("--volume-memory", min=0.1, help="GB of memory that one volume request may take.")
]
