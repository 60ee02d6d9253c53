"""Cases from folders and lists: in order, with their patients and splits, and no patient on both sides of a split."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest

from tests.dataset_phantom import dataset
from ucseg_runtime.errors import InputError
from ucseg_training.data.case_list import CaseEntry, find_cases, stem

SPEC = dataset()
LISTED = dataset(
    layout=[
        {"kind": "list", "split": "train", "list": "train.list", "image": "data/{case}.h5"},
        {"kind": "list", "split": "val", "list": "val.list", "image": "data/{case}.h5", "optional": True},
        {"kind": "list", "split": "test", "list": "test.list", "image": "data/{case}.h5", "label": "gt/{case}.h5"},
    ],
    patient=r"^(p\d+)",
    labelled={"few": 1, "half": 2},
    default_labelled="half",
)


def touch(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def listed(root: Path, train: str, test: str = "p9_a\n") -> Path:
    (root / "train.list").write_text(train, encoding="utf-8")
    (root / "test.list").write_text(test, encoding="utf-8")
    return root


def table(entries: tuple[CaseEntry, ...]) -> list[tuple[str, str, str]]:
    return [(entry.name, entry.patient, entry.split) for entry in entries]


# Folders


def test_folders_give_cases_in_order_with_labels_beside_them(tmp_path: Path) -> None:
    for name in ("b.nii.gz", "a.nii", "c.png"):
        touch(tmp_path / "train" / "images" / name)
    touch(tmp_path / "train" / "labels" / "a.nii.gz", tmp_path / "train" / "labels" / "b.nii")
    touch(tmp_path / "train" / "labels" / "c.png", tmp_path / "train" / "images" / ".hidden")
    touch(tmp_path / "unlabelled" / "images" / "d.nii", tmp_path / "unlabelled" / "labels" / "d.nii")
    (tmp_path / "test" / "images" / "series.1").mkdir(parents=True)
    touch(tmp_path / "test" / "labels" / "series.1.dcm")
    entries = find_cases(tmp_path, SPEC)
    assert table(entries) == [
        ("train/a", "a", "train"),
        ("train/b", "b", "train"),
        ("train/c", "c", "train"),
        ("unlabelled/d", "d", "unlabelled"),
        ("test/series.1", "series.1", "test"),
    ]
    labels = [None if entry.label is None else entry.label.name for entry in entries]
    assert labels == ["a.nii.gz", "b.nii", "c.png", None, "series.1.dcm"], "labels of unlabelled cases stay unseen"
    assert [entry.ordinal for entry in entries] == [1, 2, 3, 4, 5]
    assert entries[0].where == "case 1 of 5 ('train/a')"
    assert not any(entry.problem for entry in entries)


def test_missing_and_ambiguous_labels_are_problems_of_their_case(tmp_path: Path) -> None:
    touch(tmp_path / "train" / "images" / "a.nii", tmp_path / "train" / "images" / "b.nii")
    touch(tmp_path / "train" / "labels" / "b.nii", tmp_path / "train" / "labels" / "b.png")
    problems = {entry.name: entry.problem for entry in find_cases(tmp_path, SPEC)}
    assert problems == {"train/a": "it has 0 labels; expected one", "train/b": "it has 2 labels; expected one"}


def test_only_the_folder_of_the_image_is_exchanged_for_that_of_the_label(tmp_path: Path) -> None:
    spec = dataset(
        layout=[{"kind": "folder", "split": "train", "images": "image/image/*", "labels": "mask"}], patient=None
    )
    touch(tmp_path / "image" / "image" / "image1.png", tmp_path / "image" / "mask" / "image1.png")
    (entry,) = find_cases(tmp_path, spec)
    assert entry.label == tmp_path / "image" / "mask" / "image1.png"
    assert entry.name == entry.patient == "image/image1"


@pytest.mark.parametrize(
    ("name", "expected"),
    [("a.nii.gz", "a"), ("a.b.nii", "a.b"), ("a.H5", "a"), ("1.2.840", "1.2.840"), ("a.jpeg", "a"), ("a", "a")],
)
def test_stem_is_the_name_without_its_format(name: str, expected: str) -> None:
    assert stem(Path("folder.png") / name) == expected


# Lists inside the folder of a data set


def test_listed_cases_keep_the_order_of_the_list_and_the_first_are_labelled(tmp_path: Path) -> None:
    entries = find_cases(listed(tmp_path, "p3_b\np1_a, 0.7\n\n p2_a \n"), LISTED)
    assert table(entries) == [
        ("p3_b", "p3", "train"),
        ("p1_a", "p1", "train"),
        ("p2_a", "p2", "unlabelled"),
        ("p9_a", "p9", "test"),
    ]
    assert entries[0].images == (tmp_path / "data" / "p3_b.h5",)
    assert entries[0].label == tmp_path / "data" / "p3_b.h5", "HDF5 files hold both"
    assert entries[2].label is None
    assert entries[3].label == tmp_path / "gt" / "p9_a.h5"


@pytest.mark.parametrize(("labelled", "count"), [("few", 1), ("half", 2), (None, 2), (3, 3), (1, 1), ("3", 3)])
def test_number_of_labelled_cases_is_chosen_by_name_or_number(
    tmp_path: Path, labelled: str | int | None, count: int
) -> None:
    entries = find_cases(listed(tmp_path, "p1\np2\np3\n"), LISTED, labelled)
    splits = [entry.split for entry in entries if entry.split != "test"]
    assert splits == ["train"] * count + ["unlabelled"] * (3 - count)


@pytest.mark.parametrize("labelled", [0, -1, 4])
def test_impossible_number_of_labelled_cases_is_refused(tmp_path: Path, labelled: int) -> None:
    with pytest.raises(InputError, match=f"{labelled} labelled cases are asked for; the data set has 3"):
        find_cases(listed(tmp_path, "p1\np2\np3\n"), LISTED, labelled)


def test_unknown_name_of_a_number_is_refused_with_those_that_exist(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="called 'most'") as caught:
        find_cases(listed(tmp_path, "p1\n"), LISTED, "most")
    assert "few, half" in caught.value.hint


def test_empty_list_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="list train.list of the data set is empty"):
        find_cases(listed(tmp_path, "\n  \n"), LISTED)


def test_list_that_must_be_there_is_missed(tmp_path: Path) -> None:
    (tmp_path / "train.list").write_text("p1\np2\n", encoding="utf-8")
    with pytest.raises(InputError, match="list test.list of the data set cannot be read"):
        find_cases(tmp_path, LISTED)


def test_name_without_its_patient_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="'scan4' does not say which patient"):
        find_cases(listed(tmp_path, "p1\nscan4\n"), LISTED)


# Leaks


def test_patient_in_training_and_test_is_refused_by_number_not_by_name(tmp_path: Path) -> None:
    root = listed(tmp_path, "p1_a\np2_a\np3_a\n", "p2_b\np3_b\np4_b\n")
    with pytest.raises(InputError, match=r"2 patient\(s\) are in both the training cases and test") as caught:
        find_cases(root, LISTED)
    assert "p2" not in str(caught.value)
    assert caught.value.exit_code == 3


def test_patient_of_an_unlabelled_case_leaks_as_well(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"1 patient\(s\) are in both the training cases and test"):
        find_cases(listed(tmp_path, "p1_a\np2_a\np5_a\n", "p5_b\n"), LISTED)


def test_patient_may_be_in_val_and_test_but_that_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    root = listed(tmp_path, "p1\np2\n", "p8\np9\n")
    (root / "val.list").write_text("p8\n", encoding="utf-8")
    with caplog.at_level(logging.WARNING):
        entries = find_cases(root, LISTED)
    assert [entry.split for entry in entries] == ["train", "train", "val", "test", "test"]
    assert "1 patients are in both val and test" in caplog.text


def test_patient_of_training_in_val_is_refused(tmp_path: Path) -> None:
    root = listed(tmp_path, "p1\np2\n")
    (root / "val.list").write_text("p2\n", encoding="utf-8")
    with pytest.raises(InputError, match="training cases and val"):
        find_cases(root, LISTED)


# Lists of the user

ROWS = [
    {"name": "one", "patient": "A", "image": "img/1.nii", "label": "seg/1.nii", "split": "train"},
    {"name": "two", "patient": "B", "image": "img/2.nii"},
    {"name": "three", "patient": "C", "image": "img/3.nii", "label": "seg/3.nii"},
    {"name": "four", "patient": "D", "image": "img/4.nii", "label": "seg/4.nii", "split": "unlabelled"},
    {"name": "five", "patient": "E", "image": "img/5.nii", "label": "seg/5.nii", "split": "test"},
]


def write_json(path: Path, rows: object) -> Path:
    path.write_text(json.dumps(rows), encoding="utf-8")
    return path


def write_csv(path: Path, rows: list[dict[str, str]]) -> Path:
    columns = ["name", "patient", "image", "label", "split"]
    lines = [",".join(columns), *(",".join(row.get(column, "") for column in columns) for row in rows)]
    path.write_text("\ufeff" + "\r\n".join(lines), encoding="utf-8")  # as spreadsheets export it
    return path


@pytest.mark.parametrize("suffix", ["json", "csv"])
def test_list_of_the_user_says_everything(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"cases.{suffix}"
    entries = find_cases(write_json(path, ROWS) if suffix == "json" else write_csv(path, ROWS), SPEC)
    assert table(entries) == [
        ("one", "A", "train"),
        ("two", "B", "unlabelled"),
        ("three", "C", "train"),
        ("four", "D", "unlabelled"),
        ("five", "E", "test"),
    ]
    assert [entry.label is not None for entry in entries] == [True, False, True, False, True]
    assert entries[0].images == (tmp_path / "img" / "1.nii",)


def test_patient_of_a_list_may_follow_from_the_name(tmp_path: Path) -> None:
    rows = [{"name": "p1_left", "image": "a.nii", "label": "b.nii"}, {"name": "p1_right", "image": "c.nii"}]
    entries = find_cases(write_json(tmp_path / "cases.json", rows), LISTED)
    assert [entry.patient for entry in entries] == ["p1", "p1"]


def test_several_images_are_channels(tmp_path: Path) -> None:
    row: dict[str, Any] = {"name": "a", "image": ["t1.nii", "t2.nii"], "label": "s.nii"}
    (entry,) = find_cases(write_json(tmp_path / "cases.json", [row]), SPEC)
    (same,) = find_cases(write_csv(tmp_path / "cases.csv", [{**row, "image": "t1.nii; t2.nii"}]), SPEC)
    assert entry.images == same.images == (tmp_path / "t1.nii", tmp_path / "t2.nii")


def test_case_to_be_scored_without_label_is_a_problem_of_that_case(tmp_path: Path) -> None:
    path = write_json(tmp_path / "cases.json", [ROWS[0], {"name": "x", "image": "x.nii", "split": "test"}])
    assert [entry.problem for entry in find_cases(path, SPEC)] == ["", "it has no label and is in the split test"]


def test_labelled_number_cuts_a_list_only_when_asked_for(tmp_path: Path) -> None:
    path = write_json(tmp_path / "cases.json", ROWS)
    spec = dataset(labelled={"one": 1}, default_labelled="one")
    assert sum(entry.split == "train" for entry in find_cases(path, spec)) == 2
    assert sum(entry.split == "train" for entry in find_cases(path, spec, "one")) == 1


@pytest.mark.parametrize("patient", ["A", "B", "D"])  # labelled, without a label, with one that is not looked at
def test_leak_in_a_list_of_the_user_is_refused(tmp_path: Path, patient: str) -> None:
    rows = [*ROWS, {"name": "six", "patient": patient, "image": "6.nii", "label": "6s.nii", "split": "val"}]
    with pytest.raises(InputError, match="training cases and val"):
        find_cases(write_json(tmp_path / "cases.json", rows), SPEC)


@pytest.mark.parametrize(
    ("rows", "reason"),
    [
        ([], "holds no case"),
        ({"name": "a"}, "not a JSON array of objects"),
        (["a"], "not a JSON array of objects"),
        ([{"name": "a"}], "case 1 of the list has no image"),
        ([{"image": "a.nii"}], "case 1 of the list has no name"),
        ([ROWS[0], {"name": "b", "image": 3}], "case 2 of the list: image is int"),
        ([{"name": "b", "image": ["a", 3]}], "image is not a path or an array of paths"),
        ([{"name": "b", "image": "a", "split": "training"}], "unknown split"),
        ([{"name": "b", "image": "a", "mask": "c"}], "unknown fields: mask"),
        ([{"name": "b", "image": "a", "patient": 7}], "patient is int"),
    ],
)
def test_list_that_cannot_be_meant_is_refused(tmp_path: Path, rows: object, reason: str) -> None:
    with pytest.raises(InputError, match=reason):
        find_cases(write_json(tmp_path / "canary.json", rows), SPEC)


@pytest.mark.parametrize(
    ("name", "content"), [("canary.json", b"{"), ("canary.json", b"\xff\xfe"), ("canary.csv", b"\xff")]
)
def test_damaged_list_is_refused_without_its_path(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match="list of cases cannot be read") as caught:
        find_cases(tmp_path / name, SPEC)
    assert "canary" not in str(caught.value)


def test_what_is_neither_folder_nor_list_is_refused(tmp_path: Path) -> None:
    touch(tmp_path / "canary.txt")
    with pytest.raises(InputError, match="neither a folder nor a list") as caught:
        find_cases(tmp_path / "canary.txt", SPEC)
    assert "canary" not in str(caught.value)


def test_empty_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no case"):
        find_cases(tmp_path, SPEC)
