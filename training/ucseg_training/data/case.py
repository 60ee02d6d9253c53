"""A training case: one volume on the model grid with labels that may be partial."""

from __future__ import annotations

import os
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np

from ucseg_runtime.arrays import Float32Array, UInt8Array
from ucseg_runtime.errors import InputError
from ucseg_runtime.geometry import VolumeGeometry

KnownBits: TypeAlias = UInt8Array
"""uint8; bit k − 1 is set where it is known whether class k is present."""

MOST_CLASSES = 8
"""Bits of `KnownBits`."""


@dataclass(frozen=True, eq=False)
class Case:
    """One patient.

    Attributes:
        name: Name of the patient in the reports.
        voxels: float32, shape (z, y, x), modality units (HU).
        label_map: uint8, shape (z, y, x); 0 where no labelled class is present.
        known: uint8, shape (z, y, x). Bit k − 1 is set where it is known whether class k is present. A voxel with
            label 0 may belong to any class whose bit is not set.
        geometry: Grid of the arrays; the model grid for everything that is trained on.

    Raises:
        InputError: The arrays and the geometry differ in shape.
    """

    name: str
    voxels: Float32Array
    label_map: UInt8Array
    known: KnownBits
    geometry: VolumeGeometry

    def __post_init__(self) -> None:
        shapes = {
            "voxels": self.voxels.shape,
            "label map": self.label_map.shape,
            "known classes": self.known.shape,
            "geometry": self.geometry.shape,
        }
        if len(set(shapes.values())) > 1:
            found = ", ".join(f"{part} {shape}" for part, shape in shapes.items())
            raise InputError(f"image and labels do not belong together: {found}.")


def bit(label: int) -> np.uint8:
    """The bit of a class in `Case.known`; labels 1 … 8."""
    return np.uint8(1 << (label - 1))


def save_case(case: Case, path: Path) -> None:
    """Write a case as NPZ, without pickles; the file appears complete or not at all."""
    temporary = path.with_name(f".{path.name}.part")
    with temporary.open("wb") as stream:
        np.savez_compressed(
            stream,
            voxels=case.voxels.astype(np.float32),
            label_map=case.label_map,
            known=case.known,
            affine=case.geometry.affine,
            name=np.array(case.name),
        )
    os.replace(temporary, path)


def load_case(path: Path) -> Case:
    """Read what `save_case` wrote.

    Raises:
        InputError: Not a file of that kind.
    """
    try:
        # numpy leaves a file that it opened itself open when the file is empty.
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as stored:
            voxels = stored["voxels"]
            return Case(
                name=str(stored["name"]),
                voxels=voxels,
                label_map=stored["label_map"],
                known=stored["known"],
                geometry=VolumeGeometry(stored["affine"], voxels.shape),
            )
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise InputError(
            f"a prepared case cannot be read ({type(error).__name__}).",
            hint="Delete the folder of prepared cases; the next run makes them again.",
        ) from error
