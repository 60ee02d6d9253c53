"""Measurements to a DICOM report: TID 1500 in a Comprehensive 3D SR, one group per segment."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from highdicom import sr
from pydicom.dataset import Dataset, FileDataset
from pydicom.sr.coding import Code
from pydicom.uid import SegmentationStorage

from ucseg_runtime.decision import Decision
from ucseg_runtime.dicom import codes
from ucseg_runtime.dicom.derived_object import building, finish, read_header, reading_back, save
from ucseg_runtime.dicom.equipment import algorithm_parameters, equipment
from ucseg_runtime.dicom.source_study import SourceStudy, source_study
from ucseg_runtime.errors import SegWriteError
from ucseg_runtime.identity import RunIdentity
from ucseg_runtime.manifest import SegmentClass
from ucseg_runtime.segmentation import Segmentation, SegmentMeasurement

SERIES_NUMBER = 903

_KIND = "report"
_VOLUME_DECIMALS = 3
_DIAMETER_DECIMALS = 2
_UNCERTAINTY_DECIMALS = 4


def write_sr(
    path: Path,
    segmentation: Segmentation,
    measurements: Sequence[SegmentMeasurement],
    sources: Sequence[Dataset],
    identity: RunIdentity,
    seg_dataset: Dataset,
    uncertainty_dataset: Dataset,
    decision: Decision | None = None,
) -> FileDataset:
    """Write the measurement report and return it, after it was read back and compared.

    Every class has a group that refers to its segment and says whether it is present or absent and what volume it has,
    with the distances to both ends of its interval, and whether that was calibrated among the algorithm's parameters.
    A present one also has its largest diameter, and the mean and 95th percentile of its uncertainty, which refer to the
    object that holds the uncertainty. What is to be done with the result, on what basis and why are qualitative
    evaluations of the whole. The evidence lists every source instance, the segmentation and that object.
    The report is complete, preliminary and unverified.

    Args:
        path: File to write.
        segmentation: Its classes name the segments.
        measurements: One per class, in the order of the classes.
        sources: Source headers without pixel data, one per slice in the order of the z axis.
        identity: What computed the result.
        seg_dataset: The written segmentation; pixel data are not needed.
        uncertainty_dataset: The written Parametric Map or segmentation of the uncertainty; pixel data are not needed.
        decision: What is to be done with the result; None: the report says nothing of it.

    Raises:
        OSError: The file cannot be written.
        SegWriteError: Measurements and classes differ, headers do not fit together, or the report differs when read
            back.

    Source: DICOM PS3.16 TID 1500, 1411, 300, 310 and 4019.
    """
    if [item.label for item in measurements] != [item.label for item in segmentation.classes]:
        raise SegWriteError(
            f"{len(measurements)} measurements do not match {len(segmentation.classes)} classes in order"
        )
    with building("the report"):
        study = source_study(sources, segmentation.geometry, identity)
        references = _References(study, identity, seg_dataset, uncertainty_dataset)
        dataset = _document(references, segmentation.classes, measurements)
        if decision is not None:
            dataset.ContentSequence.append(_evaluation(decision))
        finish(dataset, study, _KIND)
    save(dataset, path)
    return _read_back(path, measurements, decision)


@dataclass(frozen=True, eq=False)
class _References:
    """What the items of the report point to."""

    study: SourceStudy
    identity: RunIdentity
    segmentation: Dataset
    uncertainty: Dataset


def _document(
    references: _References, classes: Sequence[SegmentClass], measurements: Sequence[SegmentMeasurement]
) -> Dataset:
    study, device = references.study, equipment(references.identity)
    dataset: Dataset = sr.Comprehensive3DSR(
        evidence=[*study.frames, references.segmentation, references.uncertainty],
        content=_report(references, classes, measurements)[0],
        series_instance_uid=study.uids.of_output(f"{_KIND} series"),
        series_number=SERIES_NUMBER,
        sop_instance_uid=study.uids.of_output(f"{_KIND} instance"),
        instance_number=1,
        manufacturer=device.manufacturer,
        manufacturer_model_name=device.model_name,
        software_versions=device.software_versions,
        device_serial_number=device.serial_number,
        is_complete=True,
        is_final=False,
        is_verified=False,
        coding_schemes=[codes.private_scheme()],
        series_description="ucseg measurements",
    )
    return dataset


def _report(
    references: _References, classes: Sequence[SegmentClass], measurements: Sequence[SegmentMeasurement]
) -> sr.MeasurementReport:
    device = equipment(references.identity)
    observer = sr.DeviceObserverIdentifyingAttributes(
        uid=references.study.uids.of_device(),
        name=device.manufacturer,
        manufacturer_name=device.manufacturer,
        model_name=device.model_name,
        serial_number=device.serial_number,
    )
    context = sr.ObserverContext(observer_type=codes.DEVICE, observer_identifying_attributes=observer)
    return sr.MeasurementReport(
        observation_context=sr.ObservationContext(observer_device_context=context),
        procedure_reported=codes.procedure_reported(references.study.frames[0].Modality),
        imaging_measurements=[
            _group(references, item, measurement) for item, measurement in zip(classes, measurements, strict=True)
        ],
    )


def _group(
    references: _References, item: SegmentClass, measurement: SegmentMeasurement
) -> sr.VolumetricROIMeasurementsAndQualitativeEvaluations:
    side = codes.laterality(item)
    site = sr.FindingSite(anatomic_location=codes.concept(item.type), laterality=side)
    return sr.VolumetricROIMeasurementsAndQualitativeEvaluations(
        tracking_identifier=sr.TrackingIdentifier(
            uid=references.study.uids.of_segment(item.label), identifier=codes.long_string(item.name)
        ),
        referenced_segment=_segment_reference(references, item.label),
        finding_category=codes.concept(item.category),
        finding_type=codes.concept(item.type),
        finding_sites=None if side is None else [site],
        algorithm_id=_algorithm(references.identity, measurement),
        measurements=_measurements(references, measurement),
        qualitative_evaluations=[
            sr.QualitativeEvaluation(codes.PRESENCE, codes.PRESENT if measurement.voxels else codes.ABSENT)
        ],
    )


def _segment_reference(references: _References, label: int) -> sr.ReferencedSegment:
    """Points to one segment; in a label map to the object, whose segment has the tracking UID of the group.

    Source: DICOM PS3.3 C.18.4, Referenced Segment Number, which is for objects of the Segmentation class alone.
    """
    reference = sr.ReferencedSegment(
        sop_class_uid=references.segmentation.SOPClassUID,
        sop_instance_uid=references.segmentation.SOPInstanceUID,
        segment_number=label,
        source_series=sr.SourceSeriesForSegmentation(references.study.frames[0].SeriesInstanceUID),
    )
    if references.segmentation.SOPClassUID != SegmentationStorage:
        del reference[0].ReferencedSOPSequence[0].ReferencedSegmentNumber
    return reference


def _algorithm(identity: RunIdentity, measurement: SegmentMeasurement) -> sr.AlgorithmIdentification:
    parameters = dict(algorithm_parameters(identity))
    if measurement.volume_interval_ml is not None:
        coverage = measurement.volume_interval_coverage
        parameters["volume_interval"] = "uncalibrated" if coverage is None else f"coverage {coverage:g}"
    return sr.AlgorithmIdentification(
        name=codes.long_string(identity.model_name),
        version=codes.long_string(identity.model_version),
        parameters=[f"{name}={value}" for name, value in parameters.items()],
    )


def _measurements(references: _References, measurement: SegmentMeasurement) -> list[sr.Measurement]:
    volume = sr.Measurement(
        codes.VOLUME,
        round(measurement.volume_ml, _VOLUME_DECIMALS),
        codes.MILLILITRE,
        properties=_volume_range(measurement),
    )
    agreement = _agreement(measurement)
    if not measurement.voxels:
        return [volume, *agreement]
    diameter = sr.Measurement(
        codes.MAXIMUM_3D_DIAMETER, round(measurement.largest_diameter_mm, _DIAMETER_DECIMALS), codes.MILLIMETRE
    )
    return [
        volume,
        diameter,
        _uncertainty(references, measurement.mean_uncertainty, codes.MEAN),
        _uncertainty(references, measurement.uncertainty_p95, codes.PERCENTILE_95),
        *agreement,
    ]


def _volume_range(measurement: SegmentMeasurement) -> sr.MeasurementProperties | None:
    """How far the volume may be from its value downwards and upwards.

    highdicom's own arguments for it say that the two numbers have no unit; theirs is that of the measurement.

    Source: DICOM PS3.16 TID 310.
    """
    if measurement.volume_interval_ml is None:
        return None
    low, high = measurement.volume_interval_ml
    properties = sr.MeasurementProperties()
    for name, distance in (
        (codes.UPWARD_UNCERTAINTY, high - measurement.volume_ml),
        (codes.DOWNWARD_UNCERTAINTY, measurement.volume_ml - low),
    ):
        value = round(distance, _VOLUME_DECIMALS)
        relation = sr.RelationshipTypeValues.HAS_PROPERTIES
        properties.append(sr.NumContentItem(name, value, codes.MILLILITRE, relationship_type=relation))
    return properties


def _agreement(measurement: SegmentMeasurement) -> list[sr.Measurement]:
    """How far the subnets agree, where that was counted."""
    if math.isnan(measurement.between_subnet_dice):
        return []
    dice = round(measurement.between_subnet_dice, _UNCERTAINTY_DECIMALS)
    return [sr.Measurement(codes.BETWEEN_SUBNET_DICE, dice, codes.NO_UNITS)]


def _uncertainty(references: _References, value: float, derivation: Code) -> sr.Measurement:
    source = sr.SourceImageForMeasurement(references.uncertainty.SOPClassUID, references.uncertainty.SOPInstanceUID)
    return sr.Measurement(
        name=codes.uncertainty_of_rule(references.identity.fusion),
        value=round(value, _UNCERTAINTY_DECIMALS),
        unit=codes.NO_UNITS,
        derivation=derivation,
        referenced_images=[source],
    )


def _evaluation(decision: Decision) -> sr.ContainerContentItem:
    """What is to be done with the result, and every reason.

    Source: DICOM PS3.16 TID 1500, Qualitative Evaluations.
    """
    contains = sr.RelationshipTypeValues.CONTAINS
    container = sr.ContainerContentItem(codes.QUALITATIVE_EVALUATIONS, relationship_type=contains)
    container.ContentSequence = sr.ContentSequence(
        [
            sr.CodeContentItem(codes.DECISION, codes.DECISIONS[decision.outcome], contains),
            sr.TextContentItem(codes.DECISION_BASIS, decision.in_words, contains),
            *(sr.TextContentItem(codes.DECISION_REASON, _ascii(reason.text), contains) for reason in decision.reasons),
        ]
    )
    return container


def _ascii(text: str) -> str:
    """Names of classes can hold letters that the character set of the study has not."""
    return text.encode("ascii", "replace").decode()


def _read_back(path: Path, measurements: Sequence[SegmentMeasurement], decision: Decision | None) -> FileDataset:
    with reading_back():
        dataset = read_header(path)
        volumes = _volumes_ml(dataset)
        decided = _decided(dataset)
    expected = [item.volume_ml for item in measurements]
    rounding = 10.0**-_VOLUME_DECIMALS
    if len(volumes) != len(expected) or not all(
        math.isclose(found, wanted, abs_tol=rounding) for found, wanted in zip(volumes, expected, strict=True)
    ):
        raise SegWriteError("the report that was read back has other volumes than were measured.")
    if decided != ([] if decision is None else [decision.outcome]):
        raise SegWriteError("the report that was read back has another decision than was made.")
    return dataset


def _volumes_ml(dataset: Dataset) -> list[float]:
    """Volume of every measurement group in order, from the content tree alone."""
    containers = [item for item in dataset.ContentSequence if _name(item) == "126010"]  # DCM, Imaging Measurements
    return [
        float(item.MeasuredValueSequence[0].NumericValue)
        for container in containers
        for group in container.ContentSequence
        for item in group.ContentSequence
        if _name(item) == codes.VOLUME.value
    ]


def _decided(dataset: Dataset) -> list[str]:
    """Every decision, from the content tree alone."""
    containers = [item for item in dataset.ContentSequence if _name(item) == codes.QUALITATIVE_EVALUATIONS.value]
    return [
        str(item.ConceptCodeSequence[0].CodeValue)
        for container in containers
        for item in container.ContentSequence
        if _name(item) == codes.DECISION.value
    ]


def _name(item: Dataset) -> str:
    return str(item.ConceptNameCodeSequence[0].CodeValue)
