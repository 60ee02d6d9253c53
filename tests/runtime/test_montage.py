"""The picture of a result: which planes it shows, which way round, and that it tells nothing of the patient."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
import pytest

from tests import results
from tests.phantoms import CtPhantom, all_orientations
from ucseg_runtime.geometry import VolumeGeometry
from ucseg_runtime.montage import montage, montage_png
from ucseg_runtime.segmentation import Segmentation
from ucseg_runtime.volume import Volume

CELL = 324
HEADING = 40
Picture = npt.NDArray[np.uint8]

COLOURS = ((255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0), (255, 0, 255))
CLASSES = tuple(
    item.model_copy(update={"colour_rgb": colour}) for item, colour in zip(results.CLASSES, COLOURS, strict=True)
)
"""Colours that cannot be mistaken for each other when they are tints or mixed with grey."""


def volume_of(phantom: CtPhantom) -> Volume:
    return Volume(phantom.hu, phantom.geometry, phantom.modality)


def segmentation_on(geometry: VolumeGeometry, labels: npt.NDArray[np.uint8]) -> Segmentation:
    return replace(results.segmentation_on(geometry, labels), classes=CLASSES)


def segmentation_of(phantom: CtPhantom) -> Segmentation:
    return segmentation_on(phantom.geometry, phantom.labels)


def nothing_found(phantom: CtPhantom) -> Segmentation:
    return segmentation_on(phantom.geometry, np.zeros(phantom.shape, dtype=np.uint8))


def cell(picture: Picture, row: int, column: int) -> Picture:
    """One cell of the left block without its frame."""
    top, left = HEADING + row * CELL, column * CELL
    return picture[top + 2 : top + CELL - 2, left + 2 : left + CELL - 2]


def colour_of(picture: Picture, label: int) -> npt.NDArray[np.bool_]:
    """Pixels in the outline colour of a class."""
    blue_green_red = np.array(CLASSES[label - 1].colour_rgb[::-1])
    near: npt.NDArray[np.bool_] = np.abs(picture.astype(int) - blue_green_red).max(axis=-1) < 60
    return near


def centre(mask: npt.NDArray[np.bool_]) -> tuple[float, float]:
    rows, columns = np.nonzero(mask)
    return float(rows.mean()), float(columns.mean())


def test_png_holds_the_picture_and_nothing_but_pixels(tmp_path: Path) -> None:
    phantom = CtPhantom()

    (tmp_path / "montage.png").write_bytes(montage_png(volume_of(phantom), segmentation_of(phantom)))

    data = (tmp_path / "montage.png").read_bytes()
    picture = cv2.imread(str(tmp_path / "montage.png"))
    np.testing.assert_array_equal(picture, montage(volume_of(phantom), segmentation_of(phantom)))
    assert not any(chunk in data for chunk in (b"tEXt", b"iTXt", b"zTXt", b"tIME", b"eXIf"))


def test_picture_is_the_same_each_time() -> None:
    phantom = CtPhantom()

    first = montage(volume_of(phantom), segmentation_of(phantom))

    np.testing.assert_array_equal(montage(volume_of(phantom), segmentation_of(phantom)), first)


def test_the_patient_is_seen_from_the_feet_whatever_the_orientation_of_the_series() -> None:
    """The liver, on the patient's right, is drawn on the left; the lung, which lies high, above the liver."""
    for phantom in (replace(phantom, shape=(30, 30, 30)) for phantom in all_orientations()[::5]):
        picture = montage(volume_of(phantom), segmentation_of(phantom))
        middle_axial, coronal = cell(picture, 1, 0), cell(picture, 2, 0)
        liver, spleen = colour_of(middle_axial, 1), colour_of(middle_axial, 2)
        assert centre(liver)[1] < CELL / 2 < centre(spleen)[1]
        spine = colour_of(middle_axial, 3)
        assert centre(spine)[0] > centre(liver)[0]
        assert centre(colour_of(coronal, 4))[0] < centre(colour_of(coronal, 1))[0]


def test_axial_views_rise_from_the_lowest_to_the_highest_segment() -> None:
    phantom = CtPhantom(shape=(60, 40, 48))
    labels = np.zeros(phantom.shape, dtype=np.uint8)
    labels[30:, 10:30, 10:40] = 1
    labels[48:, 10:30, 10:40] = 2
    picture = montage(volume_of(phantom), segmentation_on(phantom.geometry, labels))

    axial = [cell(picture, row, column) for row in (0, 1) for column in (0, 1, 2)]

    assert [bool(colour_of(view, 1).any()) for view in axial] == [True, True, True, True, False, False]
    assert [bool(colour_of(view, 2).any()) for view in axial] == [False, False, False, False, True, True]


