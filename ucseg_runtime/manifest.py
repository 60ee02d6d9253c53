"""`manifest.json`: everything that the model fixes, as a frozen schema.

Nothing else configures numerics. A field that is not in the schema is an error, so a misspelt one cannot be ignored.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, ValidationError, field_validator, model_validator

from ucseg_runtime.errors import ManifestError
from ucseg_runtime.fusion_names import FusionRule, complete_parameters
from ucseg_runtime.intensity import Intensity
from ucseg_runtime.intensity import PiecewiseLinear as PiecewiseLinear
from ucseg_runtime.series_rules import SeriesRule, rules_from_texts
from ucseg_runtime.training_ranges import TrainingRanges

SCHEMA_VERSION = 1
MANIFEST_NAME = "manifest.json"
STAGES = ("subnet_a", "subnet_b", "upg", "decode")
MERGED = "merged"

CHECKPOINT_SHA256 = "checkpoint_sha256"
TRAINING_PLAN_SHA256 = "training_plan_sha256"
"""Entries of the provenance: the file that was exported, and the plan and data of the run that made it."""

Precision = Literal["f32", "tf32", "bf16", "fp16", "int8", "fp8"]

INT8_MERGED = "merged_int8"
GRAPH_OF_PRECISION: Mapping[Precision, str] = MappingProxyType(
    {"f32": MERGED, "tf32": MERGED, "bf16": MERGED, "fp16": MERGED, "int8": INT8_MERGED, "fp8": MERGED}
)
"""Artifact that an engine runs whole where nothing is built on site. Narrower floats are the arithmetic of an engine;
integers are written into the graph."""

VOLUME_MODALITIES = frozenset({"CT", "MR", "PT"})
"""Whose images are slices of volumes; all others are pictures and clips."""

PositiveMm = Annotated[float, Field(gt=0.0, le=1000.0)]
Side = Annotated[int, Field(ge=1, le=4096)]
Byte = Annotated[int, Field(ge=0, le=255)]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Code(_Frozen):
    """A coded concept.

    Attributes:
        value: Code Value (0008,0100).
        scheme: Coding Scheme Designator (0008,0102); ``SCT`` is SNOMED CT.
        meaning: Code Meaning (0008,0104), in English.
    """

    value: str
    scheme: str
    meaning: str


class SegmentClass(_Frozen):
    """One foreground class.

    Attributes:
        label: Value in the label map, 1 … 255; also the channel of the network's output.
        name: Short English name, lower case.
        category: Segmented property category, for instance anatomical structure.
        type: Segmented property type, the organ.
        modifier: Laterality or other modifier of the type.
        colour_rgb: Display colour, 0 … 255 each.
    """

    label: Annotated[int, Field(ge=1, le=255)]
    name: str
    category: Code
    type: Code
    modifier: Code | None = None
    colour_rgb: tuple[Byte, Byte, Byte]


class Preprocessing(_Frozen):
    """Source grid to model grid.

    Either `spacing_mm` or `plane_shape` is given: networks for volumes have a spacing, networks for planes may see
    every slice at one size, whatever its spacing.

    Attributes:
        spacing_mm: Voxel spacing of the model grid along (z, y, x).
        plane_shape: Voxels of the model grid along (y, x); slices are kept as they are along z.
        orientation: ``LPS``: the anatomical directions in which the indices x, y, z of the model grid grow; oblique
            series are turned to the nearest such axes by flips and permutations only, never rotated. ``acquired``:
            slices, rows and columns stay as they were acquired, which networks for planes need.
        interpolation: ``linear``, averaging where the grid gets coarser; ``nearest``: the voxel of the source that
            holds the centre of the new one.
        intensity: From modality units to the network's input.
        padding_value: Modality value of the space outside the volume, and the least that a voxel is taken to have:
            −1000 HU (air) for CT, whose scanners write less outside their field of view.
    """

    spacing_mm: tuple[PositiveMm, PositiveMm, PositiveMm] | None = None
    plane_shape: tuple[Side, Side] | None = None
    orientation: Literal["LPS", "acquired"] = "LPS"
    interpolation: Literal["linear", "nearest"] = "linear"
    intensity: Intensity
    padding_value: FiniteFloat

    @model_validator(mode="after")
    def _one_grid(self) -> Preprocessing:
        if (self.spacing_mm is None) == (self.plane_shape is None):
            raise ValueError("either spacing_mm or plane_shape must be given")
        return self


class SeriesChoice(_Frozen):
    """Rules that a series must pass to be what the model is for; see `series_rules` for their form.

    Attributes:
        choose: Rules that it must fit.
        exclude: Rules that it must not fit.
    """

    choose: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _readable(self) -> SeriesChoice:
        self.rules()
        return self

    def rules(self) -> tuple[SeriesRule, ...]:
        """The rules, parsed."""
        return rules_from_texts(self.choose, self.exclude, "model")


class Tiling(_Frozen):
    """How a volume is cut into tiles.

    Attributes:
        tile_shape: Voxels along (z, y, x); fixed by the weights, never interpolated.
        axis_order: ``zyx`` for models of this project, ``xyz`` for imported upstream ones.
        overlap: Least shared fraction of neighbouring tiles along each axis, in [0, 1).
        weighting: Weight of a tile's voxels in the average: ``uniform``, or ``gaussian`` with sigma = side / 8.
    """

    tile_shape: tuple[Side, Side, Side]
    axis_order: Literal["zyx", "xyz"] = "zyx"
    overlap: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.5
    weighting: Literal["uniform", "gaussian"] = "gaussian"


class Postprocessing(_Frozen):
    """Clean-up of the label map on the source grid.

    Attributes:
        largest_component: Labels of which only the largest 26-connected component is kept.
        smallest_component_ml: Components smaller than this volume are removed, per label.
    """

    largest_component: tuple[int, ...] = ()
    smallest_component_ml: dict[int, float] = Field(default_factory=dict)


class Artifact(_Frozen):
    """One file of the model folder.

    Attributes:
        file: Its name, without any folder.
        size: In bytes.
        sha256: Of its content, 64 hexadecimal digits.
    """

    file: str
    size: int
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]

    @field_validator("file")
    @classmethod
    def _plain_name(cls, file: str) -> str:
        if Path(file).name != file or file in {"", ".", ".."}:
            raise ValueError("an artifact is a plain file name inside the model folder")
        return file


class ParityRow(_Frozen):
    """One line of the proof that a graph computes what torch computes.

    Attributes:
        graph: Which of the artifacts.
        inputs: Kind and number of the tiles, and the engine that ran the graph.
        reference: What it was compared with.
        max_abs_difference: Largest difference of any value of the graph's outputs.
        tolerance: Most that was allowed.
    """

    graph: str
    inputs: str
    reference: str
    max_abs_difference: float
    tolerance: float


class Quality(_Frozen):
    """Measured agreement of one class on one data set.

    Attributes:
        data_set: On what, and with whose labels it agrees.
        segment: Name of the class.
        output: ``fused``, ``subnet_a``, ``subnet_b``, or ``mean`` of the two.
        dice: In [0, 1].
    """

    data_set: str
    segment: str
    output: str
    dice: float


class Budget(_Frozen):
    """How far an engine may be from the reference and still be served.

    Attributes:
        mask_dice: Least Dice of any class of any case.
        uncertainty_p99: Most that the uncertainty of all but 1 % of the voxels may differ.
    """

    mask_dice: Annotated[float, Field(ge=0.0, le=1.0)]
    uncertainty_p99: Annotated[float, Field(ge=0.0, le=1.0)] = 0.02


DEFAULT_BUDGETS: Mapping[Precision, Budget] = MappingProxyType(
    {
        "f32": Budget(mask_dice=0.9995),
        "tf32": Budget(mask_dice=0.998),
        "bf16": Budget(mask_dice=0.998),
        "fp16": Budget(mask_dice=0.998),
        "int8": Budget(mask_dice=0.99),
        "fp8": Budget(mask_dice=0.99),
    }
)
"""Of precisions for which a manifest names no budget of its own."""


class ModelSpec(_Frozen):
    """What a model is, apart from its files. See each part's own docstring for units and ranges.

    Attributes:
        name: Short, for tables and outputs.
        version: Of the model, as its authors count it.
        licence: Under which the weights may be used.
        intended_use: In one sentence; shown by ``ucseg models``.
        modality: DICOM Modality (0008,0060) of the images that it takes.
        dim: 3 for networks of volumes, 2 for networks of planes.
        channels: Of the network's input: 1, or 3 for colour.
        classes: Foreground classes, labels 1, 2, 3 … in order; background is 0.
        activation: ``softmax`` over background and classes, or ``sigmoid`` for a single class, whose mask is p > 0.5.
        fusion: Rule that the graphs ``upg`` and ``decode`` compute: ``upg``, by the trained module, or one without
            weights; see `fusion_rules`.
        fusion_parameters: What of the rule is not at its default.
        default_precision: Arithmetic of ``ucseg-train evaluate`` where the processor has it. In which one an engine
            serves the model is for the accuracy gate to say.
        preprocessing: From the images to what the networks see.
        tiling: How a volume is cut.
        postprocessing: Clean-up of the label map.
        budgets: How far an engine in each precision may be from the reference; where one is left out, that of the
            accuracy gate.
        provenance: Who made the model of what, as pairs of words.
        quality: What was measured; shown by ``ucseg models``.
        series: Which series the model is for; without it every series of the modality.
        training_ranges: In which ranges the figures of its training cases lie; decisions compare with them.
    """

    name: str
    version: str
    licence: str
    intended_use: str
    modality: str
    dim: Literal[2, 3]
    channels: Annotated[int, Field(ge=1)]
    classes: tuple[SegmentClass, ...]
    activation: Literal["sigmoid", "softmax"]
    fusion: FusionRule = "upg"
    fusion_parameters: dict[str, FiniteFloat] = Field(default_factory=dict)
    default_precision: Precision
    preprocessing: Preprocessing
    tiling: Tiling
    postprocessing: Postprocessing
    budgets: dict[Precision, Budget] = Field(default_factory=lambda: dict(DEFAULT_BUDGETS))
    provenance: dict[str, str]
    quality: tuple[Quality, ...] = ()
    series: SeriesChoice = SeriesChoice()
    training_ranges: TrainingRanges | None = None

    def series_rules(self) -> tuple[SeriesRule, ...]:
        """Rules that a series must pass, apart from its modality."""
        return self.series.rules()

    @property
    def num_classes(self) -> int:
        """Channels of the logits, background included."""
        return len(self.classes) + 1

    @property
    def probability_channels(self) -> int:
        """Channels of the probabilities: 1 (foreground) for a binary sigmoid model, else one per class."""
        return 1 if self.activation == "sigmoid" else self.num_classes

    def budget(self, precision: Precision) -> Budget:
        """What an engine of this precision has to keep."""
        return self.budgets.get(precision, DEFAULT_BUDGETS[precision])

    @property
    def image_kind(self) -> Literal["slices", "frames"]:
        """What the model looks at: slices of a volume, or pictures and clips whose every frame is an image of its own.

        Networks for planes look at slices too where the device makes volumes.
        """
        return "frames" if self.dim == 2 and self.modality not in VOLUME_MODALITIES else "slices"

    @model_validator(mode="after")
    def _consistent_classes(self) -> ModelSpec:
        if [item.label for item in self.classes] != list(range(1, len(self.classes) + 1)):
            raise ValueError("class labels must be 1, 2, 3 … in order")
        if self.activation == "sigmoid" and len(self.classes) != 1:
            raise ValueError("a sigmoid model has exactly one foreground class")
        unknown = {*self.postprocessing.largest_component, *self.postprocessing.smallest_component_ml} - {
            item.label for item in self.classes
        }
        if unknown:
            raise ValueError(f"postprocessing names labels that no class has: {sorted(unknown)}")
        return self

    @model_validator(mode="after")
    def _parameters_of_the_rule(self) -> ModelSpec:
        complete_parameters(self.fusion, self.fusion_parameters)
        return self


class Manifest(ModelSpec):
    """The whole of `manifest.json`: the model, its files, and the proof that they compute it.

    Attributes:
        schema_version: Of this layout; another one is refused.
        parity: How the graphs compare with the trained networks.
        artifacts: The files by what they are: ``subnet_a``, ``subnet_b``, ``upg``, ``decode``, ``merged``, and
            ``merged_int8`` where there is one.
    """

    schema_version: Literal[1]
    parity: tuple[ParityRow, ...] = ()
    artifacts: dict[str, Artifact]

    @model_validator(mode="after")
    def _every_graph(self) -> Manifest:
        missing = {*STAGES, MERGED} - set(self.artifacts)
        if missing:
            raise ValueError(f"no artifact for {', '.join(sorted(missing))}")
        return self


def manifest_from_json(text: str) -> Manifest:
    """Parse and check a manifest.

    Raises:
        ManifestError: The text is not JSON, has another schema version, or breaks the schema; every breach is named.
    """
    try:
        raw = json.loads(text)
    except json.JSONDecodeError as error:
        raise ManifestError(f"{MANIFEST_NAME} is not JSON: line {error.lineno}: {error.msg}") from error
    version = raw.get("schema_version") if isinstance(raw, dict) else None
    if version != SCHEMA_VERSION:
        raise ManifestError(
            f"{MANIFEST_NAME} has schema version {version!r}; this ucseg reads version {SCHEMA_VERSION}.",
            hint="Export the model again, or install the ucseg version that wrote it.",
        )
    try:
        return Manifest.model_validate(raw)
    except ValidationError as error:
        breaches = "; ".join(f"{'.'.join(map(str, e['loc'])) or 'manifest'}: {e['msg']}" for e in error.errors())
        raise ManifestError(f"{MANIFEST_NAME} breaks the schema: {breaches}.") from error
