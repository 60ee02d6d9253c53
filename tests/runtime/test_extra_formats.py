"""NRRD files, the Secondary Capture of the picture, and the uncertainty as a segmentation."""

from __future__ import annotations

import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pydicom
import pytest
import SimpleITK
from pydicom.uid import JPEGLSLossless, RLELossless

from tests.phantoms import OBLIQUE, PHI_CANARIES, CtPhantom, all_orientations
from tests.results import IDENTITY, conformance, frames_of, segmentation_of, sources_of
from ucseg_runtime.config import SegEncoding
from ucseg_runtime.dicom.preview_writer import write_preview
from ucseg_runtime.dicom.uncertainty_seg_writer import write_uncertainty_seg
from ucseg_runtime.errors import BackendUnavailableError, SegWriteError
from ucseg_runtime.nifti import write_nifti
from ucseg_runtime.nrrd_file import require_pynrrd, write_nrrd
from ucseg_runtime.segmentation import stored_uncertainty

PHANTOM = CtPhantom()
PRIVATE_CODE = "Unrecognized defined term <99UCSEG> for value 1 of attribute <Coding Scheme Designator>"


# NRRD


def test_simpleitk_finds_every_voxel_of_an_nrrd_at_its_point_in_all_orientations(tmp_path: Path) -> None:
    for phantom in [*all_orientations(), CtPhantom(orientation=OBLIQUE)]:
        write_nrrd(tmp_path / "labels.nrrd", phantom.labels, phantom.geometry)

        image = SimpleITK.ReadImage(str(tmp_path / "labels.nrrd"))

        np.testing.assert_array_equal(SimpleITK.GetArrayFromImage(image), phantom.labels)
        for index in ((0, 0, 0), (9, 39, 47), (3, 7, 11)):
            point = image.TransformIndexToPhysicalPoint(index[::-1])
            np.testing.assert_allclose(point, phantom.geometry.lps_from_index(index), atol=1e-6)


def test_nrrd_holds_the_stored_uncertainty(tmp_path: Path) -> None:
    segmentation = segmentation_of(PHANTOM)
    stored = stored_uncertainty(segmentation.uncertainty)

    write_nrrd(tmp_path / "uncertainty.nrrd", stored, segmentation.geometry)

    image = SimpleITK.ReadImage(str(tmp_path / "uncertainty.nrrd"))
    np.testing.assert_array_equal(SimpleITK.GetArrayFromImage(image), stored)


def test_writing_an_nrrd_again_later_gives_the_same_bytes(tmp_path: Path) -> None:
    write_nrrd(tmp_path / "first.nrrd", PHANTOM.labels, PHANTOM.geometry)
    time.sleep(1.1)  # pynrrd notes whole seconds

    write_nrrd(tmp_path / "second.nrrd", PHANTOM.labels, PHANTOM.geometry)

    assert (tmp_path / "first.nrrd").read_bytes() == (tmp_path / "second.nrrd").read_bytes()


def test_missing_pynrrd_is_named_with_the_extra_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "nrrd", None)

    with pytest.raises(BackendUnavailableError, match=r"pip install 'ucseg\[nifti\]'"):
        require_pynrrd()


@pytest.mark.parametrize("write", [write_nrrd, write_nifti], ids=["nrrd", "nifti"])
@pytest.mark.parametrize("damage", ["cut off", "one voxel", "empty"])
def test_files_that_changed_on_disk_are_caught_by_reading_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write: type[write_nrrd], damage: str
) -> None:
    path = tmp_path / "labels"
    other = PHANTOM.labels
    other[5, 20, 20] ^= 1
    write(path, other, PHANTOM.geometry)
    content = {"cut off": path.read_bytes()[:-20], "one voxel": path.read_bytes(), "empty": b""}[damage]
    compare = sys.modules[write.__module__]._read_back  # type: ignore[attr-defined]  # to change what it will find

    def damaged_first(path: Path, *written: object) -> None:
        path.write_bytes(content)
        compare(path, *written)

    monkeypatch.setattr(f"{write.__module__}._read_back", damaged_first)

    with pytest.raises(SegWriteError, match="read back"):
        write(path, PHANTOM.labels, PHANTOM.geometry)


