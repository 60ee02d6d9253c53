"""The DICOM Segmentation: what it holds, where it lies, and that others read the same."""

from __future__ import annotations

import logging
import subprocess
from collections.abc import Callable
from dataclasses import replace
from datetime import date
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pydicom
import pytest
from pydicom.datadict import dictionary_VR
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset, FileDataset
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian, RLELossless

from tests.phantoms import OBLIQUE, PATIENT_ID, PATIENT_NAME, PHI_CANARIES, CtPhantom, all_orientations, write_ct_series
from tests.results import (
    CLASSES,
    IDENTITY,
    conformance,
    frames_of,
    labels_from_frames,
    lps_of_pixels,
    nothing_found,
    segmentation_of,
    segmentation_on,
    sources_of,
)
from ucseg_runtime.config import SEG_COMPRESSIONS, Compression, SegEncoding, SegType
from ucseg_runtime.dicom import derived_object, seg_writer
from ucseg_runtime.dicom.reader import read_volume, source_headers
from ucseg_runtime.dicom.seg_writer import write_seg
from ucseg_runtime.dicom.series import scan
from ucseg_runtime.errors import SegWriteError
from ucseg_runtime.geometry import VolumeGeometry
from ucseg_runtime.segmentation import Segmentation

SEG_TYPES: tuple[SegType, ...] = ("binary", "labelmap", "fractional")
PHANTOMS = {
    "axial": CtPhantom(),
    "numbered downwards": CtPhantom(flip=True),
    "oblique": CtPhantom(orientation=OBLIQUE),
    "sagittal": CtPhantom(orientation=(0.0, 1.0, 0.0, 0.0, 0.0, -1.0)),
    "frames of no whole number of bytes": CtPhantom(shape=(5, 21, 23)),
}

needs_dcmqi = pytest.mark.skipif(
    find_spec("dcmqi") is None or find_spec("SimpleITK") is None, reason="needs the packages dcmqi and SimpleITK"
)


@pytest.fixture(params=PHANTOMS.values(), ids=PHANTOMS.keys())
def phantom(request: pytest.FixtureRequest) -> CtPhantom:
    chosen: CtPhantom = request.param
    return chosen


@pytest.fixture(params=SEG_TYPES)
def seg_type(request: pytest.FixtureRequest) -> SegType:
    chosen: SegType = request.param
    return chosen


def write_phantom(folder: Path, phantom: CtPhantom, seg_type: SegType) -> FileDataset:
    return write_seg(folder / "seg.dcm", segmentation_of(phantom), sources_of(phantom), IDENTITY, SegEncoding(seg_type))


# What the frames hold


@pytest.mark.parametrize("kind", ["binary", "labelmap"])
def test_frames_hold_the_label_map_voxel_for_voxel(tmp_path: Path, phantom: CtPhantom, kind: SegType) -> None:
    sources = sources_of(phantom)

    write_seg(tmp_path / "seg.dcm", segmentation_of(phantom), sources, IDENTITY, SegEncoding(kind))

    frames = frames_of(tmp_path / "seg.dcm", sources)
    np.testing.assert_array_equal(labels_from_frames(frames, phantom.shape), phantom.labels)


def test_fractional_frames_hold_the_probabilities_voxel_for_voxel(tmp_path: Path, phantom: CtPhantom) -> None:
    segmentation, sources = segmentation_of(phantom), sources_of(phantom)
    assert segmentation.probabilities is not None

    write_seg(tmp_path / "seg.dcm", segmentation, sources, IDENTITY, SegEncoding("fractional"))

    found = np.zeros_like(segmentation.probabilities)
    for frame in frames_of(tmp_path / "seg.dcm", sources):
        found[frame.segment - 1, frame.z] = frame.pixels
    np.testing.assert_array_equal(found, segmentation.probabilities)


