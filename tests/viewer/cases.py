"""What is looked at: a phantom series as some scanner stores it, with a segmentation that ucseg writes for it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from pydicom.dataset import FileDataset

from tests.phantoms import AXIAL, OBLIQUE, CtPhantom, edit_file, write_ct_series
from tests.results import CLASSES, IDENTITY, segmentation_on, sources_of
from tests.viewer.overlay import Labels
from ucseg_runtime.config import SegEncoding, SegType
from ucseg_runtime.dicom.seg_writer import write_seg
from ucseg_runtime.manifest import SegmentClass

Change = Callable[[Labels], Labels]

_PHANTOM = CtPhantom(shape=(12, 64, 72), spacing_mm=(3.0, 1.25, 1.0))
"""Enough voxels for round organs, few enough that one is 9 to 12 pixels wide on the screen; they are not square."""

SERIES = {
    "axial": replace(_PHANTOM, orientation=AXIAL),
    "axial, numbered downwards": replace(_PHANTOM, orientation=AXIAL, flip=True),
    "rows from left to right": replace(_PHANTOM, orientation=(-1.0, 0.0, 0.0, 0.0, 1.0, 0.0)),
    "columns from back to front": replace(_PHANTOM, orientation=(1.0, 0.0, 0.0, 0.0, -1.0, 0.0)),
    "oblique": replace(_PHANTOM, orientation=OBLIQUE),
    "oblique, numbered downwards": replace(_PHANTOM, orientation=OBLIQUE, flip=True),
    "sagittal": replace(_PHANTOM, orientation=(0.0, 1.0, 0.0, 0.0, 0.0, -1.0)),
    "coronal, numbered downwards": replace(_PHANTOM, orientation=(1.0, 0.0, 0.0, 0.0, 0.0, -1.0), flip=True),
}

DRAWN_BY_OHIF: tuple[SegType, ...] = ("binary", "labelmap")

WRONG_MASKS: dict[str, Change] = {
    "left and right exchanged": lambda labels: labels[:, :, ::-1],
    "up and down exchanged": lambda labels: labels[:, ::-1],
    "slices in reverse": lambda labels: labels[::-1],
    "two columns aside": lambda labels: np.roll(labels, 2, axis=2),
    "two rows down": lambda labels: np.roll(labels, 2, axis=1),
    "two slices on": lambda labels: np.roll(labels, 2, axis=0),
}


def as_they_are(labels: Labels) -> Labels:
    """The mask as it should be."""
    return labels


def left_alone(seg: FileDataset) -> None:
    """The segmentation as ucseg writes it."""


@dataclass(frozen=True)
class Case:
    """One study to look at.

    Attributes:
        series: Key of `SERIES`.
        seg_type: How the segmentation is stored.
        change: What is done to the phantom's labels before they are written.
        edit: What is done to the written segmentation before it is stored.
        name: Distinguishes the study from those of other cases with the same series and type.
    """

    series: str
    seg_type: SegType
    change: Change = as_they_are
    edit: Callable[[FileDataset], None] = left_alone
    name: str = "organs"

    @property
    def phantom(self) -> CtPhantom:
        """The series, in a study of its own."""
        return replace(SERIES[self.series], study=f"{self.series}, {self.seg_type}, {self.name}")

    @property
    def classes(self) -> tuple[SegmentClass, ...]:
        """Of the segmentation."""
        return CLASSES

    @property
    def labels(self) -> Labels:
        """What is written, shape (z, y, x)."""
        return self.change(self.phantom.labels)

    @property
    def slices(self) -> tuple[int, int, int]:
        """z indices of the first, the middle and the last slice in which the phantom shows two organs or more."""
        telling = [z for z, plane in enumerate(self.phantom.labels) if len(np.unique(plane)) >= 3]
        return telling[0], telling[len(telling) // 2], telling[-1]

    def write(self, folder: Path) -> list[Path]:
        """Write the series and its segmentation below `folder`; the segmentation is the last one."""
        files = write_ct_series(folder / "ct", self.phantom)
        segmentation = segmentation_on(self.phantom.geometry, np.ascontiguousarray(self.labels))
        write_seg(folder / "seg.dcm", segmentation, sources_of(self.phantom), IDENTITY, SegEncoding(self.seg_type))
        if self.edit is not left_alone:
            edit_file(folder / "seg.dcm", self.edit)
        return [*files, folder / "seg.dcm"]


ALL = [Case(series, seg_type) for series in SERIES for seg_type in DRAWN_BY_OHIF]