def test_soft_tissue_is_grey_air_black_and_bone_white() -> None:
    phantom = CtPhantom(shape=(4, 64, 64), spacing_mm=(2.0, 1.0, 1.0))
    hu = np.full(phantom.shape, -1000, dtype=np.int16)
    hu[:, 16:32] = 40
    hu[:, 32:48] = 1000
    segmentation = nothing_found(phantom)

    view = cell(montage(Volume(hu, phantom.geometry, "CT"), segmentation), 0, 0)

    assert view[20, 100].tolist() == [0, 0, 0]
    assert view[120, 100].tolist() == [127, 127, 127]
    assert view[200, 100].tolist() == [255, 255, 255]


def test_other_modalities_are_shown_in_their_own_range() -> None:
    phantom = CtPhantom(shape=(4, 64, 64), spacing_mm=(2.0, 1.0, 1.0), modality="MR")
    intensity = np.broadcast_to(np.linspace(2000, 4000, 64).astype(np.float32), phantom.shape)

    view = cell(montage(Volume(intensity, phantom.geometry, "MR"), nothing_found(phantom)), 0, 0)

    assert view[160, 40, 0] < 60
    assert view[160, 280, 0] > 200


def test_planes_keep_their_proportions() -> None:
    phantom = CtPhantom(shape=(10, 40, 20), spacing_mm=(5.0, 2.0, 2.0))
    hu = np.full(phantom.shape, 1000, dtype=np.int16)
    picture = montage(Volume(hu, phantom.geometry, "CT"), nothing_found(phantom))

    axial, sagittal = cell(picture, 0, 0), cell(picture, 2, 1)

    # The axial plane is 80 mm high and 40 mm wide, the sagittal one 50 mm high and 80 mm wide.
    assert (axial[160] > 250).all(axis=-1).sum() == pytest.approx(160, abs=3)
    assert (sagittal[:, 160] > 250).all(axis=-1).sum() == pytest.approx(200, abs=3)


def test_uncertainty_is_brighter_where_it_is_higher() -> None:
    phantom = CtPhantom(shape=(4, 64, 64), spacing_mm=(2.0, 1.0, 1.0))
    uncertainty = np.broadcast_to(np.linspace(0, 1, 64, dtype=np.float32), phantom.shape).copy()
    segmentation = replace(nothing_found(phantom), uncertainty=uncertainty)

    picture = montage(volume_of(phantom), segmentation)

    right = picture[HEADING + 2 : HEADING + CELL - 2, picture.shape[1] - 3 * CELL + 2 :][:, : CELL - 4]
    brightness = right[40, 10:310:50].astype(int).sum(axis=-1)
    assert (np.diff(brightness) > 0).all()


@pytest.mark.parametrize("shape", [(2, 8, 8), (1, 40, 40), (40, 8, 8), (300, 4, 4)])
def test_volumes_of_unusual_shape_have_a_picture(shape: tuple[int, int, int]) -> None:
    phantom = CtPhantom(shape=shape)

    picture = montage(volume_of(phantom), segmentation_of(phantom))

    assert picture.shape == montage(volume_of(CtPhantom()), segmentation_of(CtPhantom())).shape


def test_a_hundred_classes_with_long_names_fit_the_picture() -> None:
    phantom = CtPhantom()
    many = tuple(CLASSES[0].model_copy(update={"label": label, "name": "näme " * 20}) for label in range(1, 101))
    segmentation: Segmentation = replace(segmentation_of(phantom), classes=many)

    assert (
        montage(volume_of(phantom), segmentation).shape == montage(volume_of(phantom), segmentation_of(phantom)).shape
    )


@pytest.mark.real_data
def test_patient_a_shows_lungs_dark_and_outlined(patient_a_folder: Path, tmp_path: Path) -> None:
    from ucseg_runtime.dicom.reader import read_volume
    from ucseg_runtime.dicom.series import scan

    volume = read_volume(scan(patient_a_folder).series[0])
    labels = np.zeros(volume.voxels.shape, dtype=np.uint8)
    labels[60:90, 200:300, 60:180] = 1
    segmentation = segmentation_on(volume.geometry, labels)

    (tmp_path / "montage.png").write_bytes(montage_png(volume, segmentation))

    picture = cv2.imread(str(tmp_path / "montage.png"))
    assert picture is not None
    assert colour_of(cell(picture, 0, 2), 1).any()
