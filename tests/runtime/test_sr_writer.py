"""The measurement report: figures, references and status of a TID 1500 document."""

from __future__ import annotations

import json
import subprocess
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import pytest
from pydicom import dcmread
from pydicom.dataset import Dataset, FileDataset

from tests.phantoms import OBLIQUE, CtPhantom
from tests.results import CLASSES, IDENTITY, conformance, nothing_found, segmentation_of, sources_of
from ucseg_runtime.config import SegEncoding, SegType
from ucseg_runtime.decision import Decision, Reason
from ucseg_runtime.dicom.pmap_writer import write_pmap
from ucseg_runtime.dicom.seg_writer import write_seg
from ucseg_runtime.dicom.sr_writer import write_sr
from ucseg_runtime.dicom.uncertainty_seg_writer import write_uncertainty_seg
from ucseg_runtime.errors import SegWriteError
from ucseg_runtime.segmentation import Segmentation, measure
from ucseg_runtime.volume_interval import with_volume_intervals

PRIVATE_CODE = "Unrecognized defined term <99UCSEG> for value 1 of attribute <Coding Scheme Designator>"
"""No public scheme has a code for this quantity, and dciodvfy cannot know a private one."""

DOWNWARDS = "-, range of lower measurement uncertainty"

PHANTOM = CtPhantom()


def write_report(
    folder: Path,
    segmentation: Segmentation,
    phantom: CtPhantom = PHANTOM,
    seg_type: SegType = "binary",
    decision: Decision | None = None,
) -> FileDataset:
    sources = sources_of(phantom)
    seg = write_seg(folder / "seg.dcm", segmentation, sources, IDENTITY, SegEncoding(seg_type))
    pmap = write_pmap(folder / "pm.dcm", segmentation, sources, IDENTITY)
    measurements = with_volume_intervals(measure(segmentation), segmentation, None)
    return write_sr(folder / "sr.dcm", segmentation, measurements, sources, IDENTITY, seg, pmap, decision)


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> FileDataset:
    """The report on the standard phantom, in which the last class is not found."""
    return write_report(tmp_path_factory.mktemp("report"), segmentation_of(PHANTOM))


def groups_of(report: Dataset) -> list[Dataset]:
    """The measurement groups, by the content tree alone."""
    (container,) = [item for item in report.ContentSequence if meaning(item) == "Imaging Measurements"]
    return list(container.ContentSequence)


def meaning(item: Dataset) -> str:
    return str(item.ConceptNameCodeSequence[0].CodeMeaning)


def items_named(group: Dataset, name: str) -> list[Dataset]:
    return [item for item in group.ContentSequence if meaning(item) == name]


def item_named(group: Dataset, name: str) -> Dataset:
    (item,) = items_named(group, name)
    return item


def value_of(item: Dataset) -> float:
    return float(item.MeasuredValueSequence[0].NumericValue)


def all_items(item: Dataset) -> Iterator[Dataset]:
    for child in item.get("ContentSequence", ()):
        yield child
        yield from all_items(child)


def test_each_class_has_a_group_with_its_volume_in_millilitres(report: FileDataset) -> None:
    segmentation = segmentation_of(PHANTOM)

    for group, measurement in zip(groups_of(report), measure(segmentation), strict=True):
        assert item_named(group, "Tracking Identifier").TextValue == measurement.name
        value = item_named(group, "Volume").MeasuredValueSequence[0]
        assert float(value.NumericValue) == pytest.approx(measurement.volume_ml, abs=0.0005)
        assert value.MeasurementUnitsCodeSequence[0].CodeValue == "ml"


def test_volume_of_a_known_number_of_voxels(report: FileDataset) -> None:
    assert PHANTOM.spacing_mm == (2.5, 1.25, 1.0)

    volume = item_named(groups_of(report)[0], "Volume").MeasuredValueSequence[0].NumericValue
    assert float(volume) == pytest.approx((PHANTOM.labels == 1).sum() * 3.125 / 1000, abs=0.0005)


