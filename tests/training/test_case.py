"""Cases survive the disk unchanged; other files are refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.training_phantom import block_case
from ucseg_runtime.errors import InputError
from ucseg_training.data.case import bit, load_case, save_case


@pytest.mark.parametrize(("label", "expected"), [(1, 0b1), (2, 0b10), (8, 0b10000000)])
def test_every_class_has_its_own_bit(label: int, expected: int) -> None:
    assert bit(label) == expected
    assert bit(label).dtype == np.uint8


def test_case_comes_back_as_it_was_saved(tmp_path: Path) -> None:
    case = block_case("patient")
    save_case(case, tmp_path / "case.npz")
    found = load_case(tmp_path / "case.npz")
    assert found.name == "patient"
    assert found.geometry.matches(case.geometry, tolerance_mm=0.0)
    for part, dtype in (("voxels", np.float32), ("label_map", np.uint8), ("known", np.uint8)):
        np.testing.assert_array_equal(getattr(found, part), getattr(case, part))
        assert getattr(found, part).dtype == dtype
    assert [path.name for path in tmp_path.iterdir()] == ["case.npz"]


def test_case_file_holds_no_pickle(tmp_path: Path) -> None:
    save_case(block_case(), tmp_path / "case.npz")
    with np.load(tmp_path / "case.npz", allow_pickle=False) as stored:
        assert all(stored[name].dtype.kind in "fuU" for name in stored.files)


def test_case_with_pickled_objects_is_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "case.npz", voxels=np.array([{}], dtype=object))
    with pytest.raises(InputError, match="cannot be read"):
        load_case(tmp_path / "case.npz")


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(lambda content: content[: len(content) // 2], id="truncated"),
        pytest.param(lambda content: b"", id="empty"),
        pytest.param(lambda content: b"not an archive", id="another format"),
    ],
)
def test_damaged_case_is_refused_without_its_path(tmp_path: Path, damage: object) -> None:
    path = tmp_path / "canary.npz"
    save_case(block_case(), path)
    assert callable(damage)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(InputError, match="Delete the folder") as caught:
        load_case(path)
    assert "canary" not in str(caught.value)
    assert caught.value.exit_code == 3


def test_file_that_lacks_an_array_is_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "case.npz", voxels=np.zeros((2, 2, 2), dtype=np.float32))
    with pytest.raises(InputError, match="KeyError"):
        load_case(tmp_path / "case.npz")


@pytest.mark.parametrize("part", ["voxels", "label_map", "known"])
def test_arrays_of_different_shapes_are_no_case(part: str) -> None:
    case = block_case()
    with pytest.raises(InputError, match=r"do not belong together.*\(24, 40, 41\)"):
        replace(case, **{part: getattr(case, part)[..., :-1]})
