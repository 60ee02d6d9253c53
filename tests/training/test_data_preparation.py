"""Preparation is the runtime's own, crops are for training alone, and bad cases are refused or listed."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.dataset_phantom import (
    block_labels,
    dataset,
    plane_fields,
    random_volume,
    write_hdf5,
    write_nifti,
    write_picture,
)
from tests.volume_phantom import STRAIGHT, centred_geometry
from ucseg_runtime.errors import InputError
from ucseg_runtime.preprocess import preprocess
from ucseg_runtime.volume import Volume
from ucseg_training.data import prepared_set
from ucseg_training.data.case_list import CaseEntry
from ucseg_training.data.crops import label_box
from ucseg_training.data.dataset_spec import DatasetSpec, LabelCrop, Split
from ucseg_training.data.preparation import prepare_case
from ucseg_training.data.prepared_set import PreparedSet, prepare_cases
from ucseg_training.data.sample import Sample

SHAPE = (6, 20, 24)
GRID = centred_geometry(SHAPE, (3.0, 1.5, 1.0), STRAIGHT[:, ::-1])
LABELS = block_labels(SHAPE, np.s_[1:4, 4:12, 6:14], np.s_[3:5, 12:18, 16:22])
PLANES = DatasetSpec.model_validate(plane_fields())
RULES: dict[str, dict[str, Any]] = {
    "window": {"kind": "clip_min_max", "low": -100, "high": 300},
    "z-score": {"kind": "z_score"},
    "window and z-score": {"kind": "clip_z_score", "low": -100, "high": 300},
    "percentiles": {"kind": "percentile_clip", "upper": 99, "scale": "z_score", "scale_over": "positive"},
    "knots": {"kind": "piecewise_linear", "knots": [[-100, 0], [300, 1]]},
}


def entry(
    folder: Path,
    name: str = "a",
    split: Split = "train",
    *,
    voxels: np.ndarray[Any, Any] | None = None,
    labels: np.ndarray[Any, Any] | None = LABELS,
    seed: int = 0,
) -> CaseEntry:
    """A NIfTI case in a folder."""
    image = write_nifti(folder / f"{name}.nii", random_volume(seed, SHAPE) if voxels is None else voxels, GRID)
    label = None if labels is None else write_nifti(folder / f"{name}_label.nii", labels, GRID)
    return CaseEntry(name, name, (image,), None if split == "unlabelled" else label, split, ordinal=1, total=1)


def numbered(*entries: CaseEntry) -> list[CaseEntry]:
    return [replace(item, ordinal=i, total=len(entries)) for i, item in enumerate(entries, start=1)]


# The same as deployed


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES.keys())
@pytest.mark.parametrize("spacing", [[3.0, 1.5, 1.0], [2.0, 2.0, 2.0]])
def test_image_is_what_the_deployed_model_sees(tmp_path: Path, rule: dict[str, Any], spacing: list[float]) -> None:
    spec = dataset(preprocessing={"spacing_mm": spacing, "intensity": rule, "padding_value": -200})
    sample = prepare_case(entry(tmp_path), spec).sample
    deployed = preprocess(Volume(random_volume(0, SHAPE), GRID, "CT"), spec.preprocessing)
    np.testing.assert_array_equal(sample.image, deployed.voxels)
    assert sample.padding.tolist() == [np.float32(deployed.padding[0])]
    assert sample.image.dtype == np.float32


def test_label_follows_its_image_through_turn_and_resampling(tmp_path: Path) -> None:
    spec = dataset(preprocessing={"spacing_mm": [1.5, 1.5, 1.0], "intensity": {"kind": "identity"}, "padding_value": 0})
    voxels = LABELS.astype(np.float32) * 100.0
    image = write_nifti(tmp_path / "i.nii", voxels, GRID, turn=True)  # the file runs to the right and to the front
    label = write_nifti(tmp_path / "l.nii", LABELS, GRID, turn=True)
    sample = prepare_case(CaseEntry("a", "a", (image,), label, "train"), spec).sample
    assert sample.label_map is not None
    assert sample.label_map.shape == sample.image.shape[1:] == (12, 20, 24)
    np.testing.assert_array_equal(sample.label_map, LABELS.repeat(2, axis=0))
    inside = sample.label_map > 0
    assert np.corrcoef(sample.image[0][inside], sample.label_map[inside])[0, 1] > 0.9


def test_unlabelled_case_has_no_label(tmp_path: Path) -> None:
    assert prepare_case(entry(tmp_path, split="unlabelled"), dataset()).sample.label_map is None


# Crops


def crop_spec(**crop: Any) -> DatasetSpec:  # noqa: ANN401
    rule = {"spacing_mm": [3.0, 1.5, 1.0], "intensity": {"kind": "z_score"}, "padding_value": -1000}
    return dataset(preprocessing=rule, crop=crop)


def test_label_box_grows_to_its_least_side_and_then_by_its_margin() -> None:
    labels = np.zeros((10, 40, 60), np.uint8)
    labels[4:6, 10:20, 30:36] = 1
    rng = np.random.default_rng(0)
    fixed = LabelCrop(axes="yx", margin_voxels=(5, 5), least_voxels=12)
    assert label_box(labels, fixed, rng) == (slice(0, 10), slice(4, 26), slice(22, 44))
    odd = LabelCrop(axes="yx", margin_voxels=(0, 0), least_voxels=13)
    assert label_box(labels, odd, rng) == (slice(0, 10), slice(9, 22), slice(27, 40))
    whole = LabelCrop(axes="zyx", margin_voxels=(25, 25), least_voxels=0)
    assert label_box(labels, whole, rng) == (slice(0, 10), slice(0, 40), slice(5, 60)), "it ends where the volume ends"
    drawn = [label_box(labels, LabelCrop(axes="yx", margin_voxels=(3, 6)), rng) for _ in range(60)]
    assert {box[1].start for box in drawn} == {10 - margin for margin in range(3, 7)}
    assert {box[2].stop for box in drawn} == {36 + margin for margin in range(3, 7)}


def test_training_case_is_cut_after_the_intensities_were_taken_of_the_whole(tmp_path: Path) -> None:
    spec = crop_spec(kind="label_box", axes="yx", margin_voxels=[1, 1])
    case = entry(tmp_path)
    sample = prepare_case(case, spec).sample
    whole = prepare_case(replace(case, split="test"), spec).sample
    assert whole.spatial_shape == SHAPE, "cases to be scored are whole, as the deployed model sees them"
    box = np.s_[:, 3:19, 5:23]
    np.testing.assert_array_equal(sample.image[0], whole.image[0][box])
    assert sample.label_map is not None
    np.testing.assert_array_equal(sample.label_map, LABELS[box])


def test_crop_of_a_case_does_not_depend_on_its_place_in_the_list(tmp_path: Path) -> None:
    spec = crop_spec(kind="label_box", axes="zyx", margin_voxels=[0, 8])
    one = prepare_case(entry(tmp_path, "a"), spec).sample
    again = prepare_case(replace(entry(tmp_path, "a"), ordinal=7), spec).sample
    others = {prepare_case(entry(tmp_path, f"b{i}"), spec).sample.spatial_shape for i in range(4)}
    assert one.spatial_shape == again.spatial_shape
    assert len(others) > 1


@pytest.mark.parametrize("labels", [None, np.zeros(SHAPE, np.uint8)])
def test_case_without_anything_labelled_stays_whole(tmp_path: Path, labels: np.ndarray[Any, Any] | None) -> None:
    spec = crop_spec(kind="label_box", margin_voxels=[1, 1])
    split: Split = "unlabelled" if labels is None else "train"
    assert prepare_case(entry(tmp_path, split=split, labels=labels), spec).sample.spatial_shape == SHAPE


@pytest.mark.parametrize("split", ["train", "unlabelled"])
def test_box_of_the_image_needs_no_label(tmp_path: Path, split: Split) -> None:
    voxels = np.zeros(SHAPE, np.float32)
    voxels[2:5, 3:17, 4:20] = random_volume(3, (3, 14, 16), 1.0, 100.0)
    rule = {"kind": "percentile_clip", "upper": 99.9, "scale": "z_score", "scale_over": "positive"}
    spec = dataset(
        preprocessing={"spacing_mm": [3.0, 1.5, 1.0], "intensity": rule, "padding_value": 0}, crop={"kind": "image_box"}
    )
    sample = prepare_case(entry(tmp_path, split=split, voxels=voxels), spec).sample
    assert sample.spatial_shape == (3, 14, 16)
    assert sample.image.min() > sample.padding[0]


# HDF5 that others have prepared


def hdf5_spec(**rule: Any) -> DatasetSpec:  # noqa: ANN401
    return dataset(
        preprocessing={
            "spacing_mm": [3.0, 1.5, 1.0],
            "intensity": {"kind": "clip_min_max", "low": -125, "high": 275},
            "padding_value": -1000,
        },
        hdf5={"axis_order": "xyz", "spacing_mm": [3.0, 1.5, 1.0], **rule},
        crop={"kind": "label_box", "margin_voxels": [0, 0]},
    )


def hdf5_entry(folder: Path, voxels: np.ndarray[Any, Any]) -> CaseEntry:
    path = write_hdf5(folder / "a.h5", voxels, LABELS, order="xyz")
    return CaseEntry("a", "a", (path,), path, "train")


def test_values_that_are_normalised_already_stay_as_they_are(tmp_path: Path) -> None:
    values = random_volume(5, SHAPE, -3.0, 3.0)
    sample = prepare_case(hdf5_entry(tmp_path, values), hdf5_spec(intensity={"kind": "identity"})).sample
    np.testing.assert_array_equal(sample.image[0], values)
    assert sample.padding[0] == values.min(), "the space around looks like the darkest voxel"
    assert sample.spatial_shape == SHAPE, "others have cut it already"


def test_both_conventions_of_pancreas_files_give_the_deployed_values(tmp_path: Path) -> None:
    """Files scaled to [0, 1], and files with a z-score over the label's box, which the deployed model cannot know."""
    hu = random_volume(6, SHAPE, -600.0, 600.0)
    spec = hdf5_spec(intensity={"kind": "min_max"})
    deployed = preprocess(Volume(hu, GRID, "CT"), spec.preprocessing).voxels[0]
    window = np.clip(hu, -125.0, 275.0)
    for stored in ((window + 125.0) / 400.0, (window - window.mean()) / window.std()):
        sample = prepare_case(hdf5_entry(tmp_path, stored.astype(np.float32)), spec).sample
        np.testing.assert_allclose(sample.image[0], deployed, atol=1e-6)
        assert sample.padding[0] == 0.0


