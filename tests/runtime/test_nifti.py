"""NIfTI files: the same voxels at the same place in the patient, read by two other libraries."""

from __future__ import annotations

import sys
import time
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from tests.phantoms import OBLIQUE, CtPhantom, all_orientations
from tests.results import segmentation_of
from ucseg_runtime.errors import BackendUnavailableError, OutputError
from ucseg_runtime.nifti import ras_affine, require_nibabel, write_nifti
from ucseg_runtime.segmentation import ready_to_write

nibabel = pytest.importorskip("nibabel")


def test_labels_are_read_back_at_their_place_in_the_patient(tmp_path: Path) -> None:
    phantom = CtPhantom(orientation=OBLIQUE)
    path = tmp_path / "labels.nii.gz"

    write_nifti(path, phantom.labels, phantom.geometry)

    image = nibabel.load(path)
    voxels = np.asarray(image.dataobj)
    for index in np.argwhere(phantom.labels > 0)[::97]:
        x, y, z = index[::-1]
        assert voxels[x, y, z] == phantom.labels[tuple(index)]
        left, back, up = phantom.geometry.lps_from_index(index)
        # The header holds the affine in float32.
        np.testing.assert_allclose(image.affine @ (x, y, z, 1), (-left, -back, up, 1), atol=1e-3)


def test_sform_and_qform_agree_in_all_orientations(tmp_path: Path) -> None:
    for phantom in all_orientations():
        path = tmp_path / "labels.nii.gz"

        write_nifti(path, phantom.labels, phantom.geometry)

        header = nibabel.load(path).header
        assert (header["sform_code"], header["qform_code"]) == (1, 1)
        np.testing.assert_allclose(header.get_sform(), ras_affine(phantom.geometry), atol=1e-4)
        np.testing.assert_allclose(header.get_qform(), header.get_sform(), atol=1e-3)


@pytest.mark.skipif(find_spec("SimpleITK") is None, reason="needs the package SimpleITK")
def test_simpleitk_finds_every_voxel_at_the_same_lps_point(tmp_path: Path) -> None:
    import SimpleITK

    phantom = CtPhantom(orientation=OBLIQUE)
    write_nifti(tmp_path / "labels.nii.gz", phantom.labels, phantom.geometry)

    image = SimpleITK.ReadImage(str(tmp_path / "labels.nii.gz"))

    np.testing.assert_array_equal(SimpleITK.GetArrayFromImage(image), phantom.labels)
    for index in ((0, 0, 0), (9, 39, 47), (3, 7, 11)):
        point = image.TransformIndexToPhysicalPoint(index[::-1])
        np.testing.assert_allclose(point, phantom.geometry.lps_from_index(index), atol=1e-3)


def test_uncertainty_that_is_ready_to_write_gives_the_same_file(tmp_path: Path) -> None:
    segmentation = segmentation_of(CtPhantom())
    for name, uncertainty in (
        ("float", segmentation.uncertainty),
        ("stored", ready_to_write(segmentation).uncertainty),
    ):
        write_nifti(tmp_path / f"{name}.nii.gz", uncertainty, segmentation.geometry)
    assert (tmp_path / "stored.nii.gz").read_bytes() == (tmp_path / "float.nii.gz").read_bytes()


def test_uncertainty_is_read_back_within_half_a_step(tmp_path: Path) -> None:
    segmentation = segmentation_of(CtPhantom())

    write_nifti(tmp_path / "uncertainty.nii.gz", segmentation.uncertainty, segmentation.geometry)

    image = nibabel.load(tmp_path / "uncertainty.nii.gz")
    assert image.get_data_dtype() == np.uint16
    # The header holds the slope in float32.
    assert np.abs(image.get_fdata().T - segmentation.uncertainty).max() <= 0.5 / 65535 + 1e-6


def test_writing_again_later_gives_the_same_bytes(tmp_path: Path) -> None:
    phantom = CtPhantom()
    write_nifti(tmp_path / "first.nii.gz", phantom.labels, phantom.geometry)
    time.sleep(1.1)  # gzip notes whole seconds

    write_nifti(tmp_path / "second.nii.gz", phantom.labels, phantom.geometry)

    assert (tmp_path / "first.nii.gz").read_bytes() == (tmp_path / "second.nii.gz").read_bytes()


@pytest.mark.parametrize(
    "voxels",
    [
        pytest.param(np.full((2, 3, 4), np.nan, dtype=np.float32), id="not finite"),
        pytest.param(np.full((2, 3, 4), 1.5, dtype=np.float32), id="above one"),
        pytest.param(np.zeros((2, 3, 4), dtype=np.int64), id="64 bit"),
    ],
)
def test_arrays_that_are_no_result_are_refused(tmp_path: Path, voxels: np.ndarray) -> None:  # type: ignore[type-arg]
    with pytest.raises(OutputError):
        write_nifti(tmp_path / "x.nii.gz", voxels, CtPhantom(shape=(2, 3, 4)).geometry)

    assert not list(tmp_path.iterdir())


def test_missing_nibabel_is_named_with_the_extra_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "nibabel", None)

    with pytest.raises(BackendUnavailableError, match=r"pip install 'ucseg\[nifti\]'"):
        require_nibabel()
