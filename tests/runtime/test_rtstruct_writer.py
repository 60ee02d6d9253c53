"""The RT Structure Set: contours that others fill to the same voxels at the same place, and what it says of itself."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pydicom
import pytest
from matplotlib.path import Path as Polygon
from pydicom.dataset import Dataset, FileDataset
from pydicom.uid import ImplicitVRLittleEndian

from tests.phantoms import OBLIQUE, CtPhantom, all_orientations
from tests.results import (
    CLASSES,
    IDENTITY,
    conformance,
    nothing_found,
    segmentation_of,
    segmentation_on,
    sources_of,
)
from ucseg_runtime.dicom.rtstruct_writer import write_rtstruct
from ucseg_runtime.errors import SegWriteError
from ucseg_training.data.rtstruct import labels_from_rtstruct
from ucseg_training.data.source import SourceImage

Labels = npt.NDArray[np.uint8]
PHANTOMS = {
    "axial": CtPhantom(),
    "numbered downwards": CtPhantom(flip=True),
    "oblique": CtPhantom(orientation=OBLIQUE),
    "sagittal": CtPhantom(orientation=(0.0, 1.0, 0.0, 0.0, 0.0, -1.0)),
}


@pytest.fixture(params=PHANTOMS.values(), ids=PHANTOMS.keys())
def phantom(request: pytest.FixtureRequest) -> CtPhantom:
    chosen: CtPhantom = request.param
    return chosen


def with_holes(phantom: CtPhantom) -> Labels:
    """The phantom's organs, the spine hollow and with an island inside."""
    labels = phantom.labels
    z, y, x = (round(float(value)) for value in np.argwhere(labels == 3).mean(axis=0))
    labels[:, y - 1 : y + 2, x - 2 : x + 3] = 0
    labels[z, y, x] = 3
    return labels


def written(folder: Path, phantom: CtPhantom, labels: Labels | None = None) -> FileDataset:
    segmentation = segmentation_on(phantom.geometry, phantom.labels if labels is None else labels)
    return write_rtstruct(folder / "structures.dcm", segmentation, sources_of(phantom), IDENTITY)


def labels_by_matplotlib(path: Path, phantom: CtPhantom) -> Labels:
    """Labels at the centres of the source voxels, by matplotlib and the attributes of the source images alone."""
    structures = pydicom.dcmread(path)
    sources = {source.SOPInstanceUID: (z, source) for z, source in enumerate(sources_of(phantom))}
    labels = np.zeros(phantom.shape, dtype=np.uint8)
    y, x = (grid.ravel() for grid in np.mgrid[: phantom.shape[1], : phantom.shape[2]])
    for region in structures.ROIContourSequence:
        for contour in region.get("ContourSequence", ()):
            z, source = sources[contour.ContourImageSequence[0].ReferencedSOPInstanceUID]
            row, column = np.reshape(source.ImageOrientationPatient, (2, 3)).astype(float)
            dy, dx = (float(value) for value in source.PixelSpacing)
            centres = np.array(source.ImagePositionPatient, float) + np.outer(x * dx, row) + np.outer(y * dy, column)
            points = np.array(contour.ContourData, float).reshape(-1, 3)
            assert len(points) == contour.NumberOfContourPoints
            assert np.abs((points - centres[0]) @ np.cross(row, column)).max() < 1e-3, "it lies on its image"
            # In the plane of the image any two directions will do.
            inside = Polygon(points @ np.stack([row, column]).T).contains_points(centres @ np.stack([row, column]).T)
            labels[z].ravel()[inside] = region.ReferencedROINumber
    return labels


def test_matplotlib_fills_the_contours_to_the_label_map(tmp_path: Path, phantom: CtPhantom) -> None:
    labels = with_holes(phantom)

    written(tmp_path, phantom, labels)

    np.testing.assert_array_equal(labels_by_matplotlib(tmp_path / "structures.dcm", phantom), labels)


def test_the_reader_of_the_training_finds_the_label_map(tmp_path: Path, phantom: CtPhantom) -> None:
    labels = with_holes(phantom)

    structures = written(tmp_path, phantom, labels)

    image = SourceImage(phantom.hu.astype(np.float32)[None], phantom.geometry, phantom.frame_of_reference_uid)
    found = labels_from_rtstruct(structures, image, {item.name: item.label for item in CLASSES})
    np.testing.assert_array_equal(found, labels)


def test_markers_keep_their_place_in_the_patient_in_all_orientations(tmp_path: Path) -> None:
    for phantom in all_orientations():
        labels = np.zeros(phantom.shape, dtype=np.uint8)
        for label, index in enumerate(phantom.markers, start=1):
            labels[index] = label

        structures = written(tmp_path, phantom, labels)

        for region, index in zip(structures.ROIContourSequence, phantom.markers, strict=False):
            (contour,) = region.ContourSequence
            centre = np.array(contour.ContourData, float).reshape(-1, 3).mean(axis=0)
            np.testing.assert_allclose(centre, phantom.geometry.lps_from_index(index), atol=1e-3)


@pytest.mark.long
def test_longer_contours_than_explicit_representations_allow_are_read_back(tmp_path: Path) -> None:
    phantom = CtPhantom(shape=(2, 160, 160))
    labels = np.zeros(phantom.shape, dtype=np.uint8)
    labels[0, 2:-2, 2:-2] = 1
    labels[0, 3:-3:2, 3:-3] = 0  # a hole in every second row
    labels[0, 3:-3:2, 4:-3:4] = 1

    structures = written(tmp_path, phantom, labels)

    assert len(structures.ROIContourSequence[0].ContourSequence[0].get_item("ContourData").value) > 2**16
    assert structures.file_meta.TransferSyntaxUID == ImplicitVRLittleEndian
    np.testing.assert_array_equal(labels_by_matplotlib(tmp_path / "structures.dcm", phantom), labels)


