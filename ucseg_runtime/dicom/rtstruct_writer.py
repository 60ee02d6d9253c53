"""Label map to a DICOM RT Structure Set: contours on the source images, for planning systems."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pydicom
from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.tag import Tag
from pydicom.uid import ImplicitVRLittleEndian, RTStructureSetStorage

from ucseg_runtime.arrays import BoolArray, Float64Array
from ucseg_runtime.dicom.codes import concept, long_string
from ucseg_runtime.dicom.derived_object import building, finish, reading_back, save
from ucseg_runtime.dicom.equipment import algorithm_identification, algorithm_parameters, equipment
from ucseg_runtime.dicom.source_study import NEVER_ABSENT, SourceStudy, source_study
from ucseg_runtime.errors import SegWriteError
from ucseg_runtime.identity import RunIdentity
from ucseg_runtime.manifest import SegmentClass
from ucseg_runtime.polygons import fill_even_odd, outlines
from ucseg_runtime.segmentation import Segmentation
from ucseg_runtime.slice_stack import AcquiredGrid

SERIES_NUMBER = 904

_KIND = "structures"
_STUDY_COMPONENT = "1.2.840.10008.3.1.2.3.1"
"""Retired, and still what Referenced SOP Class UID of a study has to be. Source: DICOM PS3.3 C.8.8.5."""
_CONTOUR_DATA = Tag("ContourData")
_DECIMALS = 3
_TOLERANCE_SLICES = 0.01


def write_rtstruct(
    path: Path, segmentation: Segmentation, sources: Sequence[Dataset], identity: RunIdentity
) -> FileDataset:
    """Write an RT Structure Set and return it, after its contours were read back and filled again.

    Every class is a region, found or not; one that was not found has no contours. Contours are closed, lie on the
    source images half a pixel around the outermost pixels, and go around holes as keyholes (see `outlines`). Filled
    again they must give the label map voxel for voxel: no tolerance in volume and centroid.

    Args:
        path: File to write. Implicit VR Little Endian, since contours can be longer than the 64 KB that explicit value
            representations allow.
        segmentation: Its label map is written.
        sources: Source headers without pixel data, one per slice in the order of the z axis.
        identity: What computed the result.

    Raises:
        OSError: The file cannot be written.
        SegWriteError: Labels, headers and grid do not fit together, or the object differs when read back.

    Source: DICOM PS3.3 A.19.3, C.8.8.5, C.8.8.6 and C.8.8.8.
    """
    with building("the structure set"):
        study = source_study(sources, segmentation.geometry, identity)
        dataset = _structure_set(segmentation, study, identity)
        finish(dataset, study, _KIND)
    save(dataset, path)
    return _read_back(path, segmentation, study)


def _structure_set(segmentation: Segmentation, study: SourceStudy, identity: RunIdentity) -> FileDataset:
    dataset = _empty_object(study, identity)
    parameters = ", ".join(f"{name}={value}" for name, value in algorithm_parameters(identity).items())
    dataset.StructureSetLabel = "UCSEG"
    dataset.StructureSetName = "ucseg segmentation"
    dataset.StructureSetDescription = (
        f"Automatic segmentation, for research. {identity.model_name} {identity.model_version}: {parameters}"
    )
    dataset.StructureSetDate, dataset.StructureSetTime = study.date, study.time
    dataset.ReferencedFrameOfReferenceSequence = [_frame_of_reference(study)]
    dataset.StructureSetROISequence = [_region(item, study, identity) for item in segmentation.classes]
    dataset.ROIContourSequence = [_contours(item, segmentation, study) for item in segmentation.classes]
    dataset.RTROIObservationsSequence = [_observation(item) for item in segmentation.classes]
    dataset.ApprovalStatus = "UNAPPROVED"
    return dataset


def _empty_object(study: SourceStudy, identity: RunIdentity) -> FileDataset:
    """Everything around the structures: SOP Common, RT Series, Equipment, Frame of Reference."""
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = ImplicitVRLittleEndian
    dataset = FileDataset(None, {}, file_meta=meta, preamble=b"\0" * 128)  # type: ignore[arg-type]  # not from a file
    device, first = equipment(identity), study.frames[0]
    dataset.SOPClassUID = meta.MediaStorageSOPClassUID = RTStructureSetStorage
    dataset.SOPInstanceUID = meta.MediaStorageSOPInstanceUID = study.uids.of_output(f"{_KIND} instance")
    for keyword in NEVER_ABSENT:
        setattr(dataset, keyword, "")
    dataset.InstanceCreationDate, dataset.InstanceCreationTime = study.date, study.time
    dataset.StudyInstanceUID = first.StudyInstanceUID
    dataset.Modality = "RTSTRUCT"
    dataset.SeriesInstanceUID = study.uids.of_output(f"{_KIND} series")
    dataset.SeriesNumber, dataset.SeriesDescription = SERIES_NUMBER, "ucseg structures"
    dataset.InstanceNumber = 1
    dataset.OperatorsName = ""
    dataset.Manufacturer, dataset.ManufacturerModelName = device.manufacturer, device.model_name
    dataset.SoftwareVersions, dataset.DeviceSerialNumber = list(device.software_versions), device.serial_number
    dataset.FrameOfReferenceUID = first.FrameOfReferenceUID
    dataset.PositionReferenceIndicator = first.PositionReferenceIndicator
    return dataset


def _frame_of_reference(study: SourceStudy) -> Dataset:
    first = study.frames[0]
    series = Dataset()
    series.SeriesInstanceUID = first.SeriesInstanceUID
    series.ContourImageSequence = [_image_reference(frame) for frame in study.frames]
    of_study = Dataset()
    of_study.ReferencedSOPClassUID = _STUDY_COMPONENT
    of_study.ReferencedSOPInstanceUID = first.StudyInstanceUID
    of_study.RTReferencedSeriesSequence = [series]
    item = Dataset()
    item.FrameOfReferenceUID = first.FrameOfReferenceUID
    item.RTReferencedStudySequence = [of_study]
    return item


def _image_reference(frame: Dataset) -> Dataset:
    item = Dataset()
    item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = frame.SOPClassUID, frame.SOPInstanceUID
    return item


def _region(item: SegmentClass, study: SourceStudy, identity: RunIdentity) -> Dataset:
    region = Dataset()
    region.ROINumber = item.label
    region.ReferencedFrameOfReferenceUID = study.frames[0].FrameOfReferenceUID
    region.ROIName = long_string(item.name)
    region.ROIGenerationAlgorithm = "AUTOMATIC"
    region.ROIGenerationDescription = long_string(f"{identity.model_name} {identity.model_version}")
    region.ROIDerivationAlgorithmIdentificationSequence = algorithm_identification(identity)
    return region


def _observation(item: SegmentClass) -> Dataset:
    observation = Dataset()
    observation.ObservationNumber = observation.ReferencedROINumber = item.label
    observation.RTROIInterpretedType = "ORGAN"
    observation.ROIInterpreter = ""
    code = concept(item.type)
    if item.modifier is not None:
        code.SegmentedPropertyTypeModifierCodeSequence = [concept(item.modifier)]
    observation.RTROIIdentificationCodeSequence = [code]
    return observation


def _contours(item: SegmentClass, segmentation: Segmentation, study: SourceStudy) -> Dataset:
    region = Dataset()
    region.ReferencedROINumber = item.label
    region.ROIDisplayColor = list(item.colour_rgb)
    contours: list[Dataset] = []
    for z, polygon in _polygons(segmentation.label_map, item.label):
        contour = Dataset()
        contour.ContourNumber = len(contours) + 1
        contour.ContourImageSequence = [_image_reference(study.frames[z])]
        contour.ContourGeometricType = "CLOSED_PLANAR"
        contour.NumberOfContourPoints = len(polygon)
        contour[_CONTOUR_DATA] = _contour_data(_lps_on_frame(study.frames[z], polygon))
        contours.append(contour)
    if contours:
        region.ContourSequence = contours
    return region


def _polygons(label_map: npt.NDArray[np.uint8], label: int) -> Iterator[tuple[int, Float64Array]]:
    """Slice and corners (y, x) of every polygon of a class."""
    for z, plane in enumerate(label_map):
        mask = np.equal(plane, label)
        if not mask.any():
            continue
        box = _bounding_box(mask)
        for polygon in outlines(mask[box]):
            yield z, polygon + (box[0].start, box[1].start)


def _bounding_box(mask: BoolArray) -> tuple[slice, slice]:
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return slice(int(rows[0]), int(rows[-1]) + 1), slice(int(columns[0]), int(columns[-1]) + 1)


def _lps_on_frame(frame: Dataset, corners: Float64Array) -> Float64Array:
    """LPS coordinates in mm, shape (corners, 3), of points (y, x) on a source image.

    Source: DICOM PS3.3 C.7.6.2.1.1, by the attributes of the image itself.
    """
    along_row, along_column = np.reshape(frame.ImageOrientationPatient, (2, 3)).astype(np.float64)
    row_spacing, column_spacing = (float(value) for value in frame.PixelSpacing)
    y, x = corners.T[:, :, None]
    points: Float64Array = np.asarray(frame.ImagePositionPatient, dtype=np.float64) + (
        y * row_spacing * along_column + x * column_spacing * along_row
    )
    return points


def _contour_data(points_mm: Float64Array) -> RawDataElement:
    """The coordinates as they are in the file: pydicom would make three objects of every corner."""
    text = "\\".join(f"{value:.{_DECIMALS}f}" for value in points_mm.ravel().tolist())
    value = text.encode("ascii") + b" " * (len(text) % 2)
    return RawDataElement(_CONTOUR_DATA, "DS", len(value), value, 0, is_implicit_VR=True, is_little_endian=True)


def _read_back(path: Path, segmentation: Segmentation, study: SourceStudy) -> FileDataset:
    with reading_back():
        dataset = pydicom.dcmread(path)
        regions = {int(region.ReferencedROINumber): region for region in dataset.ROIContourSequence}
        if sorted(regions) != sorted(item.label for item in segmentation.classes):
            raise SegWriteError("the structure set that was read back has other regions than the model has classes.")
        if dataset.ReferencedFrameOfReferenceSequence[0].FrameOfReferenceUID != study.frames[0].FrameOfReferenceUID:
            raise SegWriteError("the structure set that was read back belongs to another frame of reference.")
        for label, region in regions.items():
            _check_region(segmentation, label, _polygons_by_slice(region, segmentation.geometry, study))
    return dataset


def _polygons_by_slice(region: Dataset, geometry: AcquiredGrid, study: SourceStudy) -> dict[int, list[Float64Array]]:
    """Corners (y, x) of the contours of a region on each slice, by their coordinates in the patient."""
    found: dict[int, list[Float64Array]] = {}
    for contour in region.get("ContourSequence", ()):
        points_mm = np.array(contour.get_item(_CONTOUR_DATA).value.split(b"\\"), dtype=np.float64).reshape(-1, 3)
        index = geometry.index_from_lps(points_mm)
        z = round(float(index[0, 0]))
        on_slice = 0 <= z < geometry.shape[0] and np.abs(index[:, 0] - z).max() < _TOLERANCE_SLICES
        if not on_slice or not _refers_to(contour.ContourImageSequence[0], study, z):
            raise SegWriteError("a contour that was read back does not lie on the source image that it refers to.")
        found.setdefault(z, []).append(index[:, 1:])
    return found


def _refers_to(item: Dataset, study: SourceStudy, z: int) -> bool:
    uid = study.frames[z].SOPInstanceUID
    frame = study.references.get(uid)
    if frame is None:
        return bool(item.ReferencedSOPInstanceUID == uid)
    return (item.ReferencedSOPInstanceUID, item.get("ReferencedFrameNumber")) == (frame.sop_instance_uid, frame.number)


def _check_region(segmentation: Segmentation, label: int, polygons: dict[int, list[Float64Array]]) -> None:
    for z, plane in enumerate(segmentation.label_map):
        if not np.array_equal(_filled(polygons.get(z, []), plane.shape), np.equal(plane, label)):
            raise SegWriteError(
                f"the contours of region {label} on slice {z + 1} of {len(segmentation.label_map)} were read back and "
                "do not enclose the voxels that were to be written."
            )


def _filled(polygons: Sequence[Float64Array], shape: tuple[int, ...]) -> BoolArray:
    """The pixels whose centres lie inside; only the box around the polygons is looked at."""
    filled = np.zeros(shape, dtype=np.bool_)
    if polygons:
        corners = np.concatenate(polygons)
        y, x = np.clip(np.floor(corners.min(axis=0)), 0, shape).astype(int)
        below, right = np.clip(np.ceil(corners.max(axis=0)) + 1, 0, shape).astype(int)
        filled[y:below, x:right] = fill_even_odd([polygon - (y, x) for polygon in polygons], (below - y, right - x))
    return filled
