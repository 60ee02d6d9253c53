"""Every format lands in place with its values; what is damaged, missing or does not belong together is refused."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import h5py
import highdicom
import nibabel
import numpy as np
import pydicom
import pytest
from pydicom.dataset import FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, RTStructureSetStorage

from tests.dataset_phantom import (
    block_labels,
    classes,
    dataset,
    plane_fields,
    random_volume,
    structure_set,
    write_hdf5,
    write_nifti,
    write_picture,
)
from tests.phantoms import OBLIQUE, PHI_CANARIES, CtPhantom, write_ct_series
from tests.results import IDENTITY, segmentation_on, sources_of
from tests.volume_phantom import STRAIGHT, centred_geometry
from ucseg_runtime.config import SegEncoding, SegType
from ucseg_runtime.dicom.seg_writer import write_seg
from ucseg_runtime.errors import GeometryError, InputError
from ucseg_training.data.case_list import CaseEntry
from ucseg_training.data.dataset_spec import DatasetSpec
from ucseg_training.data.readers import read_case
from ucseg_training.data.source import SourceCase

SHAPE = (6, 10, 12)
GRID = centred_geometry(SHAPE, (3.0, 1.5, 1.0), STRAIGHT[:, ::-1])
VOXELS = random_volume(0)
LABELS = block_labels(SHAPE, np.s_[1:3, 2:6, 3:9], np.s_[3:5, 4:8, 1:5])
PLANES = DatasetSpec.model_validate(plane_fields())
HDF5 = {"axis_order": "xyz", "spacing_mm": [3.0, 1.5, 1.0]}
_CONCEPTS = (("123037004", "Anatomical Structure"), ("113343008", "Organ"))
ORGANS = dataset(classes=classes("liver", "spleen", "spine", "lung"))


def read(spec: DatasetSpec, label: Path | None, *images: Path) -> SourceCase:
    return read_case(CaseEntry("a", "A", images, label, "train", ordinal=1, total=1), spec)


# NIfTI


@pytest.mark.parametrize("turn", [False, True])
def test_nifti_is_where_it_was_whatever_its_axes(tmp_path: Path, turn: bool) -> None:
    image = write_nifti(tmp_path / "image.nii.gz", VOXELS, GRID, turn=turn)
    label = write_nifti(tmp_path / "label.nii", LABELS, GRID)
    case = read(dataset(), label, image)
    assert case.image.voxels.dtype == np.float32
    flips = (1, 2) if turn else ()  # RAS runs against LPS along x and y
    np.testing.assert_array_equal(case.image.voxels[0], np.flip(VOXELS, flips))
    assert case.image.geometry.matches(GRID.flipped(flips), tolerance_mm=1e-4)
    assert case.label_map is not None
    assert case.label_map.dtype == np.uint8
    np.testing.assert_array_equal(case.label_map, np.flip(LABELS, flips))


def test_nifti_is_scaled_as_its_header_says(tmp_path: Path) -> None:
    image = nibabel.Nifti1Image(np.arange(24, dtype=np.int16).reshape(2, 3, 4, 1), np.eye(4))
    image.header.set_slope_inter(2.0, -1000.0)
    nibabel.save(image, tmp_path / "a.nii")
    # nibabel writes the values as they are and keeps the slope out of the header: put it in.
    content = bytearray((tmp_path / "a.nii").read_bytes())
    content[112:120] = np.array([2.0, -1000.0], "<f4").tobytes()
    (tmp_path / "a.nii").write_bytes(content)
    voxels = read(dataset(), None, tmp_path / "a.nii").image.voxels
    np.testing.assert_array_equal(voxels[0], np.arange(24).reshape(2, 3, 4).transpose(2, 1, 0) * 2.0 - 1000.0)


def test_several_files_are_channels_on_one_grid(tmp_path: Path) -> None:
    paths = [write_nifti(tmp_path / f"{name}.nii", random_volume(seed), GRID) for seed, name in enumerate("ab")]
    case = read(dataset(channels=2), None, *paths)
    np.testing.assert_array_equal(case.image.voxels, [random_volume(0), random_volume(1)])
    shifted = write_nifti(tmp_path / "c.nii", VOXELS, GRID.flipped((0,)))
    with pytest.raises(InputError, match="its channels lie on different grids"):
        read(dataset(channels=2), None, paths[0], shifted)
    with pytest.raises(InputError, match="has 2 channels; expected 3"):
        read(dataset(channels=3), None, *paths)


def four_dimensional(path: Path) -> None:
    nibabel.save(nibabel.Nifti1Image(np.zeros((2, 3, 4, 5), np.float32), np.eye(4)), path)


def sheared(path: Path) -> None:
    affine = np.eye(4)
    affine[0, 1] = 0.3
    nibabel.save(nibabel.Nifti1Image(np.zeros((2, 3, 4), np.float32), affine), path)


def coloured(path: Path) -> None:
    voxels = np.zeros((2, 3, 4), dtype=[("R", "u1"), ("G", "u1"), ("B", "u1")])
    nibabel.save(nibabel.Nifti1Image(voxels, np.eye(4)), path)


def cut_off(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:600])


def text(path: Path) -> None:
    path.write_text("no image")


def empty(path: Path) -> None:
    path.write_bytes(b"")


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (four_dimensional, r"shape \(2, 3, 4, 5\)"),
        (sheared, "not perpendicular"),
        (coloured, "expected one volume of numbers"),
        (cut_off, "its image cannot be read"),
        (text, "its image cannot be read"),
        (empty, "its image cannot be read"),
    ],
)
def test_nifti_that_is_no_volume_is_refused_without_its_path(
    tmp_path: Path, damage: Callable[[Path], None], reason: str
) -> None:
    path = write_nifti(tmp_path / "canary.nii", VOXELS, GRID)
    damage(path)
    with pytest.raises(InputError, match=reason) as caught:
        read(dataset(), None, path)
    assert "canary" not in str(caught.value)


def test_label_beside_its_image_is_refused(tmp_path: Path) -> None:
    image = write_nifti(tmp_path / "i.nii", VOXELS, GRID)
    affine = GRID.affine.copy()
    affine[2, 3] += 1.5
    shifted = write_nifti(tmp_path / "l.nii", LABELS, type(GRID)(affine, SHAPE))
    with pytest.raises(GeometryError, match="another grid than the image"):
        read(dataset(), shifted, image)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_voxels_that_are_not_finite_are_refused(tmp_path: Path, value: float) -> None:
    voxels = VOXELS.copy()
    voxels[2, 3, 4:6] = value
    with pytest.raises(InputError, match="2 voxels of its image are NaN or infinite"):
        read(dataset(), None, write_nifti(tmp_path / "i.nii", voxels, GRID))


# HDF5


@pytest.mark.parametrize("order", ["xyz", "zyx"])
@pytest.mark.parametrize("dtype", ["u1", "f4", "i8"])
def test_hdf5_is_turned_to_slice_row_column(tmp_path: Path, order: str, dtype: str) -> None:
    path = write_hdf5(tmp_path / "a.h5", VOXELS, LABELS, order=order, dtype=dtype)
    case = read(dataset(hdf5={**HDF5, "axis_order": order}), path, path)
    np.testing.assert_array_equal(case.image.voxels[0], VOXELS)
    np.testing.assert_array_equal(case.label_map, LABELS)
    assert case.image.geometry.spacing_mm == (3.0, 1.5, 1.0)
    assert case.from_hdf5


@pytest.mark.parametrize("order", ["xyz", "zyx"])
def test_plane_in_hdf5_is_row_and_column(tmp_path: Path, order: str) -> None:
    path = write_hdf5(tmp_path / "a.h5", VOXELS[0], LABELS[1])
    case = read(dataset(hdf5={**HDF5, "axis_order": order}), path, path)
    np.testing.assert_array_equal(case.image.voxels[0], VOXELS[:1])
    np.testing.assert_array_equal(case.label_map, LABELS[1:2])


def without_label(path: Path) -> None:
    with h5py.File(path, "a") as file:
        del file["label"]


def group_for_label(path: Path) -> None:
    without_label(path)
    with h5py.File(path, "a") as file:
        file.create_group("label")


def words_for_label(path: Path) -> None:
    without_label(path)
    with h5py.File(path, "a") as file:
        file["label"] = "liver"


def smaller_label(path: Path) -> None:
    without_label(path)
    with h5py.File(path, "a") as file:
        file["label"] = LABELS[:-1]


def truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (without_label, r"its label cannot be read \(KeyError\)"),
        (group_for_label, "its label cannot be read"),
        (words_for_label, "its label has shape"),
        (smaller_label, "another grid than the image"),
        (truncated, "its image cannot be read"),
        (text, "its image cannot be read"),
        (empty, "its image cannot be read"),
    ],
)
def test_hdf5_that_lacks_something_is_refused(tmp_path: Path, damage: Callable[[Path], None], reason: str) -> None:
    path = write_hdf5(tmp_path / "canary.h5", VOXELS, LABELS)
    damage(path)
    with pytest.raises(InputError, match=reason) as caught:
        read(dataset(hdf5={**HDF5, "axis_order": "zyx"}), path, path)
    assert "canary" not in str(caught.value)


def test_hdf5_means_nothing_without_a_description(tmp_path: Path) -> None:
    path = write_hdf5(tmp_path / "a.h5", VOXELS, LABELS)
    with pytest.raises(InputError, match="no section hdf5"):
        read(dataset(), None, path)


# Pictures

RGB = np.random.default_rng(1).integers(0, 256, (20, 30, 3), dtype=np.uint8)
MASK = np.zeros((20, 30), np.uint8)
MASK[5:15, 8:20] = 255


def test_picture_is_red_green_blue_with_its_mask(tmp_path: Path) -> None:
    image, label = write_picture(tmp_path / "i.png", RGB), write_picture(tmp_path / "m.png", MASK)
    case = read(PLANES, label, image)
    np.testing.assert_array_equal(case.image.voxels[:, 0], RGB.transpose(2, 0, 1))
    np.testing.assert_array_equal(case.label_map, MASK[None] // 255)
    assert case.image.geometry.shape == (1, 20, 30)


def test_compressed_mask_is_still_a_mask(tmp_path: Path) -> None:
    image, label = write_picture(tmp_path / "i.jpg", RGB), write_picture(tmp_path / "m.jpg", MASK)
    assert len(np.unique(cv2.imread(str(label), cv2.IMREAD_GRAYSCALE))) > 2, "the fixture must have soft borders"
    case = read(PLANES, label, image)
    assert case.label_map is not None
    assert (case.label_map[0] != MASK // 255).sum() < 10


def test_grey_picture_fills_three_channels_or_stays_one(tmp_path: Path) -> None:
    image = write_picture(tmp_path / "i.png", RGB[..., 0])
    np.testing.assert_array_equal(read(PLANES, None, image).image.voxels[:, 0], [RGB[..., 0]] * 3)
    one = DatasetSpec.model_validate(plane_fields(channels=1))
    np.testing.assert_array_equal(read(one, None, image).image.voxels[:, 0], [RGB[..., 0]])


def test_mask_of_labels_is_read_as_it_is(tmp_path: Path) -> None:
    spec = DatasetSpec.model_validate(
        plane_fields(classes=classes("a", "b"), activation="softmax", labels={"kind": "values"})
    )
    image = write_picture(tmp_path / "i.png", RGB)
    label = write_picture(tmp_path / "m.png", MASK // 255 * 2)
    np.testing.assert_array_equal(read(spec, label, image).label_map, MASK[None] // 255 * 2)
    grey = write_picture(tmp_path / "g.png", np.repeat((MASK // 255)[..., None], 3, axis=2))
    np.testing.assert_array_equal(read(spec, grey, image).label_map, MASK[None] // 255)
    with pytest.raises(InputError, match="coloured picture"):
        read(spec, write_picture(tmp_path / "c.png", RGB), image)


def test_mask_of_another_size_is_refused(tmp_path: Path) -> None:
    image, label = write_picture(tmp_path / "i.png", RGB), write_picture(tmp_path / "m.png", MASK[:, :-1])
    with pytest.raises(GeometryError, match="another grid than the image: 1 x 20 x 29 voxels"):
        read(PLANES, label, image)


@pytest.mark.parametrize("damage", [text, empty, cut_off])
def test_damaged_picture_is_refused_without_its_path(tmp_path: Path, damage: Callable[[Path], None]) -> None:
    path = write_picture(tmp_path / "canary.png", RGB)
    damage(path)
    if damage is cut_off:
        path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(InputError, match="its image (is not a picture|cannot be read)") as caught:
        read(PLANES, None, path)
    assert "canary" not in str(caught.value)


def test_picture_of_sixteen_bits_is_refused(tmp_path: Path) -> None:
    assert cv2.imwrite(str(tmp_path / "i.png"), RGB.astype(np.uint16) * 256)
    with pytest.raises(InputError, match="holds uint16; expected a picture of 8 bits"):
        read(PLANES, None, tmp_path / "i.png")


# DICOM


@pytest.fixture(scope="module", params=["axial", "oblique"])
def phantom(request: pytest.FixtureRequest) -> CtPhantom:
    return CtPhantom(shape=(8, 24, 28), **({"orientation": OBLIQUE} if request.param == "oblique" else {}))


@pytest.fixture(scope="module")
def series(phantom: CtPhantom, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("series")
    write_ct_series(folder, phantom)
    return folder


def seg(path: Path, phantom: CtPhantom, labels: np.ndarray[Any, Any], kind: SegType = "binary") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_seg(path, segmentation_on(phantom.geometry, labels), sources_of(phantom), IDENTITY, SegEncoding(kind))
    return path


def test_series_is_read_as_the_runtime_does(phantom: CtPhantom, series: Path) -> None:
    case = read(dataset(), None, series)
    np.testing.assert_array_equal(case.image.voxels[0], phantom.hu)
    assert case.image.geometry.matches(phantom.geometry)


@pytest.mark.parametrize("kind", ["binary", "labelmap"])
def test_segmentation_object_is_a_label(tmp_path: Path, phantom: CtPhantom, series: Path, kind: SegType) -> None:
    label = seg(tmp_path / "seg.dcm", phantom, phantom.labels, kind)
    np.testing.assert_array_equal(read(ORGANS, label, series).label_map, phantom.labels)
    np.testing.assert_array_equal(read(ORGANS, tmp_path, series).label_map, phantom.labels)


def test_segments_are_found_by_name_and_others_are_not_read(tmp_path: Path, phantom: CtPhantom, series: Path) -> None:
    label = seg(tmp_path / "seg.dcm", phantom, phantom.labels)
    spec = dataset(classes=classes("bone", "gland"), structures={"Spine": 1, "LIVER": 2, "spleen": 2})
    expected = np.select([phantom.labels == 3, np.isin(phantom.labels, (1, 2))], [1, 2])
    np.testing.assert_array_equal(read(spec, label, series).label_map, expected)


def test_greater_label_has_the_voxel_where_segments_overlap(tmp_path: Path, phantom: CtPhantom, series: Path) -> None:
    """Written by highdicom itself: the project's writer has no overlaps."""
    masks = np.zeros((*phantom.shape, 2), np.uint8)
    masks[2, 4:10, 4:10, 0] = masks[2, 8:14, 8:14, 1] = 1
    anatomy, organ = (highdicom.sr.CodedConcept(value, "SCT", name) for value, name in _CONCEPTS)
    descriptions = [
        highdicom.seg.SegmentDescription(number, name, anatomy, organ, "MANUAL")
        for number, name in enumerate(("Spleen", "Liver"), start=1)
    ]
    written = highdicom.seg.Segmentation(
        [pydicom.dcmread(path) for path in sorted(series.iterdir())],
        masks,
        "BINARY",
        descriptions,
        series_instance_uid="1.2.3",
        series_number=2,
        sop_instance_uid="1.2.4",
        instance_number=1,
        manufacturer="tests",
        manufacturer_model_name="tests",
        software_versions="1",
        device_serial_number="1",
    )
    written.save_as(tmp_path / "seg.dcm")
    expected = np.where(masks[..., 0] == 1, 2, masks[..., 1])
    np.testing.assert_array_equal(read(dataset(), tmp_path / "seg.dcm", series).label_map, expected)