def test_frames_repeat_position_and_orientation_of_their_source_image(
    tmp_path: Path, phantom: CtPhantom, seg_type: SegType
) -> None:
    sources = sources_of(phantom)

    written = write_seg(tmp_path / "seg.dcm", segmentation_of(phantom), sources, IDENTITY, SegEncoding(seg_type))

    for frame in frames_of(tmp_path / "seg.dcm", sources):
        assert frame.position_mm == pytest.approx([float(value) for value in sources[frame.z].ImagePositionPatient])
    shared = written.SharedFunctionalGroupsSequence[0]
    cosines = shared.PlaneOrientationSequence[0].ImageOrientationPatient
    assert cosines == pytest.approx([float(value) for value in sources[0].ImageOrientationPatient])
    assert written.FrameOfReferenceUID == phantom.frame_of_reference_uid


def test_markers_keep_their_place_in_the_patient_in_all_orientations(tmp_path: Path) -> None:
    for number, phantom in enumerate(all_orientations()):
        labels = np.zeros(phantom.shape, dtype=np.uint8)
        for label, index in enumerate(phantom.markers, start=1):
            labels[index] = label
        sources, path = sources_of(phantom), tmp_path / f"{number}.dcm"

        write_seg(path, segmentation_on(phantom.geometry, labels), sources, IDENTITY)

        frames = frames_of(path, sources)
        for label, index in enumerate(phantom.markers, start=1):
            (frame,) = [frame for frame in frames if frame.segment == label]
            points = lps_of_pixels(path, frame, frame.pixels > 0)
            # Positions have ten significant digits in the headers.
            np.testing.assert_allclose(points, [phantom.geometry.lps_from_index(index)], atol=1e-6)


def test_frames_without_voxels_are_left_out(tmp_path: Path) -> None:
    phantom = CtPhantom()
    occupied = sum(len(np.unique(plane[plane > 0])) for plane in phantom.labels)

    written = write_seg(tmp_path / "seg.dcm", segmentation_of(phantom), sources_of(phantom), IDENTITY)

    assert written.NumberOfFrames == occupied < phantom.shape[0] * len(CLASSES)


@pytest.mark.parametrize(("kind", "frames"), [("binary", 50), ("labelmap", 10), ("fractional", 50)])
def test_frames_without_voxels_are_kept_where_that_is_asked_for(tmp_path: Path, kind: SegType, frames: int) -> None:
    phantom = CtPhantom()
    sources = sources_of(phantom)

    written = write_seg(
        tmp_path / "seg.dcm", segmentation_of(phantom), sources, IDENTITY, SegEncoding(kind, empty_frames="keep")
    )

    assert written.NumberOfFrames == frames
    assert len(frames_of(tmp_path / "seg.dcm", sources)) == frames


def test_a_model_of_one_class_has_fractions_too(tmp_path: Path) -> None:
    """Of one segment highdicom writes the number into the shared groups."""
    phantom = CtPhantom()
    all_classes, sources = segmentation_of(phantom), sources_of(phantom)
    assert all_classes.probabilities is not None
    labels = np.where(phantom.labels == 1, 1, 0).astype(np.uint8)
    segmentation = replace(
        all_classes, label_map=labels, classes=CLASSES[:1], probabilities=all_classes.probabilities[:1]
    )

    for kind in SEG_TYPES:
        write_seg(tmp_path / "seg.dcm", segmentation, sources, IDENTITY, SegEncoding(kind))

        for frame in frames_of(tmp_path / "seg.dcm", sources):
            np.testing.assert_array_equal(frame.pixels > 0, labels[frame.z] > 0)


@pytest.mark.parametrize(
    ("kind", "compression"), [(kind, name) for kind, names in SEG_COMPRESSIONS.items() for name in names]
)
def test_every_compression_holds_the_same_voxels_and_conforms(
    tmp_path: Path, phantom: CtPhantom, kind: SegType, compression: Compression
) -> None:
    segmentation, sources, path = segmentation_of(phantom), sources_of(phantom), tmp_path / "seg.dcm"
    assert segmentation.probabilities is not None

    if compression == "jpeg2000" and min(phantom.shape[1:]) < 32:
        with pytest.raises(SegWriteError, match="21 x 23 pixels cannot be compressed with JPEG 2000"):
            write_seg(path, segmentation, sources, IDENTITY, SegEncoding(kind, compression))
        return

    write_seg(path, segmentation, sources, IDENTITY, SegEncoding(kind, compression))

    frames = frames_of(path, sources)
    if kind == "fractional":
        for frame in frames:
            np.testing.assert_array_equal(frame.pixels, segmentation.probabilities[frame.segment - 1, frame.z])
    else:
        np.testing.assert_array_equal(labels_from_frames(frames, phantom.shape), phantom.labels)
    report = conformance(path)
    assert not report.errors
    assert not report.warnings