def test_volume_has_the_distances_to_the_ends_of_its_interval(report: FileDataset) -> None:
    segmentation = segmentation_of(PHANTOM)
    expected = with_volume_intervals(measure(segmentation), segmentation, None)

    for group, measurement in zip(groups_of(report), expected, strict=True):
        assert measurement.volume_interval_ml is not None
        low, high = measurement.volume_interval_ml
        volume = item_named(group, "Volume")
        up, down = (item_named(volume, name) for name in ("+, range of upper measurement uncertainty", DOWNWARDS))
        assert value_of(up) == pytest.approx(high - measurement.volume_ml, abs=0.0005)
        assert value_of(down) == pytest.approx(measurement.volume_ml - low, abs=0.0005)
        for item in (up, down):
            assert item.RelationshipType == "HAS PROPERTIES"
            assert item.MeasuredValueSequence[0].MeasurementUnitsCodeSequence[0].CodeValue == "ml"


def test_mean_and_95th_percentile_of_uncertainty_refer_to_the_parametric_map(report: FileDataset) -> None:
    segmentation = segmentation_of(PHANTOM)

    for group, measurement in zip(groups_of(report)[:-1], measure(segmentation), strict=False):
        items = items_named(group, "Evidential uncertainty")
        values = {item_named(item, "Derivation").ConceptCodeSequence[0].CodeValue: value_of(item) for item in items}
        expected = {"373098007": measurement.mean_uncertainty, "371889001": measurement.uncertainty_p95}
        assert values == pytest.approx(expected, abs=5e-5)
        for item in items:
            source = item_named(item, "Source of Measurement").ReferencedSOPSequence[0]
            assert source.ReferencedSOPClassUID == "1.2.840.10008.5.1.4.1.1.30"


def test_largest_diameter_is_that_of_the_mesh_in_millimetres(report: FileDataset) -> None:
    *found, missing = groups_of(report)

    for group, measurement in zip(found, measure(segmentation_of(PHANTOM)), strict=False):
        item = item_named(group, "Maximum 3D Diameter of a Mesh")
        assert value_of(item) == pytest.approx(measurement.largest_diameter_mm, abs=0.005)
        assert item.MeasuredValueSequence[0].MeasurementUnitsCodeSequence[0].CodeValue == "mm"
        assert item.ConceptNameCodeSequence[0].CodingSchemeDesignator == "IBSI"
    assert not items_named(missing, "Maximum 3D Diameter of a Mesh")


def test_uncertainty_as_a_segmentation_is_referred_to_and_the_report_conforms(tmp_path: Path) -> None:
    segmentation, sources = segmentation_of(PHANTOM), sources_of(PHANTOM)
    seg = write_seg(tmp_path / "seg.dcm", segmentation, sources, IDENTITY)
    uncertainty = write_uncertainty_seg(tmp_path / "uncertainty.dcm", segmentation, sources, IDENTITY)

    report = write_sr(tmp_path / "sr.dcm", segmentation, measure(segmentation), sources, IDENTITY, seg, uncertainty)

    assert not conformance(tmp_path / "sr.dcm").errors
    item = items_named(groups_of(report)[0], "Evidential uncertainty")[0]
    source = item_named(item, "Source of Measurement").ReferencedSOPSequence[0]
    assert source.ReferencedSOPInstanceUID == uncertainty.SOPInstanceUID


def test_each_group_refers_to_its_segment_under_the_same_tracking_uid(tmp_path: Path, report: FileDataset) -> None:
    seg = write_seg(tmp_path / "seg.dcm", segmentation_of(PHANTOM), sources_of(PHANTOM), IDENTITY)

    for group, segment in zip(groups_of(report), seg.SegmentSequence, strict=True):
        reference = item_named(group, "Referenced Segment").ReferencedSOPSequence[0]
        assert reference.ReferencedSOPInstanceUID == seg.SOPInstanceUID
        assert reference.ReferencedSegmentNumber == segment.SegmentNumber
        assert segment.TrackingUID == item_named(group, "Tracking Unique Identifier").UID


def test_a_class_that_was_not_found_is_called_absent_with_no_volume_and_no_uncertainty(report: FileDataset) -> None:
    assert not (PHANTOM.labels == CLASSES[-1].label).any()

    *found, missing = groups_of(report)
    assert [item_named(group, "Presence of property").ConceptCodeSequence[0].CodeMeaning for group in found] == [
        "Present"
    ] * 4
    assert item_named(missing, "Presence of property").ConceptCodeSequence[0].CodeMeaning == "Absent"
    assert float(item_named(missing, "Volume").MeasuredValueSequence[0].NumericValue) == 0.0
    assert "Evidential uncertainty" not in [meaning(item) for item in missing.ContentSequence]


