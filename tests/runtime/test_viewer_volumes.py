"""The volumes of a report: in their place, with their values, small enough."""

from __future__ import annotations

import gzip
from dataclasses import replace
from typing import cast

import nibabel
import numpy as np
import numpy.typing as npt
import pytest
from nibabel.nifti1 import Nifti1Image

from tests.phantoms import OBLIQUE, CtPhantom, all_orientations
from tests.report_phantom import segmentation
from ucseg_runtime.geometry import VolumeGeometry
from ucseg_runtime.report import viewer_volumes as module
from ucseg_runtime.report.viewer_volumes import CT_STEP_HU, ViewerVolumes, shown_shape, viewer_volumes
from ucseg_runtime.upright import upright
from ucseg_runtime.volume import Volume

RAS_FROM_LPS = np.array([-1.0, -1.0, 1.0])


def volumes_of(phantom: CtPhantom, voxels: npt.NDArray[np.generic] | None = None) -> ViewerVolumes:
    image = phantom.hu if voxels is None else voxels
    volume = Volume(image.astype(image.dtype), phantom.geometry, phantom.modality)
    return viewer_volumes(upright(volume, segmentation(phantom)))


def loaded(content: bytes) -> Nifti1Image:
    """As nibabel understands it, values scaled."""
    image = nibabel.Nifti1Image.from_bytes(gzip.decompress(content))
    return cast(Nifti1Image, image)


def value_at(image: Nifti1Image, lps_mm: npt.NDArray[np.float64]) -> float:
    index = np.linalg.solve(image.affine, [*(lps_mm * RAS_FROM_LPS), 1.0])[:3]
    assert np.allclose(index, index.round(), atol=1e-3), "a voxel's centre is a voxel's centre"
    return float(image.get_fdata()[tuple(index.round().astype(int))])


@pytest.mark.parametrize("phantom", [*all_orientations()[::7], replace(CtPhantom(), orientation=OBLIQUE)])
def test_every_voxel_lies_where_it_is_in_the_patient(phantom: CtPhantom) -> None:
    volumes = volumes_of(phantom)

    image, labels, uncertainty = map(loaded, (volumes.image, volumes.labels, volumes.uncertainty))

    for index, hu in phantom.markers.items():
        place = phantom.geometry.lps_from_index(index)
        assert abs(value_at(image, place) - hu) <= CT_STEP_HU / 2
        assert value_at(labels, place) == phantom.labels[index]
        assert value_at(uncertainty, place) == (phantom.labels[index] == 2)
    assert image.get_fdata().size == phantom.hu.size


def test_ct_numbers_are_rounded_and_nothing_else() -> None:
    phantom = CtPhantom()
    shown = loaded(volumes_of(phantom).image).get_fdata().transpose(2, 1, 0)

    assert np.abs(shown - phantom.hu).max() <= CT_STEP_HU / 2
    assert not (shown % CT_STEP_HU).any()


def test_other_modalities_have_256_levels() -> None:
    phantom = replace(CtPhantom(), modality="MR")
    signal = np.linspace(0.0, 900.0, phantom.hu.size, dtype=np.float32).reshape(phantom.shape)

    volumes = volumes_of(phantom, signal)

    shown = loaded(volumes.image).get_fdata().transpose(2, 1, 0)
    assert np.abs(shown - signal).max() < 900.0 / 255
    low, high = volumes.window
    assert 0.0 < low < high < 900.0


def test_large_volumes_are_averaged_and_keep_their_place(monkeypatch: pytest.MonkeyPatch) -> None:
    phantom = CtPhantom(shape=(10, 40, 48))
    monkeypatch.setattr(module.shown_shape, "__defaults__", (6000,))

    volumes = volumes_of(phantom)

    image, labels = loaded(volumes.image), loaded(volumes.labels).get_fdata().transpose(2, 1, 0)
    assert volumes.is_coarser
    assert volumes.geometry.shape == (10, 20, 24)
    assert np.allclose(image.affine[:3, :3], np.diag([-2.0, -2.5, 2.5]), atol=1e-6)
    centre = phantom.geometry.lps_from_index((0, 0.5, 0.5)) * RAS_FROM_LPS
    assert np.allclose(image.affine[:3, 3], centre, atol=1e-4), "the first voxel is where the first four are"
    assert (labels == phantom.labels[:, 1::2, 1::2]).all()
    body = phantom.hu[5, 12:28, 20:30].mean()
    assert abs(image.get_fdata().transpose(2, 1, 0)[5, 6:14, 10:15].mean() - body) < 15.0


@pytest.mark.parametrize(
    ("shape", "spacing_mm", "expected"),
    [
        ((133, 512, 512), (2.5, 0.7, 0.7), (133, 256, 256)),
        ((300, 512, 512), (1.25, 0.7, 0.7), (150, 256, 256)),
        ((60, 256, 256), (5.0, 1.0, 1.0), (60, 256, 256)),
        ((1, 2000, 3000), (1.0, 1.0, 1.0), (1, 2000, 3000)),
    ],
)
def test_axes_with_the_shortest_voxels_get_coarser(
    shape: tuple[int, int, int], spacing_mm: tuple[float, float, float], expected: tuple[int, int, int]
) -> None:
    affine = np.eye(4)
    affine[:3, :3] = np.eye(3)[::-1] * spacing_mm

    assert shown_shape(VolumeGeometry(affine, shape)) == expected


def test_equal_volumes_give_equal_bytes() -> None:
    first, second = volumes_of(CtPhantom()), volumes_of(CtPhantom())

    assert first.image == second.image
    assert first.labels == second.labels
    assert first.uncertainty == second.uncertainty