@pytest.mark.parametrize(("kind", "frames"), [("binary", 50), ("labelmap", 10), ("fractional", 50)])
def test_a_result_without_any_voxel_has_all_frames(tmp_path: Path, kind: SegType, frames: int) -> None:
    phantom = CtPhantom()
    sources = sources_of(phantom)

    written = write_seg(tmp_path / "seg.dcm", nothing_found(phantom), sources, IDENTITY, SegEncoding(kind))

    assert written.NumberOfFrames == frames
    assert not any(frame.pixels.any() for frame in frames_of(tmp_path / "seg.dcm", sources))


def test_headers_from_the_reader_put_every_label_where_the_reader_put_its_voxel(tmp_path: Path) -> None:
    phantom = CtPhantom(flip=True, transfer_syntax=ImplicitVRLittleEndian)
    write_ct_series(tmp_path / "ct", phantom)
    (series,) = scan(tmp_path / "ct").series
    volume, sources = read_volume(series), source_headers(series)
    labels = (volume.voxels > 1000).astype(np.uint8)
    assert labels.sum() == len(phantom.markers)

    write_seg(tmp_path / "seg.dcm", segmentation_on(volume.geometry, labels), sources, IDENTITY)

    frames = frames_of(tmp_path / "seg.dcm", sources)
    points = np.concatenate([lps_of_pixels(tmp_path / "seg.dcm", frame, frame.pixels > 0) for frame in frames])
    expected = [phantom.geometry.lps_from_index(index) for index in phantom.markers]
    np.testing.assert_allclose(points[np.argsort(points[:, 2])], sorted(expected, key=lambda p: p[2]), atol=1e-6)


# What the object says


def test_transfer_syntax_is_native_for_binary_and_rle_for_the_others(tmp_path: Path) -> None:
    phantom = CtPhantom()
    syntaxes = {
        kind: write_phantom(tmp_path, phantom, kind).file_meta.TransferSyntaxUID
        for kind in SEG_TYPES
    }  # fmt: skip

    assert syntaxes == {"binary": ExplicitVRLittleEndian, "labelmap": RLELossless, "fractional": RLELossless}


def test_every_class_is_described_with_its_codes_also_when_it_was_not_found(tmp_path: Path, seg_type: SegType) -> None:
    phantom = CtPhantom()
    assert not (phantom.labels == CLASSES[-1].label).any()

    written = write_phantom(tmp_path, phantom, seg_type)

    for segment, item in zip(written.SegmentSequence, CLASSES, strict=False):
        assert (segment.SegmentNumber, segment.SegmentLabel) == (item.label, item.name)
        assert segment.SegmentedPropertyCategoryCodeSequence[0].CodeValue == item.category.value
        assert segment.SegmentedPropertyTypeCodeSequence[0].CodeValue == item.type.value
        assert segment.TrackingID == item.name
    lung = written.SegmentSequence[3].SegmentedPropertyTypeCodeSequence[0]
    assert lung.SegmentedPropertyTypeModifierCodeSequence[0].CodeMeaning == "Left"


def test_label_n_is_described_by_item_n_of_the_segments(tmp_path: Path) -> None:
    """OHIF takes the colour of a label from the item at its place, so Background may only be the last item."""
    phantom = CtPhantom()

    written = write_phantom(tmp_path, phantom, "labelmap")

    assert [segment.SegmentNumber for segment in written.SegmentSequence] == [1, 2, 3, 4, 5, 0]