def test_finding_and_side_are_coded_as_in_the_manifest(report: FileDataset) -> None:
    for group, item in zip(groups_of(report), CLASSES, strict=True):
        assert item_named(group, "Finding").ConceptCodeSequence[0].CodeValue == item.type.value
    site = item_named(groups_of(report)[3], "Finding Site")
    assert site.ConceptCodeSequence[0].CodeMeaning == "Lung"
    assert item_named(site, "Laterality").ConceptCodeSequence[0].CodeMeaning == "Left"


def test_evidence_lists_every_source_instance_the_segmentation_and_the_map(report: FileDataset) -> None:
    (study,) = report.CurrentRequestedProcedureEvidenceSequence
    listed = {
        instance.ReferencedSOPInstanceUID
        for series in study.ReferencedSeriesSequence
        for instance in series.ReferencedSOPSequence
    }
    sources = {PHANTOM.sop_uid(index) for index in range(PHANTOM.shape[0])}
    assert study.StudyInstanceUID == PHANTOM.study_uid
    assert sources < listed
    assert len(listed - sources) == 2


def test_the_model_is_the_observer_and_the_algorithm(report: FileDataset) -> None:
    texts = {meaning(item): item.TextValue for item in all_items(report) if "TextValue" in item}
    assert texts["Device Observer Manufacturer"] == "ucseg"
    assert texts["Device Observer Model Name"] == "phantom organs 1.2.3"
    assert texts["Device Observer Serial Number"] == IDENTITY.model_digest
    assert (texts["Algorithm Name"], texts["Algorithm Version"]) == ("phantom organs", "1.2.3")
    parameters = [item.TextValue for item in all_items(report) if meaning(item) == "Algorithm Parameters"]
    assert f"model_sha256={IDENTITY.model_digest}" in parameters


def test_report_is_complete_preliminary_and_unverified(report: FileDataset) -> None:
    assert (report.CompletionFlag, report.PreliminaryFlag, report.VerificationFlag) == (
        "COMPLETE",
        "PRELIMINARY",
        "UNVERIFIED",
    )
    assert report.ConceptNameCodeSequence[0].CodeMeaning == "Imaging Measurement Report"


@pytest.mark.parametrize(
    ("modality", "procedure"),
    [("CT", "CT unspecified body region"), ("MR", "MRI unspecified body region"), ("OT", "Imaging procedure")],
)
def test_procedure_reported_follows_the_modality(tmp_path: Path, modality: str, procedure: str) -> None:
    report = write_report(tmp_path, segmentation_of(PHANTOM), replace(PHANTOM, modality=modality))

    assert item_named(report, "Procedure reported").ConceptCodeSequence[0].CodeMeaning == procedure


def test_times_and_patient_are_those_of_the_source(report: FileDataset) -> None:
    source = sources_of(PHANTOM)[0]

    assert (report.ContentDate, report.InstanceCreationDate) == ("20200102", "20200102")
    assert (report.ContentTime, report.InstanceCreationTime) == ("101500", "101500")
    for keyword in ("PatientName", "PatientID", "StudyInstanceUID", "StudyDescription"):
        assert report[keyword].value == source[keyword].value


def test_measurements_of_other_classes_are_refused(tmp_path: Path) -> None:
    segmentation, sources = segmentation_of(PHANTOM), sources_of(PHANTOM)
    seg = write_seg(tmp_path / "seg.dcm", segmentation, sources, IDENTITY)
    pmap = write_pmap(tmp_path / "pm.dcm", segmentation, sources, IDENTITY)

    with pytest.raises(SegWriteError, match="4 measurements do not match 5 classes"):
        write_sr(tmp_path / "sr.dcm", segmentation, measure(segmentation)[1:], sources, IDENTITY, seg, pmap)