def test_values_in_modality_units_take_the_deployed_rule_and_the_crop(tmp_path: Path) -> None:
    hu = random_volume(7, SHAPE)
    spec = hdf5_spec(cropped=False)
    sample = prepare_case(hdf5_entry(tmp_path, hu), spec).sample
    deployed = preprocess(Volume(hu, GRID, "CT"), spec.preprocessing).voxels[0]
    np.testing.assert_array_equal(sample.image[0], deployed[:, 4:18, 6:22])


# Planes


def test_picture_is_resized_to_the_nearest_pixel_and_turned_to_blue_first(tmp_path: Path) -> None:
    rgb = np.random.default_rng(0).integers(0, 256, (16, 64, 3), dtype=np.uint8)
    mask = (rgb[..., 0] > 127).astype(np.uint8) * 255
    image, label = write_picture(tmp_path / "i.png", rgb), write_picture(tmp_path / "m.png", mask)
    sample = prepare_case(CaseEntry("a", "a", (image,), label, "train"), PLANES).sample
    rows, columns = np.arange(32) // 2, np.arange(32) * 2 + 1
    near = rgb[rows][:, columns]
    np.testing.assert_array_equal(sample.image, (near[..., ::-1] / np.float32(255)).transpose(2, 0, 1))
    assert sample.label_map is not None
    np.testing.assert_array_equal(sample.label_map, mask[rows][:, columns] // 255)
    assert (sample.label_map == (sample.image[2] > 0.5)).all(), "red comes last, and the label moved with it"
    assert sample.spatial_shape == (32, 32)


def grey_planes() -> DatasetSpec:
    rule = {
        "plane_shape": [32, 32],
        "orientation": "acquired",
        "interpolation": "nearest",
        "intensity": {"kind": "min_max"},
        "padding_value": -500,
    }
    return DatasetSpec.model_validate(
        plane_fields(preprocessing=rule, labels={"kind": "values", "values": {1: 1, 2: 1}})
    )


def test_volume_for_networks_of_planes_is_scaled_as_a_whole_and_repeated(tmp_path: Path) -> None:
    sample = prepare_case(entry(tmp_path, voxels=random_volume(0, SHAPE)), grey_planes()).sample
    assert sample.image.shape == (3, 6, 32, 32)
    np.testing.assert_array_equal(sample.image[0], sample.image[2])
    assert (sample.image.min(), sample.image.max()) == (0.0, 1.0)
    assert sample.image[:, 0].max() < 1.0 or sample.image[:, 0].min() > 0.0, "one slice does not have both ends"


def test_every_slice_of_a_training_volume_is_a_sample_and_scored_volumes_stay_whole(tmp_path: Path) -> None:
    cases = [entry(tmp_path / split, split, split, seed=i) for i, split in enumerate(("train", "unlabelled", "test"))]
    prepared = prepare_cases(numbered(*cases), grey_planes(), tmp_path / "cache")
    assert [sample.name for sample in prepared.of("train")] == [f"train slice {z}" for z in range(1, 7)]
    assert [sample.shape for sample in prepared.of("unlabelled")] == [(3, 32, 32)] * 6
    (scored,) = prepared.of("test")
    whole = scored.load()
    assert whole.spatial_shape == (6, 32, 32)
    for z, sample in enumerate(prepared.of("train")):
        plane = sample.load()
        assert plane.label_map is not None
        assert (sample.case, plane.name, plane.spatial_shape) == ("train", f"train slice {z + 1}", (32, 32))
    np.testing.assert_array_equal(
        np.stack([sample.load().image for sample in prepared.of("train")], axis=1),
        prepare_case(cases[0], grey_planes()).sample.image,
    )


# The folder of prepared samples


def loaded(prepared: PreparedSet) -> list[Sample]:
    return [sample.load() for sample in prepared.samples]


def test_cases_are_prepared_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cases = numbered(entry(tmp_path, "a", seed=1), entry(tmp_path, "b", "unlabelled", seed=2))
    first = loaded(prepare_cases(cases, dataset(), tmp_path / "cache"))
    monkeypatch.setattr(prepared_set, "prepare_case", lambda *_: pytest.fail("it has been prepared before"))
    done: list[tuple[int, int]] = []
    second = prepare_cases(cases, dataset(), tmp_path / "cache", progress=lambda *counts: done.append(counts))
    for one, other in zip(first, loaded(second), strict=True):
        np.testing.assert_array_equal(one.image, other.image)
        assert (one.name, one.patient) == (other.name, other.patient)
    assert done == [(1, 2), (2, 2)]


def other_voxels(case: CaseEntry, spec: DatasetSpec) -> tuple[CaseEntry, DatasetSpec]:
    write_nifti(case.images[0], random_volume(99, SHAPE), GRID)
    return case, spec


def other_label(case: CaseEntry, spec: DatasetSpec) -> tuple[CaseEntry, DatasetSpec]:
    assert case.label is not None
    write_nifti(case.label, LABELS // 2, GRID)
    return case, spec


def other_window(case: CaseEntry, spec: DatasetSpec) -> tuple[CaseEntry, DatasetSpec]:
    rule = {**spec.preprocessing.model_dump(), "intensity": {"kind": "min_max"}}
    return case, dataset(preprocessing=rule)


def other_split(case: CaseEntry, spec: DatasetSpec) -> tuple[CaseEntry, DatasetSpec]:
    return replace(case, label=None, split="unlabelled"), spec


@pytest.mark.parametrize("change", [other_voxels, other_label, other_window, other_split])
def test_case_is_prepared_anew_when_anything_changed(
    tmp_path: Path, change: Callable[[CaseEntry, DatasetSpec], tuple[CaseEntry, DatasetSpec]]
) -> None:
    case, rest = entry(tmp_path, "a", seed=1), entry(tmp_path, "rest", seed=2)
    before = loaded(prepare_cases(numbered(rest, case), dataset(), tmp_path / "cache"))[1]
    case, spec = change(case, dataset())
    after = loaded(prepare_cases(numbered(rest, case), spec, tmp_path / "cache"))[1]
    same_label = after.label_map is not None and np.array_equal(before.label_map, after.label_map)
    assert not (np.array_equal(before.image, after.image) and same_label)


def test_name_of_the_case_may_change_without_preparing_it_anew(tmp_path: Path) -> None:
    case = entry(tmp_path, "a")
    prepare_cases([case], dataset(), tmp_path / "cache")
    (found,) = loaded(prepare_cases([replace(case, name="b", patient="B")], dataset(), tmp_path / "cache"))
    assert (found.name, found.patient) == ("b", "B")
    assert len(list((tmp_path / "cache").iterdir())) == 1


def test_damaged_prepared_sample_is_made_again(tmp_path: Path) -> None:
    case = entry(tmp_path, "a")
    (before,) = loaded(prepare_cases([case], dataset(), tmp_path / "cache"))
    (path,) = (tmp_path / "cache").iterdir()
    path.write_bytes(path.read_bytes()[:100])
    (after,) = loaded(prepare_cases([case], dataset(), tmp_path / "cache"))
    np.testing.assert_array_equal(before.image, after.image)


# Bad cases


def bad_case(folder: Path, kind: str) -> CaseEntry:
    """A case with one thing wrong; the good case beside it has seed 1."""
    nan = random_volume(2, SHAPE)
    nan[0, 0, 0] = np.nan
    infinite = random_volume(2, SHAPE)
    infinite[0, 0, 0] = np.inf
    beyond = LABELS.copy()
    beyond[0, 0, 0] = 3
    makers: dict[str, Callable[[], CaseEntry]] = {
        "NaN": lambda: entry(folder, "bad", voxels=nan),
        "infinite": lambda: entry(folder, "bad", voxels=infinite),
        "beyond": lambda: entry(folder, "bad", labels=beyond, seed=2),
        "grid": lambda: _with_label(entry(folder, "bad", seed=2), folder, LABELS[:-1]),
        "damaged": lambda: _damaged(entry(folder, "bad", seed=2)),
        "missing": lambda: replace(entry(folder, "bad", seed=2), images=(folder / "nowhere.nii",)),
        "no label": lambda: replace(entry(folder, "bad", seed=2), label=None, problem="it has 0 labels; expected one"),
        "same pixels": lambda: entry(folder, "bad", seed=1),
        "same name": lambda: replace(entry(folder, "bad", seed=2), name="good"),
    }
    return makers[kind]()


def _with_label(case: CaseEntry, folder: Path, labels: np.ndarray[Any, Any]) -> CaseEntry:
    affine = GRID.affine
    geometry = type(GRID)(affine, (labels.shape[0], labels.shape[1], labels.shape[2]))
    return replace(case, label=write_nifti(folder / "short.nii", labels, geometry))


def _damaged(case: CaseEntry) -> CaseEntry:
    case.images[0].write_bytes(case.images[0].read_bytes()[:400])
    return case


BAD = {
    "NaN": "1 voxels of its image are NaN or infinite",
    "infinite": "1 voxels of its image are NaN or infinite",
    "beyond": "belong to no class: 3; expected 0, 1, 2",
    "grid": "another grid than the image: 5 x 20 x 24 voxels",
    "damaged": "its image cannot be read",
    "missing": "its image does not exist",
    "no label": "it has 0 labels; expected one",
    "same pixels": r"its pixels are those of case 1 of 3 \('good'\)",
    "same name": r"case 1 of 3 \('good'\) has the same name",
}


@pytest.mark.parametrize("kind", BAD)
def test_bad_case_is_refused_by_number_name_and_reason(tmp_path: Path, kind: str) -> None:
    folder = tmp_path / "canary"
    cases = numbered(entry(folder, "good", seed=1), bad_case(folder, kind), entry(folder, "last", seed=3))
    name = "good" if kind == "same name" else "bad"
    with pytest.raises(InputError, match=rf"case 2 of 3 \('{name}'\): .*{BAD[kind]}") as caught:
        prepare_cases(cases, dataset(), tmp_path / "cache")
    assert "--skip-bad-cases" in caught.value.hint
    assert "canary" not in str(caught.value)
    assert caught.value.exit_code == 3


@pytest.mark.parametrize("kind", BAD)
def test_bad_case_is_left_out_and_listed_when_asked_for(tmp_path: Path, kind: str) -> None:
    cases = numbered(entry(tmp_path, "good", seed=1), bad_case(tmp_path, kind), entry(tmp_path, "last", seed=3))
    prepared = prepare_cases(cases, dataset(), tmp_path / "cache", skip_bad_cases=True)
    assert [sample.name for sample in prepared.samples] == ["good", "last"]
    (refused,) = prepared.refused
    assert (refused.ordinal, refused.total, refused.name) == (2, 3, "good" if kind == "same name" else "bad")
    assert re.search(BAD[kind], refused.reason)
    assert refused.code.startswith("UCSEG-E")


def test_copies_are_found_among_prepared_samples_too(tmp_path: Path) -> None:
    good, copy = entry(tmp_path, "good", seed=1), entry(tmp_path, "copy", "test", seed=1)
    prepare_cases([good], dataset(), tmp_path / "cache")
    with pytest.raises(InputError, match=r"case 2 of 2 \('copy'\): its pixels are those of case 1 of 2 \('good'\)"):
        prepare_cases(numbered(good, copy), dataset(), tmp_path / "cache")


def test_case_may_choose_the_weights_and_score_them(tmp_path: Path) -> None:
    cases = numbered(
        entry(tmp_path, "a", seed=1), entry(tmp_path, "b", "val", seed=2), entry(tmp_path, "b", "test", seed=2)
    )
    prepared = prepare_cases(cases, dataset(), tmp_path / "cache")
    assert [(sample.name, sample.split) for sample in prepared.samples] == [("a", "train"), ("b", "val"), ("b", "test")]


@pytest.mark.parametrize("skip", [True, False])
def test_data_set_without_a_usable_training_case_is_refused(tmp_path: Path, skip: bool) -> None:
    unlabelled = entry(tmp_path, "u", "unlabelled", seed=1)
    cases = numbered(unlabelled, *([bad_case(tmp_path, "NaN")] if skip else []))
    with pytest.raises(InputError, match=f"no labelled training case is left; {int(skip)} of {len(cases)} cases"):
        prepare_cases(cases, dataset(), tmp_path / "cache", skip_bad_cases=skip)