def test_recommended_colours_are_those_of_the_manifest(tmp_path: Path) -> None:
    phantom = CtPhantom()

    written = write_seg(tmp_path / "seg.dcm", segmentation_of(phantom), sources_of(phantom), IDENTITY)

    for segment, item in zip(written.SegmentSequence, CLASSES, strict=True):
        assert _rgb_from_dicom_lab(segment.RecommendedDisplayCIELabValue) == pytest.approx(item.colour_rgb, abs=1.5)


def _rgb_from_dicom_lab(value: list[int]) -> list[float]:
    """The sRGB colour 0 … 255 of a DICOM CIELab value as viewers decode it: white point D65, like dcmjs and dcmqi."""
    lightness, a, b = value[0] / 655.35, value[1] / 257.0 - 128.0, value[2] / 257.0 - 128.0
    fy = (lightness + 16.0) / 116.0
    curve = [fy + a / 500.0, fy, fy - b / 200.0]
    xyz = [t**3 if t > 6 / 29 else 3 * (6 / 29) ** 2 * (t - 4 / 29) for t in curve] * np.array([0.95047, 1.0, 1.08883])
    matrix = [[3.2406, -1.5372, -0.4986], [-0.9689, 1.8758, 0.0415], [0.0557, -0.2040, 1.0570]]
    linear = np.clip(np.array(matrix) @ xyz, 0.0, 1.0)
    return list(255.0 * np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055))


def test_algorithm_and_equipment_name_the_model_and_its_digests(tmp_path: Path, seg_type: SegType) -> None:
    phantom = CtPhantom()

    written = write_phantom(tmp_path, phantom, seg_type)

    algorithm = written.SegmentSequence[0].SegmentationAlgorithmIdentificationSequence[0]
    assert (algorithm.AlgorithmName, algorithm.AlgorithmVersion) == ("phantom organs", "1.2.3")
    assert algorithm.AlgorithmFamilyCodeSequence[0].CodeValue == "123110"
    assert IDENTITY.model_digest in algorithm.AlgorithmParameters
    assert IDENTITY.settings_digest in algorithm.AlgorithmParameters
    assert written.DeviceSerialNumber == IDENTITY.model_digest
    assert written.ContentQualification == "RESEARCH"
    assert written.ContributingEquipmentSequence[0].ManufacturerModelName == "phantom"


def test_every_source_instance_is_referenced(tmp_path: Path, seg_type: SegType) -> None:
    phantom = CtPhantom()

    written = write_phantom(tmp_path, phantom, seg_type)

    (series,) = written.ReferencedSeriesSequence
    assert series.SeriesInstanceUID == phantom.series_uid
    referenced = {item.ReferencedSOPInstanceUID for item in series.ReferencedInstanceSequence}
    assert referenced == {phantom.sop_uid(index) for index in range(phantom.shape[0])}


def test_patient_and_study_are_those_of_the_source(tmp_path: Path) -> None:
    phantom = CtPhantom()
    source = sources_of(phantom)[0]

    written = write_seg(tmp_path / "seg.dcm", segmentation_of(phantom), sources_of(phantom), IDENTITY)

    for keyword in ("PatientName", "PatientID", "PatientBirthDate", "PatientSex", "PatientAge", "StudyInstanceUID"):
        assert written[keyword].value == source[keyword].value
    for keyword in ("StudyDate", "StudyTime", "StudyID", "AccessionNumber", "StudyDescription"):
        assert written[keyword].value == source[keyword].value


def test_times_are_those_of_the_study_and_never_of_the_clock(tmp_path: Path) -> None:
    phantom = CtPhantom()

    written = write_seg(tmp_path / "seg.dcm", segmentation_of(phantom), sources_of(phantom), IDENTITY)

    assert (written.ContentDate, written.ContentTime) == ("20200102", "101500")
    assert (written.InstanceCreationDate, written.InstanceCreationTime) == ("20200102", "101500")
    assert date.today().strftime("%Y%m%d").encode() not in (tmp_path / "seg.dcm").read_bytes()


