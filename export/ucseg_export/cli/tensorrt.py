"""``ucseg-export tensorrt``."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ucseg_export.cli.options import (
    CapabilityOption,
    EngineCasesOption,
    EnginePrecisionOption,
    EnginesOption,
    MaxBatchOption,
    ModelArgument,
    TilesPerCaseOption,
)
from ucseg_runtime.cli.options import JsonOption
from ucseg_runtime.cli.reporting import print_json, print_table, reported

if TYPE_CHECKING:
    from ucseg_export.quantized_convolutions import Calibration
    from ucseg_export.tensorrt_builder import Builder, BuildOptions
    from ucseg_export.to_tensorrt import BuiltEngine
    from ucseg_runtime.model_folder import Model

_VERSION_COMPATIBLE = typer.Option("--version-compatible", help="Later releases may load the engines.")
_HARDWARE_COMPATIBLE = typer.Option("--hardware-compatible", help="Later GPUs may run the engines.")


def tensorrt(
    model: ModelArgument,
    precision: EnginePrecisionOption = "fp16",
    cases: EngineCasesOption = None,
    tiles_per_case: TilesPerCaseOption = 6,
    max_batch: MaxBatchOption = 4,
    compute_capability: CapabilityOption = None,
    version_compatible: Annotated[bool, _VERSION_COMPATIBLE] = False,
    hardware_compatible: Annotated[bool, _HARDWARE_COMPATIBLE] = False,
    out: EnginesOption = None,
    as_json: JsonOption = False,
) -> None:
    """Build TensorRT engines of the four stages and the merged graph."""
    with reported(as_json):
        from ucseg_export.tensorrt_builder import BuildOptions, load_builder
        from ucseg_export.to_tensorrt import build_engines, trtexec_line
        from ucseg_runtime.cache import engines_folder
        from ucseg_runtime.model_folder import load_model

        loaded, builder = load_model(model, whoever_made_it=True), load_builder()
        options = BuildOptions(precision, max_batch, compute_capability, version_compatible, hardware_compatible)
        calibration = calibrated(loaded, options, cases, tiles_per_case)
        folder, engines = build_engines(loaded, options, builder, out or engines_folder(), calibration)
        lines = {key: trtexec_line(key, loaded.manifest, options) for key in engines}
        if as_json:
            found = {key: {"bytes": len(item.plan), "layers": dict(item.layers)} for key, item in engines.items()}
            print_json({"folder": str(folder), "builder": builder.name, "engines": found, "trtexec": lines})
            return
        print_engines(folder, engines, options, builder)
        for line in lines.values():
            typer.echo(line)


def calibrated(model: Model, options: BuildOptions, cases: Path | None, tiles_per_case: int) -> Calibration:
    """What the engines need to know of real tiles: nothing, but for int8 and fp8.

    Raises:
        InputError: The cases are needed and missing, or one cannot be read.
    """
    from ucseg_export.calibration_tiles import calibration_tiles
    from ucseg_export.quantized_convolutions import NOT_CALIBRATED, calibrate
    from ucseg_runtime.manifest import MERGED

    if cases is None or options.precision not in ("int8", "fp8"):
        return NOT_CALIBRATED  # `build_engines` says what is missing
    tiles = [tile for case in calibration_tiles(cases, model.manifest, tiles_per_case) for tile in case]
    return calibrate(model.graph(MERGED), tiles)


def print_engines(folder: Path, engines: Mapping[str, BuiltEngine], options: BuildOptions, builder: Builder) -> None:
    """A table of what was built."""
    rows = [(key, f"{len(item.plan) / 1e6:.2f}", _convolutions(item.layers)) for key, item in engines.items()]
    print_table(f"{builder.name} {builder.version}, {options.precision}", ("graph", "MB", "convolutions"), rows)
    typer.echo(f"written to {folder}; these engines have never run on a GPU")


def _convolutions(layers: Mapping[str, int]) -> str:
    kinds: Counter[str] = Counter()
    for key, count in layers.items():
        kind, _, precision = key.partition(" ")
        if kind in ("CONVOLUTION", "DECONVOLUTION"):
            kinds[precision] += count
    return ", ".join(f"{count} {precision}" for precision, count in kinds.items()) or "–"
