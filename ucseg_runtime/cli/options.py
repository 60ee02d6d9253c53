"""Options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ucseg_runtime.config import EngineChoice, FailOn, Mode, PrecisionChoice, SegType
from ucseg_runtime.series_rules import SeriesRule, rules_from_texts

_KINDS = "Folder (searched with all its subfolders), DICOM file, DICOMDIR, zip archive, or NIfTI image (extra: nifti)"
InputArgument = Annotated[Path, typer.Argument(help=f"{_KINDS}.")]
InputsArgument = Annotated[
    list[str],
    typer.Argument(
        metavar="INPUT...",
        help=f"{_KINDS}; several are segmented one by one. Or a series of an archive (extra: pacs): "
        "dicomweb+https://HOST/ROOT/studies/UID/series/UID.",
    ),
]
OutOption = Annotated[Path, typer.Option("--out", help="Folder for the results; made when missing.")]
ModelOption = Annotated[
    Path | None,
    typer.Option("--model", help="Model folder; the shipped demo model when not given.", show_default=False),
]
EngineOption = Annotated[
    EngineChoice,
    typer.Option("--engine", help="Engine that runs the network; auto takes the fastest that passed the gate."),
]
PrecisionOption = Annotated[
    PrecisionChoice,
    typer.Option("--precision", help="Arithmetic; auto takes the fastest that passed the accuracy gate for the model."),
]
GateOption = Annotated[
    bool,
    typer.Option(
        "--gate/--no-gate", help="Refuse engines that did not pass the accuracy gate; skipping it is recorded."
    ),
]
FailOnOption = Annotated[
    FailOn | None,
    typer.Option(
        "--fail-on",
        help="Exit code 8 where the decision is review and 9 where it is reject; with reject, 9 alone. "
        "Results are written all the same.",
        show_default=False,
    ),
]
SegTypeOption = Annotated[SegType, typer.Option("--seg-type", help="Encoding of the DICOM SEG.")]
SeriesOption = Annotated[
    str | None, typer.Option("--series", help="Series Instance UID to use when several fit.", show_default=False)
]
VolumeOption = Annotated[
    int,
    typer.Option("--volume", min=0, help="Which volume of a series that holds several; 0 means what fits best."),
]
AllowGapsOption = Annotated[
    int, typer.Option("--allow-gaps", min=0, help="Most missing slices in a row that are bridged; 0 means none.")
]
ExpectInstancesOption = Annotated[
    int, typer.Option("--expect-instances", min=0, help="Refuse a series of another number of slices; 0 means any.")
]
_RULE = (
    "WHAT=VALUE; WHAT: modality, body-part, description, plane, slices, thickness (mm), contrast. "
    "Alternatives by commas, ranges as LOW..HIGH"
)
ChooseOption = Annotated[
    list[str] | None,
    typer.Option("--choose", help=f"Rule that the series must fit, any number of times: {_RULE}.", show_default=False),
]
ExcludeOption = Annotated[
    list[str] | None,
    typer.Option("--exclude", help="Rule that the series must not fit, in the same words.", show_default=False),
]
SubnetAgreementOption = Annotated[
    bool, typer.Option("--subnet-agreement", help="Measure how far subnet A and B agree; the stages run one by one.")
]
SecondLookOption = Annotated[
    bool, typer.Option("--second-look", help="Compute more tiles where the result is uncertain, and average.")
]
OverwriteOption = Annotated[bool, typer.Option("--overwrite", help="Replace results that the folder already holds.")]
ThreadsOption = Annotated[
    int, typer.Option("--threads", min=0, help="Threads of the engine; 0 means every core allowed.")
]
SkipAirOption = Annotated[
    bool, typer.Option("--skip-air/--whole-volume", help="CT: leave out the air and table around the patient.")
]
ModeOption = Annotated[
    Mode,
    typer.Option(
        "--mode", help="Tiles at the same time: one (latency), one a core (throughput), or what suits a study."
    ),
]
MaxMemoryOption = Annotated[
    int,
    typer.Option(
        "--max-memory", min=0, help="Most memory in MB, by prediction; a run that needs more is refused. 0: any."
    ),
]
CacheOption = Annotated[
    bool,
    typer.Option(
        "--cache/--no-cache", help="Keep compiled models in the cache folder, for a slightly faster next start."
    ),
]
DeviceOption = Annotated[
    int, typer.Option("--device", min=0, help="Number of the GPU, for engines that compute on one.")
]
GpuMemoryOption = Annotated[
    int, typer.Option("--gpu-memory-mb", min=0, help="Most memory in MB that ONNX Runtime may take on the GPU; 0: all.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="One JSON document on standard output instead of a table.")]


def series_rules(choose: list[str] | None, exclude: list[str] | None) -> tuple[SeriesRule, ...]:
    """The rules that the options hold.

    Raises:
        BadParameter: A rule cannot be read.
    """
    try:
        return rules_from_texts(choose or (), exclude or (), "user")
    except ValueError as error:
        raise typer.BadParameter(f"--choose and --exclude: {error}.") from None