@pytest.mark.parametrize(
    ("edit", "expected"),
    [
        pytest.param({"StudyDate": ""}, ("20200102", "101600"), id="series date instead"),
        pytest.param({"StudyDate": "2020.01.02"}, ("20200102", "101600"), id="old format passed over"),
        pytest.param({"StudyTime": "9:15"}, ("20200102", "000000"), id="unreadable time"),
        pytest.param(
            {"StudyDate": "", "SeriesDate": "", "AcquisitionDate": "20201332", "ContentDate": ""},
            ("19000101", "000000"),
            id="no date at all",
        ),
    ],
)
def test_date_comes_from_the_next_element_that_has_one(
    tmp_path: Path, edit: dict[str, str], expected: tuple[str, str]
) -> None:
    phantom = CtPhantom()
    sources = sources_of(phantom)
    for keyword, value in edit.items():
        _put_unchecked(sources[0], keyword, value)

    written = write_seg(tmp_path / "seg.dcm", segmentation_of(phantom), sources, IDENTITY)

    assert (written.ContentDate, written.ContentTime) == expected


# Headers that are not as they should be


def _put_unchecked(source: Dataset, keyword: str, value: str) -> None:
    source.add(DataElement(keyword, dictionary_VR(keyword), value, validation_mode=pydicom.config.IGNORE))


def _bad_birth_date(source: Dataset) -> None:
    _put_unchecked(source, "PatientBirthDate", "canary 1951")
    _put_unchecked(source, "PatientSex", "canary sex")
    _put_unchecked(source, "PatientName", "canary" * 20)


def _japanese(source: Dataset) -> None:
    source.SpecificCharacterSet = ["", "ISO 2022 IR 87"]
    source.PatientName = "Yamada^Tarou=山田^太郎"


def _without_optional_values(source: Dataset) -> None:
    for keyword in (
        "PatientName",
        "PatientID",
        "PatientSex",
        "StudyID",
        "StudyTime",
        "AccessionNumber",
        "Manufacturer",
    ):
        setattr(source, keyword, None)
    for keyword in ("ReferringPhysicianName", "SliceThickness", "BodyPartExamined", "PositionReferenceIndicator"):
        delattr(source, keyword)


@pytest.mark.parametrize("edit", [_bad_birth_date, _japanese, _without_optional_values])
def test_unusual_patient_attributes_are_copied_unchanged_and_nowhere_else(
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    recwarn: pytest.WarningsRecorder,
    edit: Callable[[Dataset], None],
) -> None:
    caplog.set_level(logging.DEBUG)
    phantom = CtPhantom()
    sources = sources_of(phantom)
    for source in sources:
        edit(source)

    write_seg(tmp_path / "seg.dcm", segmentation_of(phantom), sources, IDENTITY)

    assert not recwarn.list
    assert not any(
        canary in caplog.text.lower() for canary in (*PHI_CANARIES, PATIENT_ID.lower(), PATIENT_NAME.lower())
    )
    with pydicom.config.disable_value_validation():
        written = pydicom.dcmread(tmp_path / "seg.dcm")
        for keyword in ("PatientName", "PatientID", "PatientBirthDate", "PatientSex"):
            assert (written[keyword].value or "") == (sources[0][keyword].value or "")


def test_slices_whose_orientation_differs_in_the_last_digits_are_written(tmp_path: Path) -> None:
    phantom = CtPhantom()
    sources = sources_of(phantom)
    sources[3].ImageOrientationPatient = ["1", "1e-7", "0", "0", "1", "0"]

    write_seg(tmp_path / "seg.dcm", segmentation_of(phantom), sources, IDENTITY)

    frames = frames_of(tmp_path / "seg.dcm", sources)
    np.testing.assert_array_equal(labels_from_frames(frames, phantom.shape), phantom.labels)


def test_too_few_headers_are_refused(tmp_path: Path) -> None:
    phantom = CtPhantom()

    with pytest.raises(SegWriteError, match="9 source headers for 10 slices"):
        write_seg(tmp_path / "seg.dcm", segmentation_of(phantom), sources_of(phantom)[1:], IDENTITY)


