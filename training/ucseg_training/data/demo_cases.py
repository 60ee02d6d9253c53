"""The demo model's patients, made from images inside Python packages.

B, C and D carry labels of the TotalSegmentator network (pseudo-labels), complete or partial; two lung CTs have none.
Lungs of D and of those two come from a classical rule. Patient A is the test patient and is not here: nothing in this
module can reach its images.
"""

from __future__ import annotations

import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeAlias

import nibabel
import nrrd
import numpy as np
import numpy.typing as npt

from ucseg_runtime.arrays import BoolArray, Float32Array, UInt8Array
from ucseg_runtime.dicom.reader import read_volume
from ucseg_runtime.dicom.series import scan
from ucseg_runtime.geometry import VolumeGeometry
from ucseg_runtime.manifest import Preprocessing
from ucseg_runtime.packaged_data import PackagedData, fetch
from ucseg_runtime.preprocess import resample_to_model_grid
from ucseg_runtime.resampling import resample
from ucseg_runtime.volume import Volume
from ucseg_training.data.case import Case, KnownBits, bit
from ucseg_training.data.label_grid import majority_labels
from ucseg_training.data.lung_rule import find_lungs
from ucseg_training.demo_model import LABELS, PREPROCESSING

_Numbers: TypeAlias = npt.NDArray[np.number]

TOTALSEGMENTATOR = PackagedData(
    requirement="totalsegmentator==2.18.0",
    file="totalsegmentator-2.18.0.tar.gz",
    sha256="5d4223ef93973bc36d710869d11e7742ead2c154c72f7f9edcaaadd5b6c4bd03",
    source_archive=True,
)
PYRADIOMICS = PackagedData(
    requirement="pyradiomics==3.0.1",
    file="pyradiomics-3.0.1.tar.gz",
    sha256="47c57f441d6cb7973fa3b2ea48d3948df78e3348e1c69e1e2ff19001601fc2f5",
    source_archive=True,
    needs_numpy_to_build=True,
)

ALL_KNOWN = np.uint8((1 << len(LABELS)) - 1)
"""Bits of every class of the demo model."""
# No organ of the model holds fat or air, the lungs apart, and those are known wherever this rule is used.
_NO_ORGAN_BELOW_HU = -150.0

# Identifiers of TotalSegmentator's task "total", version 2, by class of the demo model.
_TOTALSEGMENTATOR_IDS = {
    "lungs": range(10, 15),
    "liver": range(5, 6),
    "vertebrae": range(26, 51),
    "aorta": range(52, 53),
    "heart": range(51, 52),
}


def label_map_from_totalsegmentator(identifiers: _Numbers) -> UInt8Array:
    """The demo model's labels, uint8, for TotalSegmentator's identifiers 0 … 255 of any real type and shape."""
    table = np.zeros(256, dtype=np.uint8)
    for name, ids in _TOTALSEGMENTATOR_IDS.items():
        table[list(ids)] = LABELS[name]
    return table[np.asarray(np.rint(identifiers), dtype=np.uint8)]


def demo_volumes() -> Iterator[tuple[Volume, bool]]:
    """Fetch the packages; every patient as acquired, in the order of `make_demo_cases`, and whether it is labelled.

    Raises:
        InputError: A package cannot be fetched or is not the one that was checked.
    """
    with _unpacked() as (reference, lungs):
        yield _volume_b(reference), True
        yield _volume_c(reference), True
        yield _volume_d(reference), True
        for path in _lung_files(lungs):
            yield _volume_from_nrrd(path), False


def make_demo_cases(preprocessing: Preprocessing = PREPROCESSING) -> tuple[Case, ...]:
    """Fetch the packages and bring every patient to the model grid.

    Args:
        preprocessing: Says which grid.

    Returns:
        Cases B, C, D, lung1, lung2.

    Raises:
        InputError: A package cannot be fetched or is not the one that was checked.
    """
    with _unpacked() as (reference, lungs):
        lung1, lung2 = _lung_files(lungs)
        return (
            _case_b(reference, preprocessing),
            _case_c(reference, preprocessing),
            _case_d(reference, preprocessing),
            _unlabelled_case("lung1", lung1, preprocessing),
            _unlabelled_case("lung2", lung2, preprocessing),
        )