def test_every_class_is_a_region_with_codes_colour_and_algorithm_also_when_it_was_not_found(tmp_path: Path) -> None:
    structures = written(tmp_path, CtPhantom())

    regions = zip(
        structures.StructureSetROISequence,
        structures.ROIContourSequence,
        structures.RTROIObservationsSequence,
        CLASSES,
        strict=True,
    )
    for region, contours, observation, item in regions:
        assert (region.ROINumber, region.ROIName) == (item.label, item.name)
        assert region.ROIGenerationAlgorithm == "AUTOMATIC"
        algorithm = region.ROIDerivationAlgorithmIdentificationSequence[0]
        assert IDENTITY.model_digest in algorithm.AlgorithmParameters
        assert contours.ROIDisplayColor == list(item.colour_rgb)
        assert observation.RTROIIdentificationCodeSequence[0].CodeValue == item.type.value
    lung = structures.RTROIObservationsSequence[3].RTROIIdentificationCodeSequence[0]
    assert lung.SegmentedPropertyTypeModifierCodeSequence[0].CodeMeaning == "Left"
    assert "ContourSequence" not in structures.ROIContourSequence[-1]


def test_every_source_instance_is_referenced_in_the_frame_of_reference_of_the_source(tmp_path: Path) -> None:
    phantom = CtPhantom()

    structures = written(tmp_path, phantom)

    (frame,) = structures.ReferencedFrameOfReferenceSequence
    (study,) = frame.RTReferencedStudySequence
    (series,) = study.RTReferencedSeriesSequence
    assert frame.FrameOfReferenceUID == phantom.frame_of_reference_uid
    assert series.SeriesInstanceUID == phantom.series_uid
    referenced = [item.ReferencedSOPInstanceUID for item in series.ContourImageSequence]
    assert referenced == [phantom.sop_uid(index) for index in range(phantom.shape[0])]


def test_writing_again_gives_the_same_bytes_with_the_dates_of_the_study(tmp_path: Path) -> None:
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        structures = written(tmp_path / name, CtPhantom())

    first, second = ((tmp_path / name / "structures.dcm").read_bytes() for name in ("first", "second"))
    assert first == second
    assert (structures.StructureSetDate, structures.StructureSetTime) == ("20200102", "101500")
    assert (structures.InstanceCreationDate, structures.StudyDate) == ("20200102", "20200102")


def test_dciodvfy_finds_neither_errors_nor_warnings(tmp_path: Path, phantom: CtPhantom) -> None:
    written(tmp_path, phantom)

    report = conformance(tmp_path / "structures.dcm")

    assert not report.errors
    assert not report.warnings


def test_dciodvfy_finds_nothing_in_a_result_without_voxels(tmp_path: Path) -> None:
    phantom = CtPhantom()
    write_rtstruct(tmp_path / "structures.dcm", nothing_found(phantom), sources_of(phantom), IDENTITY)

    report = conformance(tmp_path / "structures.dcm")

    assert not report.errors
    assert not report.warnings


def test_patient_attributes_that_the_source_lacks_are_there_and_empty(tmp_path: Path) -> None:
    phantom = CtPhantom()
    sources = sources_of(phantom)
    for source in sources:
        for keyword in ("PatientSex", "AccessionNumber", "StudyID", "ReferringPhysicianName"):
            delattr(source, keyword)

    write_rtstruct(tmp_path / "structures.dcm", segmentation_of(phantom), sources, IDENTITY)

    assert not conformance(tmp_path / "structures.dcm").errors


# The check after writing


def _moved(dataset: Dataset) -> None:
    contour = dataset.ROIContourSequence[0].ContourSequence[0]
    points = np.array(contour.ContourData, float).reshape(-1, 3)
    contour.ContourData = [f"{value:.3f}" for value in (points + (0.6, 0.0, 0.0)).ravel()]


def _mirrored(dataset: Dataset) -> None:
    for region in dataset.ROIContourSequence:
        for contour in region.get("ContourSequence", ()):
            points = np.array(contour.ContourData, float).reshape(-1, 3)
            contour.ContourData = [f"{value:.3f}" for value in (points * (-1.0, 1.0, 1.0)).ravel()]


def _on_the_next_image(dataset: Dataset) -> None:
    first, *_, last = dataset.ROIContourSequence[2].ContourSequence
    first.ContourImageSequence = last.ContourImageSequence


def _one_contour_missing(dataset: Dataset) -> None:
    del dataset.ROIContourSequence[0].ContourSequence[0]


def _one_region_missing(dataset: Dataset) -> None:
    del dataset.ROIContourSequence[0]


def _of_another_frame_of_reference(dataset: Dataset) -> None:
    dataset.ReferencedFrameOfReferenceSequence[0].FrameOfReferenceUID = "2.25.1"


@pytest.mark.parametrize(
    "damage",
    [_moved, _mirrored, _on_the_next_image, _one_contour_missing, _one_region_missing, _of_another_frame_of_reference],
)
def test_what_differs_on_disk_is_caught_by_reading_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: Callable[[Dataset], None]
) -> None:
    save_as = pydicom.Dataset.save_as

    def save_damaged(self: Dataset, path: Path, **options: bool) -> None:
        damage(self)
        save_as(self, path, **options)

    monkeypatch.setattr(pydicom.Dataset, "save_as", save_damaged)

    with pytest.raises(SegWriteError, match="read back"):
        written(tmp_path, replace(CtPhantom(), orientation=OBLIQUE))
