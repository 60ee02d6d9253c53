"""Options that say what is written."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import typer

from ucseg_runtime.config import (
    Compression,
    ExtraFormat,
    OutputOptions,
    SegType,
    UncertaintyType,
    ViewerName,
)
from ucseg_runtime.viewers import seg_encoding

_PANEL = "Outputs"

ViewerOption = Annotated[
    ViewerName,
    typer.Option(
        "--viewer",
        help="Write the DICOM SEG as this viewer or archive takes it; --seg-type and --compression go before it.",
        rich_help_panel=_PANEL,
    ),
]
SegTypeOption = Annotated[
    SegType | None,
    typer.Option("--seg-type", help="Encoding of the DICOM SEG; binary.", show_default=False, rich_help_panel=_PANEL),
]
CompressionOption = Annotated[
    Compression | None,
    typer.Option(
        "--compression",
        help="Of the DICOM SEG: none for binary, rle for the others; binary takes none or jpeg2000.",
        show_default=False,
        rich_help_panel=_PANEL,
    ),
]
UncertaintyOption = Annotated[
    UncertaintyType,
    typer.Option(
        "--uncertainty",
        help="Write the uncertainty as a Parametric Map, 16 bits, or as a fractional SEG, 8 bits.",
        rich_help_panel=_PANEL,
    ),
]
RtstructOption = Annotated[
    bool, typer.Option("--rtstruct", help="Write contours as an RT Structure Set too.", rich_help_panel=_PANEL)
]
NiftiOption = Annotated[
    bool,
    typer.Option(
        "--nifti", help="Write label map and uncertainty as NIfTI too (extra: nifti).", rich_help_panel=_PANEL
    ),
]
NrrdOption = Annotated[
    bool,
    typer.Option("--nrrd", help="Write label map and uncertainty as NRRD too (extra: nifti).", rich_help_panel=_PANEL),
]
PreviewOption = Annotated[
    bool,
    typer.Option("--preview", help="Write the picture as a DICOM Secondary Capture too.", rich_help_panel=_PANEL),
]
ReportOption = Annotated[
    bool,
    typer.Option(
        "--report",
        help="Write report.html too: one page to look at, with the images in it; opens without a network.",
        rich_help_panel=_PANEL,
    ),
]


@dataclass(frozen=True)
class OutputArguments:
    """What was said on the command line of the outputs."""

    viewer: ViewerName = "any"
    seg_type: SegType | None = None
    compression: Compression | None = None
    uncertainty: UncertaintyType = "pm"
    overwrite: bool = False

    def options(self, asked_for: dict[ExtraFormat, bool]) -> OutputOptions:
        """The options of the run.

        Args:
            asked_for: Which formats are written as well.

        Raises:
            typer.BadParameter: The encoding cannot have the compression.
        """
        try:
            encoding = seg_encoding(self.viewer, self.seg_type, self.compression)
        except ValueError as error:
            raise typer.BadParameter(f"{error}.", param_hint="--compression") from error
        extras = frozenset(name for name, wanted in asked_for.items() if wanted)
        return OutputOptions(encoding, self.uncertainty, self.viewer, extras, self.overwrite)