def test_headers_of_another_size_are_refused(tmp_path: Path) -> None:
    phantom = CtPhantom()

    with pytest.raises(SegWriteError, match="slice 1 of 10 has 20 x 48 pixels; the label map 40 x 48"):
        write_seg(
            tmp_path / "seg.dcm", segmentation_of(phantom), sources_of(replace(phantom, shape=(10, 20, 48))), IDENTITY
        )


def test_a_label_that_the_model_does_not_have_is_refused(tmp_path: Path) -> None:
    phantom = CtPhantom()
    labels = phantom.labels
    labels[0, 0, 0] = len(CLASSES) + 1

    with pytest.raises(SegWriteError, match="label 6"):
        write_seg(tmp_path / "seg.dcm", segmentation_on(phantom.geometry, labels), sources_of(phantom), IDENTITY)


def test_fractional_without_probabilities_is_refused(tmp_path: Path) -> None:
    phantom = CtPhantom()
    segmentation = replace(segmentation_of(phantom), probabilities=None)

    with pytest.raises(SegWriteError, match="probabilities"):
        write_seg(tmp_path / "seg.dcm", segmentation, sources_of(phantom), IDENTITY, SegEncoding("fractional"))


def test_an_unusable_header_is_refused_without_quoting_it(tmp_path: Path) -> None:
    phantom = CtPhantom()
    sources = sources_of(phantom)
    for source in sources:
        source.PixelSpacing = None

    with pytest.raises(SegWriteError, match="could not be built") as caught:
        write_seg(tmp_path / "seg.dcm", segmentation_of(phantom), sources, IDENTITY)

    assert caught.value.code == "UCSEG-E151"


# The check after writing


def test_headers_in_the_wrong_order_are_caught_by_reading_back(tmp_path: Path, seg_type: SegType) -> None:
    phantom = CtPhantom()

    with pytest.raises(SegWriteError, match="half a voxel|source image"):
        write_seg(
            tmp_path / "seg.dcm", segmentation_of(phantom), sources_of(phantom)[::-1], IDENTITY, SegEncoding(seg_type)
        )


def test_headers_that_lie_elsewhere_are_caught_by_reading_back(tmp_path: Path, seg_type: SegType) -> None:
    phantom = CtPhantom()
    moved = replace(phantom, origin_mm=(-22.9, -110.0, -340.0))

    with pytest.raises(SegWriteError, match="half a voxel"):
        write_seg(tmp_path / "seg.dcm", segmentation_of(phantom), sources_of(moved), IDENTITY, SegEncoding(seg_type))


def test_headers_with_another_spacing_are_caught_by_reading_back(tmp_path: Path, seg_type: SegType) -> None:
    phantom = CtPhantom()
    wider = replace(phantom, spacing_mm=(2.5, 1.25, 1.02))

    with pytest.raises(SegWriteError, match="half a voxel"):
        write_seg(tmp_path / "seg.dcm", segmentation_of(phantom), sources_of(wider), IDENTITY, SegEncoding(seg_type))