@pytest.mark.parametrize(
    ("phantom", "segmentation"),
    [
        pytest.param(PHANTOM, segmentation_of(PHANTOM), id="axial"),
        pytest.param(
            replace(PHANTOM, orientation=OBLIQUE), segmentation_of(replace(PHANTOM, orientation=OBLIQUE)), id="oblique"
        ),
        pytest.param(PHANTOM, nothing_found(PHANTOM), id="nothing found"),
    ],
)
def test_dciodvfy_finds_no_error_and_warns_only_of_the_private_code(
    tmp_path: Path, phantom: CtPhantom, segmentation: Segmentation
) -> None:
    write_report(tmp_path, segmentation, phantom)

    report = conformance(tmp_path / "sr.dcm")

    uses = 1 + 2 * sum(item.voxels > 0 for item in measure(segmentation))
    assert not report.errors
    assert report.warnings == Counter({PRIVATE_CODE: uses})


def test_a_decision_and_its_reasons_are_evaluations_of_the_whole_and_the_report_conforms(tmp_path: Path) -> None:
    reasons = (Reason("air", 0.9, 0.5, "The share of air is 0.90 – too much."), Reason("slices", 3.0, 9.0, "Few."))
    decision = Decision("review", calibrated=False, score=0.614, reasons=reasons)

    report = write_report(tmp_path, segmentation_of(PHANTOM), decision=decision)

    (container,) = [item for item in report.ContentSequence if meaning(item) == "Qualitative Evaluations"]
    coded, *texts = container.ContentSequence
    assert (meaning(coded), coded.ConceptCodeSequence[0].CodeValue) == ("Decision on the result", "review")
    assert [item.TextValue for item in texts] == [
        "review (score 0.61, uncalibrated)",
        "The share of air is 0.90 ? too much.",
        "Few.",
    ]
    assert {item.RelationshipType for item in (container, *container.ContentSequence)} == {"CONTAINS"}
    found = conformance(tmp_path / "sr.dcm")
    assert not found.errors
    assert set(found.warnings) <= {PRIVATE_CODE}


@pytest.mark.parametrize("seg_type", ["binary", "labelmap", "fractional"])
def test_report_on_every_kind_of_segmentation_conforms_and_leads_to_its_segments(
    tmp_path: Path, seg_type: SegType
) -> None:
    segmentation = segmentation_of(PHANTOM)
    report = write_report(tmp_path, segmentation, seg_type=seg_type)

    assert not conformance(tmp_path / "sr.dcm").errors
    described = dcmread(tmp_path / "seg.dcm").SegmentSequence
    segments = {item.TrackingUID: item.SegmentNumber for item in described if "TrackingUID" in item}  # not background
    for group, item in zip(groups_of(report), segmentation.classes, strict=True):
        assert segments[item_named(group, "Tracking Unique Identifier").UID] == item.label
        reference = item_named(group, "Referenced Segment").ReferencedSOPSequence[0]
        assert reference.get("ReferencedSegmentNumber") == (None if seg_type == "labelmap" else item.label)


@pytest.mark.skipif(find_spec("dcmqi") is None, reason="needs the package dcmqi")
def test_dcmqi_reads_the_same_measurements(tmp_path: Path) -> None:
    import dcmqi

    segmentation = segmentation_of(PHANTOM)
    write_report(tmp_path, segmentation, decision=Decision("reject", calibrated=True, score=1.0, reasons=()))
    tool = Path(dcmqi.__file__).parent / "bin" / "tid1500reader"
    target = tmp_path / "report.json"
    command = [str(tool), "--inputDICOM", str(tmp_path / "sr.dcm"), "--outputMetadata", str(target)]

    subprocess.run(command, check=True, capture_output=True)

    groups = json.loads(target.read_text())["Measurements"]
    for group, measurement in zip(groups, measure(segmentation), strict=True):
        # Of two values of one quantity the one that was derived as a mean.
        values = {
            item["quantity"]["CodeMeaning"]: float(item["value"])
            for item in group["measurementItems"]
            if item.get("derivationModifier", {}).get("CodeMeaning") in (None, "Mean")
        }
        assert (group["ReferencedSegment"], group["TrackingIdentifier"]) == (measurement.label, measurement.name)
        assert values["Volume"] == pytest.approx(measurement.volume_ml, abs=0.0005)
        if measurement.voxels:
            assert values["Evidential uncertainty"] == pytest.approx(measurement.mean_uncertainty, abs=5e-5)