def test_segmentation_of_one_slice_is_put_where_it_belongs(tmp_path: Path, phantom: CtPhantom, series: Path) -> None:
    labels = np.zeros(phantom.shape, np.uint8)
    labels[5, 4:9, 3:20] = 2
    label = seg(tmp_path / "seg.dcm", phantom, labels)
    assert pydicom.dcmread(label).NumberOfFrames == 1, "empty frames must be missing"
    np.testing.assert_array_equal(read(ORGANS, label, series).label_map, labels)


def test_segmentation_of_nothing_is_an_empty_label(tmp_path: Path, phantom: CtPhantom, series: Path) -> None:
    label = seg(tmp_path / "seg.dcm", phantom, np.zeros(phantom.shape, np.uint8))
    found = read(ORGANS, label, series).label_map
    assert found is not None
    assert found.shape == phantom.shape
    assert not found.any()


def test_segmentation_without_a_class_is_refused(tmp_path: Path, phantom: CtPhantom, series: Path) -> None:
    label = seg(tmp_path / "seg.dcm", phantom, phantom.labels)
    with pytest.raises(InputError, match="describes nothing called 'kidney'"):
        read(dataset(classes=classes("liver", "kidney")), label, series)


def test_segmentation_of_fractions_is_refused(tmp_path: Path, phantom: CtPhantom, series: Path) -> None:
    label = seg(tmp_path / "seg.dcm", phantom, phantom.labels, "fractional")
    with pytest.raises(InputError, match="segmentation of fractions"):
        read(ORGANS, label, series)