def test_pixels_that_changed_on_disk_are_caught_by_reading_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seg_type: SegType
) -> None:
    phantom = CtPhantom()
    save_as = pydicom.Dataset.save_as

    def save_damaged(self: Dataset, path: Path, **options: bool) -> None:
        if seg_type == "binary":
            damaged = bytearray(self.PixelData)
            damaged[len(damaged) // 2] ^= 1
            self.PixelData = bytes(damaged)
        else:
            groups = self.PerFrameFunctionalGroupsSequence
            groups[0].PlanePositionSequence, groups[1].PlanePositionSequence = (
                groups[1].PlanePositionSequence,
                groups[0].PlanePositionSequence,
            )
        save_as(self, path, **options)

    monkeypatch.setattr(pydicom.Dataset, "save_as", save_damaged)

    with pytest.raises(SegWriteError, match="other values|source image"):
        write_phantom(tmp_path, phantom, seg_type)


def _without_last_frame(dataset: Dataset) -> None:
    bytes_per_frame = dataset.Rows * dataset.Columns // 8
    dataset.NumberOfFrames -= 1
    dataset.PerFrameFunctionalGroupsSequence = list(dataset.PerFrameFunctionalGroupsSequence)[:-1]
    dataset.PixelData = dataset.PixelData[:-bytes_per_frame]


def _with_last_frame_twice(dataset: Dataset) -> None:
    bytes_per_frame = dataset.Rows * dataset.Columns // 8
    groups = list(dataset.PerFrameFunctionalGroupsSequence)
    dataset.NumberOfFrames += 1
    dataset.PerFrameFunctionalGroupsSequence = [*groups, groups[-1]]
    dataset.PixelData += dataset.PixelData[-bytes_per_frame:]


@pytest.mark.parametrize(
    ("damage", "message"),
    [(_without_last_frame, "segment 4 was read back with"), (_with_last_frame_twice, "two frames for the same")],
)
def test_missing_and_repeated_frames_are_caught_by_reading_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: Callable[[Dataset], None], message: str
) -> None:
    phantom = CtPhantom()
    save_as = pydicom.Dataset.save_as

    def save_damaged(self: Dataset, path: Path, **options: bool) -> None:
        damage(self)
        save_as(self, path, **options)

    monkeypatch.setattr(pydicom.Dataset, "save_as", save_damaged)

    with pytest.raises(SegWriteError, match=message):
        write_seg(tmp_path / "seg.dcm", segmentation_of(phantom), sources_of(phantom), IDENTITY)


def _orientation_flipped(dataset: Dataset) -> None:
    shared = dataset.SharedFunctionalGroupsSequence[0].PlaneOrientationSequence[0]
    cosines = [float(value) for value in shared.ImageOrientationPatient]
    shared.ImageOrientationPatient = [*cosines[:3], *(-value for value in cosines[3:])]


def _orientation_transposed(dataset: Dataset) -> None:
    shared = dataset.SharedFunctionalGroupsSequence[0].PlaneOrientationSequence[0]
    cosines = list(shared.ImageOrientationPatient)
    shared.ImageOrientationPatient = [*cosines[3:], *cosines[:3]]


def _spacings_swapped(dataset: Dataset) -> None:
    measures = dataset.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0]
    measures.PixelSpacing = list(measures.PixelSpacing)[::-1]


def _spacing_between_slices_of_another(dataset: Dataset) -> None:
    dataset.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0].SpacingBetweenSlices = 3.0


def _one_frame_shifted(dataset: Dataset) -> None:
    """By a hundredth of a voxel."""
    position = dataset.PerFrameFunctionalGroupsSequence[2].PlanePositionSequence[0]
    x, y, z = (float(value) for value in position.ImagePositionPatient)
    position.ImagePositionPatient = [x + 0.01, y, z]


def _all_frames_shifted(dataset: Dataset) -> None:
    for group in dataset.PerFrameFunctionalGroupsSequence:
        position = group.PlanePositionSequence[0]
        x, y, z = (float(value) for value in position.ImagePositionPatient)
        position.ImagePositionPatient = [x, y, z + 2.5]


def _another_frame_of_reference(dataset: Dataset) -> None:
    dataset.FrameOfReferenceUID = "2.25.1"


def _another_segment_number(dataset: Dataset) -> None:
    dataset.SegmentSequence[0].SegmentNumber = 9


def _rows_and_columns_swapped(dataset: Dataset) -> None:
    dataset.Rows, dataset.Columns = dataset.Columns, dataset.Rows


@pytest.mark.parametrize(
    "damage",
    [
        _orientation_flipped,
        _orientation_transposed,
        _spacings_swapped,
        _spacing_between_slices_of_another,
        _one_frame_shifted,
        _all_frames_shifted,
        _another_frame_of_reference,
        _another_segment_number,
        _rows_and_columns_swapped,
    ],
)
def test_one_wrong_attribute_on_disk_is_caught_by_reading_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: Callable[[Dataset], None], seg_type: SegType
) -> None:
    save_as = pydicom.Dataset.save_as

    def save_damaged(self: Dataset, path: Path, **options: bool) -> None:
        damage(self)
        save_as(self, path, **options)

    monkeypatch.setattr(pydicom.Dataset, "save_as", save_damaged)

    with pytest.raises(SegWriteError, match="read back"):
        write_phantom(tmp_path, CtPhantom(), seg_type)


