"""Series that form no straight grid: tissue comes back in its place, on the slices as they were acquired."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
import numpy.typing as npt
import pydicom
import pytest

from tests.end_to_end.test_geometry_end_to_end import BACKGROUND_HU, LIVER_HU, SPINE_HU, points_of_segment
from tests.model_phantom import ModelPhantom
from tests.phantoms import AXIAL, OBLIQUE, CtPhantom, write_ct_series
from ucseg_runtime.config import InferenceOptions, InputOptions, OutputOptions, SegEncoding
from ucseg_runtime.dicom.series import scan
from ucseg_runtime.dicom.stacking import acquired_grid
from ucseg_runtime.model_folder import Model, load_model
from ucseg_runtime.series_pipeline import segment_series
from ucseg_runtime.slice_stack import SliceStack

PHANTOM = CtPhantom(shape=(28, 40, 48), spacing_mm=(1.5, 1.25, 1.0))
Points = npt.NDArray[np.float64]


def tilted(degrees: float) -> Callable[[int], tuple[float, float]]:
    return lambda z: (0.0, z * 1.5 * float(np.tan(np.radians(degrees))))


def wider_above(z: int) -> tuple[float, float]:
    return 1.0 * max(0, z - 15), 0.0


def jittered(z: int) -> tuple[float, float]:
    return (0.0, 0.3, -0.25)[z % 3], 0.0


SERIES = {
    "tilted 18 degrees": (AXIAL, tilted(18.0)),
    "tilted -25 degrees, oblique": (OBLIQUE, tilted(-25.0)),
    "steps of 1.5 and 2.5 mm": (AXIAL, wider_above),
    "jittered": (OBLIQUE, jittered),
}
"""By orientation, and how far each slice lies off the even grid: along the normal and along the columns, in mm."""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    phantom = ModelPhantom(centres=(0.5, 0.0, 1.0), spacing_mm=(1.5, 1.5, 1.5), tile_shape=(16, 32, 32))
    return load_model(phantom.write(tmp_path_factory.mktemp("model") / "phantom"))


def tissue(points: Points, centre: Points) -> npt.NDArray[np.uint8]:
    """1 in a box to the right of the middle, 2 in one behind it, by place in the patient alone."""
    offset = points - centre
    labels = np.zeros(points.shape[:-1], dtype=np.uint8)
    labels[(np.abs(offset - (-9.0, -4.0, 3.0)) < (6.0, 6.0, 6.0)).all(axis=-1)] = 1
    labels[(np.abs(offset - (3.0, 9.0, -2.0)) < (5.0, 5.0, 7.0)).all(axis=-1)] = 2
    return labels


def write_series(folder: Path, orientation: tuple[float, ...], off: Callable[[int], tuple[float, float]]) -> Points:
    """Write tissue at the places of the slices; returns the middle of the series in LPS mm."""
    phantom = replace(PHANTOM, orientation=orientation)
    row, column = np.reshape(orientation, (2, 3))
    normal = np.cross(row, column)

    def shift(z: int) -> Points:
        along, sideways = off(z)
        return np.asarray(along * normal + sideways * column)

    middle = phantom.geometry.lps_from_index((13.5, 19.5, 23.5)) + shift(14)
    y, x = np.indices(PHANTOM.shape[1:])

    def paint(z: int, dataset: pydicom.FileDataset) -> None:
        places = phantom.geometry.lps_from_index(np.stack([np.full_like(y, z), y, x], axis=-1)) + shift(z)
        dataset.ImagePositionPatient = [f"{value:.10g}" for value in places[0, 0]]
        hu = np.array([BACKGROUND_HU, LIVER_HU, SPINE_HU], dtype=np.int16)[tissue(places, middle)]
        dataset.PixelData = (hu.astype(np.int32) + 1024).astype(np.uint16).tobytes()

    write_ct_series(folder, phantom, edit=paint)
    return np.asarray(middle)


@pytest.mark.parametrize("name", SERIES)
def test_tissue_comes_back_in_its_place(name: str, model: Model, tmp_path: Path) -> None:
    middle = write_series(tmp_path / "in", *SERIES[name])
    outputs = OutputOptions(extras=frozenset({"nifti", "nrrd", "rtstruct"}))

    segment_series(tmp_path / "in", tmp_path / "out", model, InferenceOptions(gate=False), outputs)

    (series,) = scan(tmp_path / "in").series
    stack = acquired_grid(series)
    assert isinstance(stack, SliceStack)
    truth = tissue(stack.lps_from_index(np.stack(np.indices(stack.shape), axis=-1)), middle)
    for label in (1, 2):
        found = points_of_segment(tmp_path / "out" / "segmentation.dcm", label)
        expected = stack.lps_from_index(np.argwhere(truth == label))
        index = stack.index_from_lps(found)
        assert np.abs(index - np.rint(index)).max() < 1e-3, "every voxel lies on a slice as it was acquired"
        assert np.linalg.norm(found.mean(axis=0) - expected.mean(axis=0)) < 1.0
        z, y, x = np.rint(index).astype(int).T
        agreed = np.count_nonzero(truth[z, y, x] == label)
        assert 2 * agreed / (len(found) + len(expected)) > 0.8
    nifti = nibabel.load(tmp_path / "out" / "labels.nii.gz")
    voxels = np.argwhere(np.asanyarray(nifti.dataobj) == 2)
    ras = nibabel.affines.apply_affine(nifti.affine, voxels).mean(axis=0)
    assert np.linalg.norm(ras * (-1, -1, 1) - expected.mean(axis=0)) < 1.0
    assert "resampled" in json.loads((tmp_path / "out" / "record.json").read_text())["notes"][-1]


@pytest.mark.parametrize("seg_type", ["binary", "labelmap", "fractional"])
def test_objects_on_tilted_slices_conform(seg_type: str, model: Model, tmp_path: Path) -> None:
    write_series(tmp_path / "in", *SERIES["tilted 18 degrees"])

    segment_series(
        tmp_path / "in",
        tmp_path / "out",
        model,
        InferenceOptions(gate=False),
        OutputOptions(SegEncoding(seg_type), extras=frozenset({"rtstruct"})),  # type: ignore[arg-type]
    )

    validator = Path(sys.executable).with_name("dciodvfy")
    for name in ("segmentation.dcm", "uncertainty.dcm", "report.dcm", "structures.dcm"):
        finished = subprocess.run([validator, tmp_path / "out" / name], capture_output=True, text=True, check=False)
        errors = [line for line in finished.stderr.splitlines() if line.startswith("Error")]
        assert not errors, errors


def test_gap_is_bridged_and_results_lie_on_the_slices_that_are_there(model: Model, tmp_path: Path) -> None:
    middle = write_series(tmp_path / "in", AXIAL, lambda z: (0.0, 0.0))
    removed = sorted((tmp_path / "in").iterdir())[12]
    removed.unlink()

    segment_series(
        tmp_path / "in",
        tmp_path / "out",
        model,
        InferenceOptions(gate=False),
        OutputOptions(),
        InputOptions(allow_gaps=1),
    )

    found = points_of_segment(tmp_path / "out" / "segmentation.dcm", 2)
    heights = {round(float(height), 3) for height in found[:, 2]}
    assert round(PHANTOM.origin_mm[2] + 12 * 1.5, 3) not in heights
    assert np.linalg.norm(found.mean(axis=0)[:2] - (middle + (3.0, 9.0, -2.0))[:2]) < 1.0