@pytest.mark.parametrize("write", [write_nrrd, write_nifti], ids=["nrrd", "nifti"])
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_another_place_in_the_patient_is_caught_by_reading_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write: type[write_nrrd], axis: int
) -> None:
    compare = sys.modules[write.__module__]._read_back  # type: ignore[attr-defined]

    def expecting_it_elsewhere(path: Path, voxels: object, geometry: object, *rest: object) -> None:
        compare(path, voxels, PHANTOM.geometry.flipped((axis,)), *rest)

    monkeypatch.setattr(f"{write.__module__}._read_back", expecting_it_elsewhere)

    with pytest.raises(SegWriteError, match="place in the patient"):
        write(tmp_path / "labels", PHANTOM.labels, PHANTOM.geometry)


# The picture


PICTURE = np.random.default_rng(5).integers(0, 255, (61, 47, 3), dtype=np.uint8)


def test_preview_holds_the_picture_in_the_study_and_conforms(tmp_path: Path) -> None:
    written = write_preview(tmp_path / "preview.dcm", PICTURE, PHANTOM.geometry, sources_of(PHANTOM), IDENTITY)

    np.testing.assert_array_equal(pydicom.dcmread(tmp_path / "preview.dcm").pixel_array, PICTURE)
    assert written.StudyInstanceUID == PHANTOM.study_uid
    assert (written.BurnedInAnnotation, list(written.ImageType)) == ("NO", ["DERIVED", "SECONDARY"])
    assert "FrameOfReferenceUID" not in written
    report = conformance(tmp_path / "preview.dcm")
    assert not report.errors
    assert not report.warnings


def test_writing_a_preview_again_gives_the_same_bytes(tmp_path: Path) -> None:
    for name in ("first.dcm", "second.dcm"):
        write_preview(tmp_path / name, PICTURE, PHANTOM.geometry, sources_of(PHANTOM), IDENTITY)

    assert (tmp_path / "first.dcm").read_bytes() == (tmp_path / "second.dcm").read_bytes()


# The uncertainty as a segmentation


@pytest.mark.parametrize("orientation", [PHANTOM.orientation, OBLIQUE])
def test_uncertainty_segmentation_holds_the_uncertainty_within_half_a_step(
    tmp_path: Path, orientation: tuple[float, float, float, float, float, float]
) -> None:
    phantom = CtPhantom(orientation=orientation)
    segmentation, sources = segmentation_of(phantom), sources_of(phantom)

    written = write_uncertainty_seg(tmp_path / "seg.dcm", segmentation, sources, IDENTITY)

    assert (written.SegmentationType, written.SegmentationFractionalType) == ("FRACTIONAL", "PROBABILITY")
    frames = frames_of(tmp_path / "seg.dcm", sources)
    assert {frame.segment for frame in frames} == {1}
    for frame in frames:
        # The uncertainty is rounded to 16 bits before.
        difference = np.abs(frame.pixels / 255 - segmentation.uncertainty[frame.z])
        assert difference.max() <= 1 / 510 + 1 / 131070 + 1e-6


def test_uncertainty_segmentation_conforms_but_for_the_private_code(tmp_path: Path) -> None:
    write_uncertainty_seg(tmp_path / "seg.dcm", segmentation_of(PHANTOM), sources_of(PHANTOM), IDENTITY)

    report = conformance(tmp_path / "seg.dcm")

    assert not report.errors
    assert report.warnings == Counter({PRIVATE_CODE: 2})


@pytest.mark.parametrize(
    ("encoding", "syntax"),
    [
        (SegEncoding("binary"), RLELossless),
        (SegEncoding("labelmap"), RLELossless),
        (SegEncoding("labelmap", "jpeg-ls"), JPEGLSLossless),
    ],
)
def test_uncertainty_segmentation_is_compressed_like_the_segmentation_where_that_can_be(
    tmp_path: Path, encoding: SegEncoding, syntax: str
) -> None:
    written = write_uncertainty_seg(
        tmp_path / "seg.dcm", segmentation_of(PHANTOM), sources_of(PHANTOM), IDENTITY, encoding
    )

    assert written.file_meta.TransferSyntaxUID == syntax


def test_no_patient_data_but_those_of_the_study_are_in_the_picture(tmp_path: Path) -> None:
    write_preview(tmp_path / "preview.dcm", PICTURE, PHANTOM.geometry, sources_of(PHANTOM), IDENTITY)

    dataset = pydicom.dcmread(tmp_path / "preview.dcm")
    described = " ".join(str(dataset.get(key, "")) for key in ("SeriesDescription", "DerivationDescription"))
    assert not [canary for canary in PHI_CANARIES if canary in described.lower()]