def test_segmentation_of_another_patient_is_refused(tmp_path: Path, phantom: CtPhantom, series: Path) -> None:
    other = CtPhantom(shape=phantom.shape, orientation=phantom.orientation, study="B")
    with pytest.raises(InputError, match="another frame of reference"):
        read(ORGANS, seg(tmp_path / "seg.dcm", other, other.labels), series)


def test_segmentation_on_another_grid_is_refused(tmp_path: Path, phantom: CtPhantom, series: Path) -> None:
    x, y, z = phantom.origin_mm
    other = CtPhantom(shape=phantom.shape, orientation=phantom.orientation, origin_mm=(x + 0.4, y, z))
    with pytest.raises(GeometryError, match="another grid than the image"):
        read(ORGANS, seg(tmp_path / "seg.dcm", other, other.labels), series)


def test_segmentation_may_lie_beside_its_series(tmp_path: Path, phantom: CtPhantom, series: Path) -> None:
    folder = shutil.copytree(series, tmp_path / "study")
    label = seg(folder / "seg.dcm", phantom, phantom.labels)
    case = read(ORGANS, label, folder)
    np.testing.assert_array_equal(case.image.voxels[0], phantom.hu)
    np.testing.assert_array_equal(case.label_map, phantom.labels)


def rtstruct(path: Path, phantom: CtPhantom) -> Path:
    corners = np.array([[2.5, 3.5], [2.5, 9.5], [7.5, 9.5], [7.5, 3.5]])
    structures = structure_set(phantom, {"Liver": [(1, corners)], "spleen": [(4, corners + 3.0)]})
    structures.SOPClassUID, structures.SOPInstanceUID = RTStructureSetStorage, "1.2.3"
    structures.file_meta = FileMetaDataset()
    structures.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    structures.save_as(path, enforce_file_format=True)
    return path


