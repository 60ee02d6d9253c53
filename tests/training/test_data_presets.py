"""Every preset on made-up data of exactly its layout, from the folder to samples."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from tests.dataset_phantom import block_labels, random_volume, write_hdf5, write_nifti, write_picture
from tests.phantoms import CtPhantom, write_ct_series
from tests.volume_phantom import STRAIGHT, centred_geometry
from ucseg_runtime.errors import InputError
from ucseg_runtime.preprocess import preprocess
from ucseg_runtime.volume import Volume
from ucseg_training.data.case_list import find_cases
from ucseg_training.data.dataset_spec import Split
from ucseg_training.data.prepared_set import PreparedSet, prepare_cases
from ucseg_training.data.presets import load_dataset_spec

AXIAL = STRAIGHT[:, ::-1]
SHAPE = (5, 14, 12)
LABELS = block_labels(SHAPE, np.s_[1:4, 4:10, 3:9])


def z_scored(voxels: npt.NDArray[Any], over: npt.NDArray[Any] | None = None) -> npt.NDArray[np.float32]:
    chosen = voxels if over is None else voxels[over]
    return ((voxels - chosen.mean()) / chosen.std()).astype(np.float32)


def prepare(name: str, root: Path, labelled: int | None = None, source: Path | None = None) -> PreparedSet:
    spec = load_dataset_spec(name)
    return prepare_cases(find_cases(source or root, spec, labelled), spec, root / "prepared")


def names(prepared: PreparedSet, split: Split) -> list[str]:
    return [sample.name for sample in prepared.of(split)]


def test_la(tmp_path: Path) -> None:
    cases = {name: random_volume(seed, SHAPE, 0.0, 255.0) for seed, name in enumerate(("A9", "B8", "C7", "D6"))}
    for name, voxels in cases.items():
        write_hdf5(tmp_path / name / "mri_norm2.h5", z_scored(voxels), LABELS, order="xyz")
    (tmp_path / "train.list").write_text("C7\nA9\nB8\n")
    (tmp_path / "test.list").write_text("D6\n")
    prepared = prepare("la", tmp_path, labelled=2)
    assert [names(prepared, split) for split in ("train", "unlabelled", "val", "test")] == [
        ["C7", "A9"],
        ["B8"],
        [],
        ["D6"],
    ]
    sample = prepared.of("train")[0].load()
    np.testing.assert_allclose(sample.image[0], z_scored(cases["C7"]), rtol=1e-6)
    np.testing.assert_array_equal(sample.label_map, LABELS)
    assert prepared.of("unlabelled")[0].load().label_map is None
    # The deployed rule on the volume as the scanner gave it makes the same values.
    spec = load_dataset_spec("la").preprocessing
    geometry = centred_geometry(SHAPE, (0.625, 0.625, 0.625), AXIAL)
    deployed = preprocess(Volume(cases["C7"], geometry, "MR"), spec)
    np.testing.assert_allclose(sample.image[0], deployed.voxels[0], atol=1e-5)
    assert deployed.padding[0] < sample.padding[0] + 0.1


def test_la_from_whole_volumes_is_cut_around_its_label(tmp_path: Path) -> None:
    shape = (4, 170, 180)
    geometry = centred_geometry(shape, (0.625, 0.625, 0.625), AXIAL)
    labels = block_labels(shape, np.s_[1:3, 80:90, 60:90]) * np.uint8(255)
    rows = []
    for seed, name in enumerate(("a", "b", "c")):
        write_nifti(tmp_path / f"{name}.nii", random_volume(seed, shape, 0.0, 255.0), geometry)
        write_nifti(tmp_path / f"{name}_la.nii", labels, geometry)
        rows.append({"name": name, "image": f"{name}.nii", "label": f"{name}_la.nii"})
    rows[1]["split"], rows[2]["split"] = "test", "unlabelled"
    (tmp_path / "cases.json").write_text(json.dumps(rows))
    prepared = prepare("la", tmp_path, source=tmp_path / "cases.json")
    train, test = prepared.of("train")[0].load(), prepared.of("test")[0].load()
    z, y, x = train.spatial_shape
    assert z == 4, "all slices are kept"
    assert 112 + 2 * 10 <= y <= 112 + 2 * 20
    assert 112 + 10 <= x <= 112 + 2 * 20, "a margin ends where the volume ends"
    assert train.label_map is not None
    assert train.label_map.sum() == 2 * 10 * 30
    assert test.spatial_shape == prepared.of("unlabelled")[0].load().spatial_shape == shape
    np.testing.assert_allclose(test.image[0], z_scored(random_volume(1, shape, 0.0, 255.0)), atol=1e-5)


def test_pancreas_ct(tmp_path: Path) -> None:
    hu = {f"image000{i}": random_volume(i, SHAPE, -900.0, 900.0) for i in range(1, 6)}
    for name, voxels in hu.items():
        window = np.clip(voxels, -125.0, 275.0)
        path = tmp_path / "Pancreas_h5" / f"{name}_norm.h5"
        write_hdf5(path, z_scored(window), LABELS, order="xyz", dtype="f4")
    (tmp_path / "train.list").write_text("image0002\nimage0003\n")
    (tmp_path / "sample_test.list").write_text("image0005\n")
    (tmp_path / "test.list").write_text("image0004\nimage0005\n")
    prepared = prepare("pancreas_ct", tmp_path, labelled=1)
    assert [names(prepared, split) for split in ("train", "unlabelled", "val", "test")] == [
        ["image0002"],
        ["image0003"],
        ["image0005"],
        ["image0004", "image0005"],
    ]
    sample = prepared.of("train")[0].load()
    geometry = centred_geometry(SHAPE, (1.0, 1.0, 1.0), AXIAL)
    deployed = preprocess(Volume(hu["image0002"], geometry, "CT"), load_dataset_spec("pancreas_ct").preprocessing)
    np.testing.assert_allclose(sample.image[0], deployed.voxels[0], atol=1e-6)
    assert sample.padding[0] == deployed.padding[0] == 0.0
    np.testing.assert_array_equal(sample.label_map, LABELS)


def test_pancreas_ct_from_dicom_and_nifti(tmp_path: Path) -> None:
    """As the archive gives them: a series per patient, a label file each."""
    rows = []
    for number in (1, 2):
        phantom = CtPhantom(
            shape=(6, 24, 28), spacing_mm=(1.0, 1.0, 1.0), study=str(number), rescale=(1.0, -1024.0 - number)
        )
        write_ct_series(tmp_path / f"PANCREAS_000{number}", phantom)
        label = (phantom.labels == 1).astype(np.uint8)
        write_nifti(tmp_path / f"label000{number}.nii.gz", label, phantom.geometry, turn=True)
        rows.append(
            {"name": f"PANCREAS_000{number}", "image": f"PANCREAS_000{number}", "label": f"label000{number}.nii.gz"}
        )
    edit = {"split": "test", "name": "PANCREAS_0002"}
    rows[1] |= edit
    (tmp_path / "cases.json").write_text(json.dumps(rows))
    spec = load_dataset_spec("pancreas_ct")
    entries = find_cases(tmp_path / "cases.json", spec)
    assert [entry.patient for entry in entries] == ["0001", "0002"]
    phantom = CtPhantom(shape=(6, 24, 28), spacing_mm=(1.0, 1.0, 1.0))
    with pytest.raises(InputError, match="its pixels are those of case 1 of 2"):
        prepare_cases(entries, spec, tmp_path / "prepared")
    sample = prepare_cases(entries[:1], spec, tmp_path / "prepared").of("train")[0].load()
    expected = np.clip((phantom.hu + 125.0) / 400.0, 0, 1)
    np.testing.assert_allclose(sample.image[0], expected, atol=1e-6)
    np.testing.assert_array_equal(sample.label_map, phantom.labels == 1)


def test_pancreas_ct_from_whole_volumes_is_cut_around_its_label_along_every_axis(tmp_path: Path) -> None:
    geometry = centred_geometry((200, 180, 190), (1.0, 1.0, 1.0), AXIAL)
    labels = block_labels(geometry.shape, np.s_[60:160, 100:104, 80:100])
    write_nifti(tmp_path / "0001.nii.gz", np.zeros(geometry.shape, np.int16), geometry)
    write_nifti(tmp_path / "label0001.nii.gz", labels, geometry)
    (tmp_path / "cases.csv").write_text("name,image,label\nPANCREAS_0001,0001.nii.gz,label0001.nii.gz\n")
    sample = prepare("pancreas_ct", tmp_path, source=tmp_path / "cases.csv").of("train")[0].load()
    # Sides of the label's box, at least 96, and 25 voxels on either side.
    assert sample.spatial_shape == (100 + 50, 96 + 50, 96 + 50)
    assert sample.label_map is not None
    assert int(sample.label_map.sum()) == 100 * 4 * 20


def brain(seed: int) -> npt.NDArray[np.float32]:
    voxels = np.zeros((10, 20, 22), np.float32)
    voxels[2:8, 3:17, 4:19] = random_volume(seed, (6, 14, 15), 1.0, 2000.0)
    return voxels


def test_brats2019(tmp_path: Path) -> None:
    labels = block_labels((10, 20, 22), np.s_[3:6, 5:10, 6:12])
    lists: dict[str, list[str]] = {
        "train.txt": ["BraTS19_A_1_1", "BraTS19_B_2_1"],
        "val.txt": ["BraTS19_C_3_1"],
        "test.txt": ["BraTS19_D_4_1"],
    }
    box = np.s_[2:8, 3:17, 4:19]
    for seed, name in enumerate(name for listed in lists.values() for name in listed):
        inside = brain(seed)[box]
        clipped = np.minimum(inside, np.percentile(inside, 99.9))
        write_hdf5(tmp_path / "data" / f"{name}.h5", z_scored(clipped, clipped > 0), labels[box], order="xyz")
    for file, listed in lists.items():
        (tmp_path / file).write_text("".join(f"{name},\n" for name in listed))
    prepared = prepare("brats2019", tmp_path, labelled=1)
    assert {split: len(names(prepared, split)) for split in ("train", "unlabelled", "val", "test")} == dict.fromkeys(
        ("train", "unlabelled", "val", "test"), 1
    )
    sample = prepared.of("train")[0].load()
    # The deployed model sees the whole volume, air around the brain included, and the same values inside.
    geometry = centred_geometry((10, 20, 22), (1.0, 1.0, 1.0), AXIAL)
    deployed = preprocess(Volume(brain(0), geometry, "MR"), load_dataset_spec("brats2019").preprocessing)
    np.testing.assert_allclose(sample.image[0], deployed.voxels[0][box], atol=1e-5)
    assert deployed.voxels[0].shape == (10, 20, 22)


def test_brats2019_from_nifti(tmp_path: Path) -> None:
    geometry = centred_geometry((10, 20, 22), (1.0, 1.0, 1.0), AXIAL)
    labels = block_labels((10, 20, 22), np.s_[3:6, 5:10, 6:12])
    labels[4, 6, 7:9] = (2, 4)
    write_nifti(tmp_path / "x_flair.nii.gz", brain(0), geometry)
    write_nifti(tmp_path / "x_seg.nii.gz", labels, geometry)
    (tmp_path / "cases.csv").write_text("name,image,label\nx,x_flair.nii.gz,x_seg.nii.gz\n")
    sample = prepare("brats2019", tmp_path, source=tmp_path / "cases.csv").of("train")[0].load()
    assert sample.spatial_shape == (6, 14, 15), "cut to the brain"
    np.testing.assert_array_equal(sample.label_map, labels[2:8, 3:17, 4:19] > 0)


def test_acdc(tmp_path: Path) -> None:
    volumes = {
        f"patient00{p}_frame0{f}": random_volume(10 * p + f, (3, 20, 18), 0.0, 900.0)
        for p in (1, 2, 3, 4)
        for f in (1, 2)
    }
    labels = block_labels((3, 20, 18), np.s_[:, 2:6, 2:8], np.s_[:, 8:12, 4:9], np.s_[1:, 13:18, 5:12])
    scaled = {name: (v - v.min()) / (v.max() - v.min()) for name, v in volumes.items()}
    for name, voxels in scaled.items():
        write_hdf5(tmp_path / "data" / f"{name}.h5", voxels, labels)
        for z in range(3):
            write_hdf5(tmp_path / "data" / "slices" / f"{name}_slice_{z + 1}.h5", voxels[z], labels[z])
    slices = [f"patient00{p}_frame0{f}_slice_{z}" for p in (2, 1) for f in (1, 2) for z in (3, 1, 2)]
    (tmp_path / "train_slices.list").write_text("\n".join(slices))
    (tmp_path / "val.list").write_text("patient003_frame01\npatient003_frame02\n")
    (tmp_path / "test.list").write_text("patient004_frame01\npatient004_frame02\n")
    entries = find_cases(tmp_path, load_dataset_spec("acdc"), 6)
    assert {entry.patient for entry in entries if entry.split == "train"} == {"patient002"}
    prepared = prepare("acdc", tmp_path, labelled=6)
    assert names(prepared, "train") == slices[:6]
    assert names(prepared, "unlabelled") == slices[6:]
    sample = prepared.of("train")[0].load()
    rows, columns = ((2 * np.arange(256) + 1) * side // 512 for side in (20, 18))
    for channel in sample.image:
        np.testing.assert_array_equal(channel, scaled["patient002_frame01"][2][rows][:, columns])
    np.testing.assert_array_equal(sample.label_map, labels[2][rows][:, columns])
    assert sample.image.shape == (3, 256, 256)
    volume = prepared.of("test")[1].load()
    assert (volume.name, volume.image.shape) == ("patient004_frame02", (3, 3, 256, 256))
    # Deployed: the whole volume in the scanner's units.
    geometry = centred_geometry((3, 20, 18), (10.0, 1.5, 1.5), AXIAL)
    deployed = preprocess(
        Volume(volumes["patient004_frame02"], geometry, "MR"), load_dataset_spec("acdc").preprocessing
    )
    np.testing.assert_allclose(volume.image[1], deployed.voxels[0], atol=1e-6)


def test_acdc_slices_of_a_test_patient_are_refused(tmp_path: Path) -> None:
    (tmp_path / "train_slices.list").write_text("patient001_frame01_slice_1\npatient004_frame01_slice_2\n")
    (tmp_path / "val.list").write_text("patient003_frame01\n")
    (tmp_path / "test.list").write_text("patient004_frame02\n")
    with pytest.raises(InputError, match=r"1 patient\(s\) are in both the training cases and test"):
        find_cases(tmp_path, load_dataset_spec("acdc"), 1)


def picture_set(root: Path, numbers: dict[str, list[str]]) -> None:
    """Folders of pictures with masks; every picture is another one, numbers begin anew in every folder."""
    seed = 0
    for folder, stems in numbers.items():
        for stem in stems:
            seed += 1
            rng = np.random.default_rng(seed)
            write_picture(root / folder / "image" / stem, rng.integers(0, 256, (28, 56, 3), dtype=np.uint8))
            mask = np.zeros((28, 56), np.uint8)
            mask[4:20, 10:30] = 255
            write_picture(root / folder / "mask" / f"{Path(stem).stem}.png", mask)


PICTURE_PRESETS = {
    "polyp": (["1.png", "2.png"], ["TestDataset/CVC-300", "TestDataset/Kvasir"], ["1.png"]),
    "isic2018": (["ISIC_0000001.jpg", "ISIC_0000002.jpg"], ["TestDataset/ISIC"], ["ISIC_0000009.jpg"]),
    "thyroid_us": (["0000.jpg", "0001.jpg"], ["TestDataset/TN3K", "TestDataset/DDTI"], ["0000.jpg"]),
}


@pytest.mark.parametrize("name", PICTURE_PRESETS)
def test_pictures_with_masks(tmp_path: Path, name: str) -> None:
    labelled, tests, stems = PICTURE_PRESETS[name]
    unlabelled = [stem.replace("0000002", "0000003") for stem in labelled[1:]]
    validation = [stem.replace("0000001", "0000004") for stem in labelled[:1]]
    picture_set(
        tmp_path,
        {"labeled": labelled, "unlabeled": unlabelled, "val": validation, **dict.fromkeys(tests, stems)},
    )
    prepared = prepare(name, tmp_path)
    first = Path(labelled[0]).stem
    assert names(prepared, "train")[0] == f"labeled/{first}"
    assert len(prepared.of("unlabelled")) == len(prepared.of("val")) == 1
    assert names(prepared, "test") == [f"{folder}/{Path(stems[0]).stem}" for folder in sorted(tests)]
    sample = prepared.of("train")[0].load()
    assert sample.image.shape == (3, 224, 224)
    assert (sample.image.min() >= 0.0, sample.image.max() <= 1.0) == (True, True)
    assert sample.label_map is not None
    assert sample.label_map.sum() == 16 * 8 * 20 * 4, "28 x 56 pixels become 224 x 224"
    assert prepared.of("unlabelled")[0].load().label_map is None
    if name == "polyp":  # PNG, whose pixels are exact
        rgb = np.random.default_rng(1).integers(0, 256, (28, 56, 3), dtype=np.uint8)
        np.testing.assert_array_equal(sample.image[0], rgb[..., 2].repeat(8, 0).repeat(4, 1) / np.float32(255))


@pytest.mark.parametrize("name", ["polyp", "thyroid_us"])
def test_copy_of_a_training_picture_among_the_test_pictures_is_refused(tmp_path: Path, name: str) -> None:
    picture_set(tmp_path, {"labeled": ["1.png"], "TestDataset/A": ["7.png"]})
    copy = tmp_path / "TestDataset" / "A" / "image" / "7.png"
    copy.write_bytes((tmp_path / "labeled" / "image" / "1.png").read_bytes())
    with pytest.raises(InputError, match=r"\('TestDataset/A/7'\): its pixels are those of case 1 of 2 \('labeled/1'\)"):
        prepare(name, tmp_path)


def test_lesion_in_training_and_test_is_refused(tmp_path: Path) -> None:
    picture_set(tmp_path, {"labeled": ["ISIC_1.jpg"], "TestDataset/ISIC": ["ISIC_1.jpg"]})
    with pytest.raises(InputError, match=r"1 patient\(s\) are in both the training cases and test"):
        prepare("isic2018", tmp_path)