@contextmanager
def _unpacked() -> Iterator[tuple[Path, Path]]:
    """The folders of B, C and D, and of the lungs, of both packages; fetched where they are not there yet."""
    with tempfile.TemporaryDirectory() as folder:
        extract(fetch(TOTALSEGMENTATOR), Path(folder))
        extract(fetch(PYRADIOMICS), Path(folder))
        yield (
            Path(folder) / "totalsegmentator-2.18.0" / "tests" / "reference_files",
            Path(folder) / "pyradiomics-3.0.1" / "data",
        )


def _lung_files(lungs: Path) -> tuple[Path, Path]:
    return lungs / "lung1_image.nrrd", lungs / "lung2_image.nrrd"


def _volume_b(reference: Path) -> Volume:
    return _volume_from_nifti(reference / "example_ct.nii.gz")


def _volume_c(reference: Path) -> Volume:
    return read_volume(scan(reference / "example_ct_dicom").series[0])


def _volume_d(reference: Path) -> Volume:
    return _volume_from_nifti(reference / "aorta_report" / "example_ct.nii.gz")


def extract(archive: Path, folder: Path) -> None:
    """Unpack a source archive; paths in it cannot leave the folder."""
    with tarfile.open(archive) as tar:
        tar.extractall(folder, filter="data")


def _case_b(reference: Path, preprocessing: Preprocessing) -> Case:
    volume = _volume_b(reference)
    identifiers = _array_from_nifti(reference / "example_seg_fast_force_split.nii.gz")
    return _fully_labelled("B", volume, label_map_from_totalsegmentator(identifiers), preprocessing)


def _case_c(reference: Path, preprocessing: Preprocessing) -> Case:
    volume = _volume_c(reference)
    path = reference / "example_seg_dicom.nii.gz"
    labels = label_map_from_totalsegmentator(_array_from_nifti(path))
    return _fully_labelled("C", volume, _onto_grid(labels, _geometry_from_nifti(path), volume.geometry), preprocessing)


def _case_d(reference: Path, preprocessing: Preprocessing) -> Case:
    """Heart everywhere; aorta and T12 on a crop; lungs by the rule; nothing known of the other organs."""
    volume = _volume_d(reference)
    models = reference / "aorta_report" / "test_result" / "models"
    heart = _array_from_nifti(reference / "pulmonary_report" / "models" / "heart.nii.gz") > 0
    crop_geometry = _geometry_from_nifti(models / "aorta.nii.gz")
    aorta = _onto_grid(_array_from_nifti(models / "aorta.nii.gz"), crop_geometry, volume.geometry) > 0
    t12 = _onto_grid(_array_from_nifti(models / "vertebrae_T12.nii.gz"), crop_geometry, volume.geometry) > 0
    crop = _onto_grid(np.ones(crop_geometry.shape, np.uint8), crop_geometry, volume.geometry) > 0
    labels = np.zeros(volume.geometry.shape, dtype=np.uint8)
    for name, mask in (("heart", heart), ("aorta", aorta), ("vertebrae", t12)):
        labels[mask] = LABELS[name]
    known = np.full(labels.shape, bit(LABELS["heart"]), dtype=np.uint8)
    known[crop] |= bit(LABELS["aorta"])
    return _with_lung_rule("D", volume, labels, known, preprocessing)


def _unlabelled_case(name: str, path: Path, preprocessing: Preprocessing) -> Case:
    volume = _volume_from_nrrd(path)
    nothing = np.zeros(volume.geometry.shape, dtype=np.uint8)
    return _with_lung_rule(name, volume, nothing, nothing.copy(), preprocessing)