def test_structure_set_is_a_label(tmp_path: Path, phantom: CtPhantom, series: Path) -> None:
    expected = block_labels(phantom.shape, np.s_[1:2, 3:8, 4:10], np.s_[4:5, 6:11, 7:13])
    np.testing.assert_array_equal(read(dataset(), rtstruct(tmp_path / "rs.dcm", phantom), series).label_map, expected)


def test_nifti_may_be_the_label_of_a_series(tmp_path: Path, phantom: CtPhantom, series: Path) -> None:
    label = write_nifti(tmp_path / "label.nii.gz", phantom.labels, phantom.geometry, turn=True)
    np.testing.assert_array_equal(read(ORGANS, label, series).label_map, phantom.labels)


def test_image_is_no_label(series: Path) -> None:
    with pytest.raises(InputError, match="neither a DICOM segmentation nor an RT structure set"):
        read(ORGANS, next(series.iterdir()), series)
    with pytest.raises(InputError, match="folder of its label holds 8 files; expected one"):
        read(ORGANS, series, series)


def test_messages_about_dicom_hold_nothing_of_the_patient(tmp_path: Path, series: Path) -> None:
    (tmp_path / "canary.dcm").write_bytes(b"canary")
    with pytest.raises(InputError) as label:
        read(ORGANS, tmp_path / "canary.dcm", series)
    with pytest.raises(InputError) as image:
        read(ORGANS, None, tmp_path)
    with pytest.raises(InputError) as modality:
        read(dataset(modality="MR"), None, series)
    for caught in (label, image, modality):
        assert not any(canary in str(caught.value).lower() for canary in PHI_CANARIES)


# Files


def test_missing_file_and_unknown_suffix_are_refused(tmp_path: Path) -> None:
    image = write_nifti(tmp_path / "i.nii", VOXELS, GRID)
    with pytest.raises(InputError, match="its image does not exist"):
        read(dataset(), None, tmp_path / "canary.nii")
    with pytest.raises(InputError, match="its label does not exist"):
        read(dataset(), tmp_path / "canary.nii", image)
    (tmp_path / "canary.doc").touch()
    with pytest.raises(InputError, match="unknown suffix") as caught:
        read(dataset(), None, tmp_path / "canary.doc")
    assert "canary" not in str(caught.value)
