"""The DICOM Parametric Map: uncertainty on the source frames, within its rounding."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.config import IGNORE
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset

from tests.phantoms import OBLIQUE, CtPhantom
from tests.results import IDENTITY, conformance, frames_of, segmentation_of, sources_of
from ucseg_runtime.dicom import pmap_writer
from ucseg_runtime.dicom.pmap_writer import write_pmap
from ucseg_runtime.errors import SegWriteError
from ucseg_runtime.segmentation import ready_to_write, stored_uncertainty

PHANTOMS = {
    "axial": CtPhantom(),
    "numbered downwards": CtPhantom(flip=True),
    "oblique": CtPhantom(orientation=OBLIQUE),
    "odd number of pixels": CtPhantom(shape=(5, 21, 23)),
}
HALF_A_STEP = 0.5 / 65535
PRIVATE_CODE = "Unrecognized defined term <99UCSEG> for value 1 of attribute <Coding Scheme Designator>"
"""No public scheme has a code for this quantity, and dciodvfy cannot know a private one."""


@pytest.fixture(params=PHANTOMS.values(), ids=PHANTOMS.keys())
def phantom(request: pytest.FixtureRequest) -> CtPhantom:
    chosen: CtPhantom = request.param
    return chosen


def test_stored_values_with_slope_give_the_uncertainty_within_half_a_step(tmp_path: Path, phantom: CtPhantom) -> None:
    segmentation, sources = segmentation_of(phantom), sources_of(phantom)

    written = write_pmap(tmp_path / "pm.dcm", segmentation, sources, IDENTITY)

    mapping = written.SharedFunctionalGroupsSequence[0].RealWorldValueMappingSequence[0]
    found = np.full(phantom.shape, np.nan)
    for frame in frames_of(tmp_path / "pm.dcm", sources):
        found[frame.z] = frame.pixels * mapping.RealWorldValueSlope + mapping.RealWorldValueIntercept
    # float32 rounds the product by up to 2^-24 of it.
    assert np.abs(found - segmentation.uncertainty).max() <= HALF_A_STEP + 1e-7


def test_frames_lie_where_their_source_images_lie(tmp_path: Path, phantom: CtPhantom) -> None:
    sources = sources_of(phantom)

    written = write_pmap(tmp_path / "pm.dcm", segmentation_of(phantom), sources, IDENTITY)

    frames = frames_of(tmp_path / "pm.dcm", sources)
    assert sorted(frame.z for frame in frames) == list(range(phantom.shape[0]))
    for frame in frames:
        assert frame.position_mm == pytest.approx([float(value) for value in sources[frame.z].ImagePositionPatient])
    assert written.FrameOfReferenceUID == phantom.frame_of_reference_uid


def test_values_are_16_bit_without_unit_and_named_as_evidential_uncertainty(tmp_path: Path) -> None:
    phantom = CtPhantom()

    written = write_pmap(tmp_path / "pm.dcm", segmentation_of(phantom), sources_of(phantom), IDENTITY)

    mapping = written.SharedFunctionalGroupsSequence[0].RealWorldValueMappingSequence[0]
    assert (written.BitsAllocated, written.PixelRepresentation) == (16, 0)
    assert mapping.RealWorldValueSlope == pytest.approx(1 / 65535, rel=1e-12)
    assert (mapping.RealWorldValueFirstValueMapped, mapping.RealWorldValueLastValueMapped) == (0, 65535)
    assert mapping.MeasurementUnitsCodeSequence[0].CodeValue == "1"
    quantity = mapping.QuantityDefinitionSequence[0].ConceptCodeSequence[0]
    assert (quantity.CodingSchemeDesignator, quantity.CodeMeaning) == ("99UCSEG", "Evidential uncertainty")
    assert written.CodingSchemeIdentificationSequence[0].CodingSchemeDesignator == "99UCSEG"
    assert written.ContentQualification == "RESEARCH"


def test_times_and_patient_are_those_of_the_source(tmp_path: Path) -> None:
    phantom = CtPhantom()
    source = sources_of(phantom)[0]

    written = write_pmap(tmp_path / "pm.dcm", segmentation_of(phantom), sources_of(phantom), IDENTITY)

    assert (written.ContentDate, written.InstanceCreationDate) == ("20200102", "20200102")
    assert (written.ContentTime, written.InstanceCreationTime) == ("101500", "101500")
    for keyword in ("PatientName", "PatientID", "StudyInstanceUID", "StudyDescription"):
        assert written[keyword].value == source[keyword].value


@pytest.mark.parametrize("value", [np.nan, np.inf, -0.001, 1.001], ids=["nan", "infinite", "negative", "above one"])
def test_values_that_are_no_uncertainty_are_refused(value: float) -> None:
    uncertainty = np.full((3, 4, 5), 0.5, dtype=np.float32)
    uncertainty[2, 1, 3] = value

    with pytest.raises(SegWriteError, match="slice 3 of 3") as caught:
        stored_uncertainty(uncertainty)

    assert caught.value.code == "UCSEG-E151"


def test_both_ends_of_the_range_are_stored_exactly() -> None:
    uncertainty = np.array([[[0.0, 1.0]]], dtype=np.float32)

    np.testing.assert_array_equal(stored_uncertainty(uncertainty), [[[0, 65535]]])


def test_uncertainty_that_is_ready_to_write_gives_the_same_file(tmp_path: Path, phantom: CtPhantom) -> None:
    segmentation, sources = segmentation_of(phantom), sources_of(phantom)
    write_pmap(tmp_path / "float.dcm", segmentation, sources, IDENTITY)
    ready = ready_to_write(segmentation)
    assert ready.uncertainty.dtype == np.uint16
    assert stored_uncertainty(ready.uncertainty) is ready.uncertainty
    write_pmap(tmp_path / "stored.dcm", ready, sources, IDENTITY)
    assert (tmp_path / "stored.dcm").read_bytes() == (tmp_path / "float.dcm").read_bytes()


def test_file_is_the_one_that_highdicom_makes_of_all_frames_at_once(
    tmp_path: Path, phantom: CtPhantom, monkeypatch: pytest.MonkeyPatch
) -> None:
    segmentation, sources = segmentation_of(phantom), sources_of(phantom)
    write_pmap(tmp_path / "streamed.dcm", segmentation, sources, IDENTITY)
    monkeypatch.setattr(pmap_writer, "_parametric_map", pmap_writer._description)
    write_pmap(tmp_path / "at once.dcm", segmentation, sources, IDENTITY)
    assert (tmp_path / "streamed.dcm").read_bytes() == (tmp_path / "at once.dcm").read_bytes()


def test_nothing_is_written_when_the_uncertainty_is_refused(tmp_path: Path) -> None:
    phantom = CtPhantom()
    segmentation = replace(segmentation_of(phantom), uncertainty=np.full(phantom.shape, np.nan, dtype=np.float32))

    with pytest.raises(SegWriteError):
        write_pmap(tmp_path / "pm.dcm", segmentation, sources_of(phantom), IDENTITY)

    assert not list(tmp_path.iterdir())


def test_headers_in_the_wrong_order_are_caught_by_reading_back(tmp_path: Path) -> None:
    phantom = CtPhantom()

    with pytest.raises(SegWriteError, match="half a voxel|source image"):
        write_pmap(tmp_path / "pm.dcm", segmentation_of(phantom), sources_of(phantom)[::-1], IDENTITY)


def test_dciodvfy_finds_no_error_and_warns_only_of_the_private_code(tmp_path: Path, phantom: CtPhantom) -> None:
    write_pmap(tmp_path / "pm.dcm", segmentation_of(phantom), sources_of(phantom), IDENTITY)

    report = conformance(tmp_path / "pm.dcm")

    assert not report.errors
    assert report.warnings == Counter({PRIVATE_CODE: 2})


@pytest.mark.parametrize("body_part", [None, "KNEE", "LIVER", "not a code"])
def test_dciodvfy_finds_no_error_whatever_the_source_says_of_the_body_part(
    tmp_path: Path, body_part: str | None
) -> None:
    phantom = CtPhantom()
    sources = sources_of(phantom)
    for source in sources:
        source.add(DataElement("BodyPartExamined", "CS", body_part, validation_mode=IGNORE))

    write_pmap(tmp_path / "pm.dcm", segmentation_of(phantom), sources, IDENTITY)

    assert not conformance(tmp_path / "pm.dcm").errors


def test_the_returned_object_is_the_written_one_without_pixels(tmp_path: Path) -> None:
    phantom = CtPhantom()

    written = write_pmap(tmp_path / "pm.dcm", segmentation_of(phantom), sources_of(phantom), IDENTITY)

    assert "PixelData" not in written
    assert written.SOPInstanceUID == pydicom.dcmread(tmp_path / "pm.dcm").SOPInstanceUID


def _other_slope(dataset: Dataset) -> None:
    dataset.SharedFunctionalGroupsSequence[0].RealWorldValueMappingSequence[0].RealWorldValueSlope = 1.0


def _last_frame_dropped(dataset: Dataset) -> None:
    dataset.NumberOfFrames -= 1
    dataset.PerFrameFunctionalGroupsSequence = list(dataset.PerFrameFunctionalGroupsSequence)[:-1]
    dataset.PixelData = dataset.PixelData.read()[: -2 * dataset.Rows * dataset.Columns]


def _columns_flipped(dataset: Dataset) -> None:
    shared = dataset.SharedFunctionalGroupsSequence[0].PlaneOrientationSequence[0]
    cosines = [float(value) for value in shared.ImageOrientationPatient]
    shared.ImageOrientationPatient = [*cosines[:3], *(-value for value in cosines[3:])]


@pytest.mark.parametrize("damage", [_other_slope, _last_frame_dropped, _columns_flipped])
def test_what_differs_on_disk_is_caught_by_reading_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: Callable[[Dataset], None]
) -> None:
    save_as = pydicom.Dataset.save_as

    def save_damaged(self: Dataset, path: Path, **options: bool) -> None:
        damage(self)
        save_as(self, path, **options)

    monkeypatch.setattr(pydicom.Dataset, "save_as", save_damaged)
    phantom = CtPhantom()

    with pytest.raises(SegWriteError, match="read back"):
        write_pmap(tmp_path / "pm.dcm", segmentation_of(phantom), sources_of(phantom), IDENTITY)
