"""What a data set is: where its files lie, what its labels mean, and how an image becomes network input.

Presets and users' own descriptions are YAML files of this schema. The part that a deployed model shares,
`preprocessing`, is the runtime's own type and goes into the manifest unchanged.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import PurePosixPath
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from ucseg_runtime.intensity import Intensity
from ucseg_runtime.manifest import PositiveMm, Postprocessing, Preprocessing, SegmentClass, Tiling

SIDE_DIVISOR = 16
"""Both subnets halve every side of a tile four times."""

Split = Literal["train", "unlabelled", "val", "test"]
Label = Annotated[int, Field(ge=0, le=255)]
Count = Annotated[int, Field(ge=1)]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ListPart(_Frozen):
    """Cases that a text file names, one per line; what follows a comma is not read.

    Attributes:
        split: What they are for. Of a training part only the first cases may count as labelled.
        list: The text file, relative to the folder of the data set.
        image: Path of the image relative to that folder; ``{case}`` stands for the line.
        label: The same of the label; none for HDF5, which holds both.
        optional: Whether the list may be missing; there are no such cases then.
    """

    kind: Literal["list"] = "list"
    split: Split
    list: str
    image: str
    label: str | None = None
    optional: bool = False

    @field_validator("image", "label")
    @classmethod
    def _template(cls, template: str | None) -> str | None:
        if template is not None and (
            template.count("{case}") < 1 or re.search(r"[{}]", template.replace("{case}", ""))
        ):
            raise ValueError("the path needs {case} for the line of the list, and no other braces")
        return template


class FolderPart(_Frozen):
    """Cases that lie in folders, in the order of their names.

    Attributes:
        split: What they are for.
        images: Pattern of the images relative to the folder of the data set, for instance ``labeled/image/*``.
        labels: Name of the folder beside the folder of the images that holds the labels: a file or folder with the name
            of the image, whatever its suffix.
    """

    kind: Literal["folder"] = "folder"
    split: Split
    images: str
    labels: str

    @field_validator("images")
    @classmethod
    def _in_a_folder(cls, pattern: str) -> str:
        parts = PurePosixPath(pattern).parts
        if len(parts) < 2 or parts[0] == "/" or ".." in parts:
            raise ValueError("the pattern needs a folder for the images, inside the data set's folder")
        return pattern


Part = Annotated[ListPart | FolderPart, Field(discriminator="kind")]

_FOLDERS: tuple[FolderPart, ...] = tuple(
    FolderPart(split=split, images=f"{split}/images/*", labels="labels")
    for split in ("train", "unlabelled", "val", "test")
)


class ValueLabels(_Frozen):
    """Stored values are labels.

    Attributes:
        values: Stored value to label; where empty, each value is its own label. Any other value but 0 is an error.
    """

    kind: Literal["values"] = "values"
    values: dict[int, Label] = Field(default_factory=dict)


class ThresholdLabels(_Frozen):
    """Label 1 where the stored value is greater than a threshold, 0 elsewhere.

    Attributes:
        above: The threshold. For masks of 8 bits 127: compressed masks are not just black and white.
    """

    kind: Literal["threshold"] = "threshold"
    above: float = 127.0


class Hdf5Rule(_Frozen):
    """What the arrays of an HDF5 file mean. Such files have no geometry.

    Attributes:
        image: Name of the image's data set.
        label: Name of the label's data set.
        axis_order: Of volumes: ``xyz`` = (column, row, slice), ``zyx`` = (slice, row, column). Planes are always
            (row, column).
        spacing_mm: Along (z, y, x).
        intensity: What still has to be done to the stored values, where others have applied the model's rule already;
            none where they are in modality units.
        cropped: Whether the crop of the data set has been made already.
    """

    image: str = "image"
    label: str = "label"
    axis_order: Literal["xyz", "zyx"]
    spacing_mm: tuple[PositiveMm, PositiveMm, PositiveMm]
    intensity: Intensity | None = None
    cropped: bool = True


class LabelCrop(_Frozen):
    """Training volumes are cut to the box around their label.

    The deployed model has no label and sees the whole volume; so do cases without a label, and those that are scored.

    Attributes:
        axes: Axes that are cut; the others are kept whole.
        margin_voxels: Least and largest margin, drawn anew for every side.
        least_voxels: The label's box grows to at least this side before the margin is added.
    """

    kind: Literal["label_box"] = "label_box"
    axes: Literal["yx", "zyx"] = "yx"
    margin_voxels: tuple[Annotated[int, Field(ge=0)], Annotated[int, Field(ge=0)]]
    least_voxels: Annotated[int, Field(ge=0)] = 0

    @field_validator("margin_voxels")
    @classmethod
    def _ascending(cls, margin: tuple[int, int]) -> tuple[int, int]:
        if margin[0] > margin[1]:
            raise ValueError("the least margin must not be larger than the largest")
        return margin


class ImageCrop(_Frozen):
    """Training volumes are cut to the box of everything that is not padding."""

    kind: Literal["image_box"] = "image_box"


Crop = Annotated[LabelCrop | ImageCrop, Field(discriminator="kind")]


class DatasetSpec(_Frozen):
    """A data set.

    Attributes:
        name: Short, as in the name of the preset.
        title: What it is, for people; with its source and whatever had to be assumed.
        modality: DICOM modality such as ``CT``, (0008,0060); ``OT`` where there is none.
        dim: Spatial dimensions of the networks.
        channels: Channels of the network's input: as many as an image has, or more where grey is repeated.
        classes: Foreground classes in the order of their labels 1, 2, 3 …
        activation: How logits become probabilities.
        preprocessing: As deployed.
        tiling: As deployed. Tiles of a network for planes have one slice.
        postprocessing: As deployed.
        labels: What stored values mean, in NIfTI, HDF5 and pictures.
        structures: Name of a segment in DICOM SEG or of a region in RTSTRUCT to label; the names of the classes where
            empty. Upper and lower case are the same.
        hdf5: What the arrays of HDF5 files mean; needed for such files only.
        crop: What is cut from training volumes, if anything.
        layout: Where the cases lie in the data set's folder. A list of cases does not use it.
        patient: Regular expression whose first group in the name of a case's file is the patient; none where every
            image counts as a patient of its own.
        labelled: Numbers of labelled training cases by name, for instance ``10%``.
        default_labelled: Key of `labelled` that is used where nothing else is asked for.
        batch_size: Cases per step, half of them labelled.
        seed: Of everything random.
    """

    name: str
    title: str = ""
    modality: str
    dim: Literal[2, 3]
    channels: Annotated[int, Field(ge=1, le=16)] = 1
    classes: Annotated[tuple[SegmentClass, ...], Field(min_length=1)]
    activation: Literal["sigmoid", "softmax"]
    preprocessing: Preprocessing
    tiling: Tiling
    postprocessing: Postprocessing = Postprocessing()
    labels: Annotated[ValueLabels | ThresholdLabels, Field(discriminator="kind")] = ValueLabels()
    structures: dict[str, Annotated[int, Field(ge=1, le=255)]] = Field(default_factory=dict)
    hdf5: Hdf5Rule | None = None
    crop: Crop | None = None
    layout: tuple[Part, ...] = _FOLDERS
    patient: str | None = "^(.+)$"
    labelled: dict[str, Count] = Field(default_factory=dict)
    default_labelled: str | None = None
    batch_size: Annotated[int, Field(ge=2)] = 4
    seed: Annotated[int, Field(ge=0)] = 42

    @property
    def labels_by_structure(self) -> dict[str, int]:
        """Label by the name of a segment or region, in lower case."""
        named = self.structures or {item.name: item.label for item in self.classes}
        return {name.lower(): label for name, label in named.items()}

    @field_validator("patient")
    @classmethod
    def _one_group(cls, pattern: str | None) -> str | None:
        try:
            if pattern is not None and re.compile(pattern).groups < 1:
                raise ValueError("the expression needs a group that holds the patient")
        except re.error as error:
            raise ValueError(f"not a regular expression: {error}") from error
        return pattern

    @field_validator("batch_size")
    @classmethod
    def _equal_halves(cls, batch_size: int) -> int:
        if batch_size % 2:
            raise ValueError(f"{batch_size} is odd: each labelled case of a batch is mixed with an unlabelled one")
        return batch_size

    @model_validator(mode="after")
    def _consistent(self) -> DatasetSpec:
        for problem in (self._classes_problem(), tile_shape_problem(self.tiling.tile_shape, self.dim)):
            if problem:
                raise ValueError(problem)
        if self.dim == 2 and self.preprocessing.plane_shape != self.tiling.tile_shape[1:]:
            raise ValueError(
                f"planes have {self.preprocessing.plane_shape} voxels and tiles {self.tiling.tile_shape[1:]}; "
                "a network for planes sees each plane whole"
            )
        if self.default_labelled is not None and self.default_labelled not in self.labelled:
            raise ValueError(f"default_labelled is {self.default_labelled!r}, which labelled does not have")
        return self

    def _classes_problem(self) -> str:
        known = {item.label for item in self.classes}
        if [item.label for item in self.classes] != list(range(1, len(self.classes) + 1)):
            return "class labels must be 1, 2, 3 … in order"
        if self.activation == "sigmoid" and len(self.classes) != 1:
            return "a sigmoid model has exactly one foreground class"
        mapped = set(self.structures.values())
        if isinstance(self.labels, ValueLabels):
            mapped |= {label for label in self.labels.values.values() if label}
        return f"labels {sorted(mapped - known)} belong to no class" if mapped - known else ""

    def model_fields_of(self) -> dict[str, object]:
        """What the manifest of a model trained on this data set says, JSON-able, apart from names, version and quality.

        The provenance tells of the crop, because the deployed model does without.
        """
        return {
            "modality": self.modality,
            "dim": self.dim,
            "channels": self.channels,
            "classes": [item.model_dump(mode="json") for item in self.classes],
            "activation": self.activation,
            "fusion": "upg",
            "preprocessing": self.preprocessing.model_dump(mode="json"),
            "tiling": self.tiling.model_dump(mode="json"),
            "postprocessing": self.postprocessing.model_dump(mode="json"),
            "provenance": {"data_set": self.title or self.name, "training_crop": self._crop_in_words()},
        }

    def _crop_in_words(self) -> str:
        if self.crop is None:
            return "none"
        whole = "the model is deployed on whole volumes"
        if isinstance(self.crop, ImageCrop):
            return f"training volumes were cut to the box of everything that is not padding; {whole}"
        low, high = self.crop.margin_voxels
        margin = f"{low} to {high}" if low < high else str(low)
        return (
            f"training volumes were cut along {', '.join(self.crop.axes)} to the box of their label, grown to "
            f"{self.crop.least_voxels} voxels, with a margin of {margin} voxels; {whole}"
        )


def tile_shape_problem(shape: Sequence[int], dim: int) -> str:
    """What is wrong with a tile shape (z, y, x), in words; empty where nothing is."""
    sides = tuple(shape[-dim:])
    if dim == 2 and shape[0] != 1:
        return f"tiles of a network for planes have one slice, not {shape[0]}"
    if any(side % SIDE_DIVISOR for side in sides):
        return f"the tile shape is {tuple(shape)}; every side must be a multiple of {SIDE_DIVISOR}"
    return ""