def _fully_labelled(name: str, volume: Volume, labels: UInt8Array, preprocessing: Preprocessing) -> Case:
    return _on_model_grid(name, volume, labels, np.full(labels.shape, ALL_KNOWN, dtype=np.uint8), preprocessing)


def _with_lung_rule(
    name: str, volume: Volume, labels: UInt8Array, known: KnownBits, preprocessing: Preprocessing
) -> Case:
    """Add the lungs by the rule, and the knowledge that fat and air outside them are no organ at all."""
    case = _on_model_grid(name, volume, labels, known, preprocessing)
    regions = find_lungs(case.voxels, case.geometry.spacing_mm)
    labels, known = case.label_map.copy(), case.known.copy()
    labels[regions.lungs & (labels == 0)] = LABELS["lungs"]
    known[~regions.unsure] |= bit(LABELS["lungs"])
    empty: BoolArray = (case.voxels < _NO_ORGAN_BELOW_HU) & (labels == 0) & ~regions.unsure
    known[empty] = ALL_KNOWN
    return Case(name, case.voxels, labels, known, case.geometry)


def _on_model_grid(
    name: str, volume: Volume, labels: UInt8Array, known: KnownBits, preprocessing: Preprocessing
) -> Case:
    """Image by the very preprocessing of the runtime; labels by the class with the largest share of the voxel."""
    voxels, grid, orientation = resample_to_model_grid(volume, preprocessing)
    label_map = majority_labels(np.ascontiguousarray(orientation.apply(labels)), grid.shape)
    known_map = np.zeros(grid.shape, dtype=np.uint8)
    oriented = np.ascontiguousarray(orientation.apply(known))
    for label in LABELS.values():
        share = resample(((oriented & bit(label)) != 0).astype(np.float32), grid.shape)
        known_map[share > 0.99] |= bit(label)
    return Case(name, voxels, label_map, known_map, grid)


def _onto_grid(labels: _Numbers, have: VolumeGeometry, want: VolumeGeometry) -> UInt8Array:
    """Nearest label of `have` at every voxel of `want`, 0 outside; the axes of the grids may differ."""
    result = np.zeros(want.shape, dtype=np.uint8)
    index = np.stack(np.meshgrid(*[np.arange(side) for side in want.shape], indexing="ij"), axis=-1)
    source = np.rint(have.index_from_lps(want.lps_from_index(index.reshape(-1, 3)))).astype(np.int64)
    inside = ((source >= 0) & (source < np.array(have.shape))).all(axis=1)
    z, y, x = source[inside].T
    result.reshape(-1)[inside] = labels[z, y, x]
    return result


def _array_from_nifti(path: Path) -> _Numbers:
    """Voxels in (z, y, x) order."""
    voxels: _Numbers = np.asarray(nibabel.load(path).dataobj).transpose(2, 1, 0)
    return voxels


def _geometry_from_nifti(path: Path) -> VolumeGeometry:
    """NIfTI maps (x, y, z) to RAS; here (z, y, x) maps to LPS."""
    image = nibabel.load(path)
    affine = np.diag([-1.0, -1.0, 1.0, 1.0]) @ image.affine
    z, y, x = image.shape[2], image.shape[1], image.shape[0]
    return VolumeGeometry(affine[:, [2, 1, 0, 3]], (z, y, x))


def _volume_from_nifti(path: Path) -> Volume:
    voxels: Float32Array = _array_from_nifti(path).astype(np.float32)
    return Volume(voxels, _geometry_from_nifti(path), "CT")


def _volume_from_nrrd(path: Path) -> Volume:
    """NRRD in the left-posterior-superior space, axes (x, y, z)."""
    data, header = nrrd.read(str(path))
    affine = np.eye(4)
    affine[:3, :3] = np.asarray(header["space directions"], dtype=np.float64).T
    affine[:3, 3] = header["space origin"]
    voxels = data.transpose(2, 1, 0).astype(np.float32)
    return Volume(voxels, VolumeGeometry(affine[:, [2, 1, 0, 3]], voxels.shape), "CT")
