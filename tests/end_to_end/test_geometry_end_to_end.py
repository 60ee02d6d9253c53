"""A marked voxel goes through the whole path, DICOM to DICOM, and comes back where it was."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pydicom
import pytest
from scipy import ndimage

from tests.model_phantom import ModelPhantom
from tests.phantoms import AXIAL, OBLIQUE, CtPhantom, all_orientations, write_ct_series
from ucseg_runtime.config import InferenceOptions, OutputOptions
from ucseg_runtime.model_folder import Model, load_model
from ucseg_runtime.series_pipeline import segment_series

SAGITTAL = (0.0, 1.0, 0.0, 0.0, 0.0, -1.0)
CORONAL = (1.0, 0.0, 0.0, 0.0, 0.0, -1.0)
BACKGROUND_HU, LIVER_HU, SPINE_HU = 50, -20, 120

ACQUISITIONS = {
    "axial": CtPhantom(orientation=AXIAL),
    "sagittal": CtPhantom(orientation=SAGITTAL),
    "coronal": CtPhantom(orientation=CORONAL),
    "oblique": CtPhantom(orientation=OBLIQUE),
    "axial flipped": CtPhantom(orientation=AXIAL, flip=True),
    "head first, feet up": CtPhantom(orientation=(-1.0, 0.0, 0.0, 0.0, 1.0, 0.0), flip=True),
    "coronal flipped": CtPhantom(orientation=CORONAL, flip=True),
}
"""The ways in which scanners hand out a volume; the other orientations are tested without the writers."""


def points_of_segment(path: Path, label: int) -> npt.NDArray[np.float64]:
    """LPS coordinates in mm of every voxel of one segment, read by frame positions alone, shape (voxels, 3)."""
    seg = pydicom.dcmread(path)
    frames = np.atleast_3d(seg.pixel_array)
    shared = seg.SharedFunctionalGroupsSequence[0]
    row, column = np.array(shared.PlaneOrientationSequence[0].ImageOrientationPatient, float).reshape(2, 3)
    dy, dx = (float(value) for value in shared.PixelMeasuresSequence[0].PixelSpacing)
    points = []
    for frame, group in zip(frames, seg.PerFrameFunctionalGroupsSequence, strict=True):
        if group.SegmentIdentificationSequence[0].ReferencedSegmentNumber != label:
            continue
        origin = np.array(group.PlanePositionSequence[0].ImagePositionPatient, float)
        y, x = np.nonzero(frame)
        points.append(origin + np.outer(x * dx, row) + np.outer(y * dy, column))
    return np.concatenate(points)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    """Sorts voxels by intensity. The background lies between both labels, so that no rim looks like the other label."""
    phantom = ModelPhantom(centres=(0.5, 0.0, 1.0), spacing_mm=(1.5, 1.5, 1.5), tile_shape=(16, 32, 32))
    return load_model(phantom.write(tmp_path_factory.mktemp("model") / "phantom"))


def liver_and_spine(phantom: CtPhantom) -> npt.NDArray[np.uint8]:
    """What the model phantom must find: 1 in the middle of the volume's right half, 2 in its back."""
    position = phantom.geometry.lps_from_index(
        np.stack(np.meshgrid(*map(np.arange, phantom.shape), indexing="ij"), axis=-1)
    )
    centre = phantom.geometry.lps_from_index((np.array(phantom.shape) - 1) / 2)
    offset = position - centre
    labels = np.zeros(phantom.shape, dtype=np.uint8)
    labels[(np.abs(offset - (-9.0, -4.0, 3.0)) < (5.0, 5.0, 5.0)).all(axis=-1)] = 1
    labels[(np.abs(offset - (0.0, 10.0, -2.0)) < (4.0, 4.0, 6.0)).all(axis=-1)] = 2
    return labels


@pytest.mark.parametrize("name", ACQUISITIONS)
def test_marked_tissue_comes_back_in_its_place(name: str, model: Model, tmp_path: Path) -> None:
    phantom = replace(ACQUISITIONS[name], shape=(28, 40, 48), spacing_mm=(1.5, 1.25, 1.0))
    labels = liver_and_spine(phantom)
    assert set(np.unique(labels)) == {0, 1, 2}, "the marked tissue lies inside the volume"
    hu = np.array([BACKGROUND_HU, LIVER_HU, SPINE_HU], dtype=np.int16)[labels]

    def paint(index: int, dataset: pydicom.FileDataset) -> None:
        dataset.PixelData = (hu[index].astype(np.int32) + 1024).astype(np.uint16).tobytes()

    write_ct_series(tmp_path / "in", phantom, edit=paint)

    segment_series(tmp_path / "in", tmp_path / "out", model, InferenceOptions(gate=False), OutputOptions())

    for label in (1, 2):
        found = points_of_segment(tmp_path / "out" / "segmentation.dcm", label)
        expected = phantom.geometry.lps_from_index(np.argwhere(labels == label))
        assert np.linalg.norm(found.mean(axis=0) - expected.mean(axis=0)) < 1.0
        assert len(found) > 0.4 * len(expected), "the rim may go to the background, and no more"
        index = phantom.geometry.index_from_lps(found)
        z, y, x = np.rint(index).astype(int).T
        assert np.abs(index - np.rint(index)).max() < 1e-3, "every voxel lies on the source grid"
        assert ndimage.binary_dilation(labels == label, iterations=2)[z, y, x].all(), "at most a rim too much"


def test_the_48_orientations_are_different_acquisitions() -> None:
    assert len({(phantom.orientation, phantom.flip) for phantom in all_orientations()}) == 48
