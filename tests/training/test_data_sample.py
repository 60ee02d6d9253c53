"""Samples survive the disk unchanged, slices of volumes can be read alone, and other files are refused."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from tests.dataset_phantom import random_volume
from tests.training_phantom import AIR_HU, block_case
from ucseg_runtime.errors import InputError, OutputError
from ucseg_runtime.intensity import PiecewiseLinear, ZScore
from ucseg_training.data.sample import Sample, inspect_sample, load_sample, sample_from_case, save_sample

SHAPE = (3, 4, 5)


def volume(*, labelled: bool = True, channels: int = 2) -> Sample:
    rng = np.random.default_rng(0)
    return Sample(
        name="a",
        patient="A",
        image=random_volume(1, (channels, *SHAPE)),
        label_map=rng.integers(0, 3, SHAPE, dtype=np.uint8) if labelled else None,
        known=rng.integers(0, 4, SHAPE, dtype=np.uint8) if labelled else None,
        padding=np.arange(channels, dtype=np.float32),
    )


def assert_same(found: Sample, expected: Sample) -> None:
    assert (found.name, found.patient) == (expected.name, expected.patient)
    for part in ("image", "label_map", "known", "padding"):
        one, other = getattr(found, part), getattr(expected, part)
        assert (one is None) == (other is None)
        if one is not None:
            np.testing.assert_array_equal(one, other)
            assert one.dtype == other.dtype


@pytest.mark.parametrize("labelled", [True, False])
def test_sample_comes_back_as_it_was_saved(tmp_path: Path, labelled: bool) -> None:
    sample = volume(labelled=labelled)
    save_sample(sample, tmp_path / "a.safetensors", "cafe")
    assert_same(load_sample(tmp_path / "a.safetensors", "a", "A"), sample)
    stored = inspect_sample(tmp_path / "a.safetensors")
    assert (stored.shape, stored.pixel_digest) == ((2, *SHAPE), "cafe")
    assert [path.name for path in tmp_path.iterdir()] == ["a.safetensors"], "nothing half-written is left"


@pytest.mark.parametrize("labelled", [True, False])
def test_slice_is_read_alone(tmp_path: Path, labelled: bool) -> None:
    sample = volume(labelled=labelled)
    save_sample(sample, tmp_path / "a.safetensors", "")
    found = load_sample(tmp_path / "a.safetensors", "a", "A", z=2)
    assert_same(found, sample.plane(2))
    assert found.name == "a slice 3"
    assert found.spatial_shape == (4, 5)
    np.testing.assert_array_equal(found.image, sample.image[:, 2])
    with pytest.raises(InputError, match="cannot be read"):
        load_sample(tmp_path / "a.safetensors", "a", "A", z=3)


def test_file_on_disk_names_nobody(tmp_path: Path) -> None:
    sample = replace(volume(), name="canaryname", patient="canarypatient")
    save_sample(sample, tmp_path / "a.safetensors", "")
    assert b"canary" not in (tmp_path / "a.safetensors").read_bytes()


def text(path: Path) -> None:
    path.write_text("nothing")


def half(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-8])


def other_kind(path: Path) -> None:
    save_file({"image": np.zeros(3, np.float32)}, str(path), {"format": "pt"})


def no_metadata(path: Path) -> None:
    save_file({"image": np.zeros(3, np.float32)}, str(path))


@pytest.mark.parametrize("damage", [text, half, other_kind, no_metadata, Path.unlink])
def test_file_that_is_no_sample_is_refused_without_its_path(tmp_path: Path, damage: Callable[[Path], None]) -> None:
    path = tmp_path / "canary.safetensors"
    save_sample(volume(), path, "")
    damage(path)
    with pytest.raises(InputError, match="prepared sample cannot be read") as caught:
        inspect_sample(path)
    assert "canary" not in str(caught.value)
    if damage is not half:
        with pytest.raises(InputError, match="prepared sample cannot be read"):
            load_sample(path, "a", "A")


def test_sample_that_cannot_be_written_is_an_output_error(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="cannot be written") as caught:
        save_sample(volume(), tmp_path / "canary" / "a.safetensors", "")
    assert "canary" not in str(caught.value)


@pytest.mark.parametrize(
    "change",
    [
        {"label_map": np.zeros((3, 4, 6), np.uint8)},
        {"known": np.zeros((4, 5), np.uint8)},
        {"padding": np.zeros(1, np.float32)},
        {"image": np.zeros(3, np.float32), "label_map": None, "known": None},
    ],
)
def test_arrays_that_do_not_belong_together_are_no_sample(change: dict[str, object]) -> None:
    with pytest.raises(InputError, match="do not belong together|is no sample"):
        replace(volume(), **change)  # type: ignore[arg-type]  # wrong on purpose


def test_case_becomes_a_sample_in_network_units() -> None:
    case = block_case("P")
    sample = sample_from_case(case, PiecewiseLinear(knots=((-1000.0, -1.0), (1000.0, 1.0))), AIR_HU)
    np.testing.assert_allclose(sample.image[0], case.voxels / 1000.0, atol=1e-6)
    assert sample.padding.tolist() == [-1.0]
    assert (sample.label_map is case.label_map, sample.known is case.known) == (True, True)
    z_score = sample_from_case(case, ZScore(), AIR_HU)
    assert z_score.image.mean() == pytest.approx(0.0, abs=1e-4)
    assert z_score.padding[0] == z_score.image.min(), "air outside looks like the air inside"