def test_another_range_of_fractions_is_caught_by_reading_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_as = pydicom.Dataset.save_as

    def save_damaged(self: Dataset, path: Path, **options: bool) -> None:
        self.MaximumFractionalValue = 100
        save_as(self, path, **options)

    monkeypatch.setattr(pydicom.Dataset, "save_as", save_damaged)

    with pytest.raises(SegWriteError, match="range of fractions"):
        write_phantom(tmp_path, CtPhantom(), "fractional")


@pytest.mark.parametrize("left", [100, 140, 3000, -100])
def test_a_file_that_was_cut_off_is_caught_by_reading_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seg_type: SegType, left: int
) -> None:
    phantom = CtPhantom()

    def save_cut_off(dataset: Dataset, path: Path) -> None:
        derived_object.save(dataset, path)
        path.write_bytes(path.read_bytes()[:left])

    monkeypatch.setattr(seg_writer, "save", save_cut_off)

    with pytest.raises(SegWriteError, match="read back"):
        write_phantom(tmp_path, phantom, seg_type)


# Conformance, and readers of other people


def _written(folder: Path, segmentation: Segmentation, phantom: CtPhantom, seg_type: SegType) -> Path:
    write_seg(folder / "seg.dcm", segmentation, sources_of(phantom), IDENTITY, SegEncoding(seg_type))
    return folder / "seg.dcm"


def test_dciodvfy_finds_neither_errors_nor_warnings(tmp_path: Path, phantom: CtPhantom, seg_type: SegType) -> None:
    report = conformance(_written(tmp_path, segmentation_of(phantom), phantom, seg_type))

    assert not report.errors
    assert not report.warnings


def test_dciodvfy_finds_nothing_in_a_result_without_voxels(tmp_path: Path, seg_type: SegType) -> None:
    phantom = CtPhantom()
    report = conformance(_written(tmp_path, nothing_found(phantom), phantom, seg_type))

    assert not report.errors
    assert not report.warnings


def test_dciodvfy_finds_an_error_where_there_is_one(tmp_path: Path) -> None:
    phantom = CtPhantom()
    path = _written(tmp_path, segmentation_of(phantom), phantom, "binary")
    dataset = pydicom.dcmread(path)
    del dataset.SegmentSequence[0].SegmentAlgorithmType
    dataset.save_as(path)

    assert conformance(path).errors


@needs_dcmqi
def test_dcmqi_finds_every_segment_at_its_place_in_the_patient(
    tmp_path: Path, phantom: CtPhantom, seg_type: SegType
) -> None:
    path = _written(tmp_path, segmentation_of(phantom), phantom, seg_type)

    found = _labels_by_dcmqi(path, tmp_path, phantom.geometry, seg_type)

    np.testing.assert_array_equal(found, phantom.labels)


def _labels_by_dcmqi(path: Path, folder: Path, geometry: VolumeGeometry, seg_type: SegType) -> npt.NDArray[np.uint8]:
    """The label map that dcmqi reads; its voxels put on `geometry` by where dcmqi says that they are in the patient."""
    import dcmqi
    import SimpleITK

    tool = Path(dcmqi.__file__).parent / "bin" / "segimage2itkimage"
    command = [str(tool), "--inputDICOM", str(path), "--outputDirectory", str(folder)]
    subprocess.run(command, check=True, capture_output=True)
    labels = np.zeros(geometry.shape, dtype=np.uint8)
    for file in sorted(folder.glob("*.nrrd")):
        image = SimpleITK.ReadImage(str(file))
        array = SimpleITK.GetArrayFromImage(image)
        for voxel in np.argwhere(array > 0):
            point = image.TransformIndexToPhysicalPoint(voxel[::-1].tolist())
            index = geometry.index_from_lps(point)
            assert np.abs(index - np.rint(index)).max() < 1e-3
            label = int(file.stem) if seg_type == "fractional" else array[tuple(voxel)]
            labels[tuple(np.rint(index).astype(int))] = label
    return labels
