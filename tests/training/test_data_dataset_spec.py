"""Descriptions of data sets: presets say what the method says, and a description that cannot be meant is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.dataset_phantom import classes, dataset, dataset_fields, plane_fields
from ucseg_runtime.errors import InputError
from ucseg_runtime.manifest import ModelSpec
from ucseg_training.data.dataset_spec import DatasetSpec, tile_shape_problem
from ucseg_training.data.presets import load_dataset_spec, preset_names
from ucseg_training.nets import TrioConfig

PRESETS = ("acdc", "brats2019", "isic2018", "la", "pancreas_ct", "polyp", "thyroid_us")
BINARY_PLANES = ("isic2018", "polyp", "thyroid_us")


def test_every_preset_of_the_method_is_there() -> None:
    assert preset_names() == PRESETS


@pytest.mark.parametrize(
    ("name", "counts", "default"),
    [
        ("la", {"5%": 4, "10%": 8}, 8),
        ("pancreas_ct", {"5%": 3, "10%": 6, "20%": 12, "30%": 18}, 6),
        ("brats2019", {"5%": 12, "10%": 25}, 25),
        (
            "acdc",
            {
                "3 patients": 68,
                "7 patients": 136,
                "14 patients": 256,
                "21 patients": 396,
                "28 patients": 512,
                "35 patients": 664,
                "140 scans": 1312,
            },
            136,
        ),
        ("polyp", {"10%": 145, "30%": 435}, 145),
        ("isic2018", {"10%": 207, "30%": 622}, 207),
        ("thyroid_us", {"10%": 613, "30%": 1841}, 613),
    ],
)
def test_labelled_counts_are_those_of_the_method(name: str, counts: dict[str, int], default: int) -> None:
    spec = load_dataset_spec(name)
    assert spec.labelled == counts
    assert spec.default_labelled is not None
    assert spec.labelled[spec.default_labelled] == default
    assert spec.seed == 42
    assert spec.batch_size == (4 if spec.dim == 3 else 24)


@pytest.mark.parametrize("name", PRESETS)
def test_preset_describes_a_model_that_fits_its_networks(name: str) -> None:
    spec = load_dataset_spec(name)
    model = ModelSpec.model_validate(
        {
            **spec.model_fields_of(),
            "name": name,
            "version": "1",
            "licence": "none",
            "intended_use": "tests",
            "default_precision": "f32",
        }
    )
    trio = {
        "la": TrioConfig.upstream_3d(),
        "pancreas_ct": TrioConfig.upstream_3d(),
        "brats2019": TrioConfig.upstream_3d(),
    }
    expected = trio.get(name) or (TrioConfig.upstream_acdc() if name == "acdc" else TrioConfig.upstream_2d_binary())
    assert (model.dim, model.channels, model.num_classes, model.activation) == (
        expected.dim,
        expected.in_channels,
        expected.num_classes,
        expected.activation,
    )
    assert model.tiling.tile_shape[-expected.dim :] == expected.tile_shape
    assert model.preprocessing == spec.preprocessing


@pytest.mark.parametrize("name", PRESETS)
def test_manifest_tells_of_crops_that_the_deployed_model_does_without(name: str) -> None:
    provenance = load_dataset_spec(name).model_fields_of()["provenance"]
    assert isinstance(provenance, dict)
    crop = provenance["training_crop"]
    if name in ("la", "pancreas_ct", "brats2019"):
        assert "training volumes were cut" in crop
        assert "deployed on whole volumes" in crop
    else:
        assert crop == "none"


@pytest.mark.parametrize("name", BINARY_PLANES)
def test_networks_of_planes_take_blue_first(name: str) -> None:
    spec = load_dataset_spec(name)
    assert spec.preprocessing.model_dump()["intensity"] == {"kind": "divide_by_255", "channel_order": "bgr"}
    assert spec.preprocessing.plane_shape == (224, 224)


def test_users_write_descriptions_of_their_own(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(dataset_fields(name="mine")), encoding="utf-8")
    spec = load_dataset_spec(path)
    assert spec == dataset(name="mine")
    assert spec.labels_by_structure == {"liver": 1, "spleen": 2}
    assert [part.split for part in spec.layout] == ["train", "unlabelled", "val", "test"]


def test_structures_are_found_whatever_their_case() -> None:
    spec = dataset(structures={"Liver GTV": 1, "MILZ": 2})
    assert spec.labels_by_structure == {"liver gtv": 1, "milz": 2}


CROP = {"kind": "label_box", "margin_voxels": [10, 20]}


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"tiling": {"tile_shape": [16, 24, 32]}}, r"\(16, 24, 32\); every side must be a multiple of 16"),
        ({"batch_size": 3}, "3 is odd"),
        ({"batch_size": 0}, "batch_size: .*greater than or equal to 2"),
        ({"classes": []}, "classes"),
        ({"classes": classes("a", "b")[::-1]}, "1, 2, 3 … in order"),
        ({"activation": "sigmoid"}, "exactly one foreground class"),
        ({"labels": {"kind": "values", "values": {7: 3}}}, r"labels \[3\] belong to no class"),
        ({"structures": {"kidney": 3}}, r"labels \[3\] belong to no class"),
        ({"patient": "^case"}, "needs a group"),
        ({"patient": "(case"}, "not a regular expression"),
        ({"default_labelled": "10%"}, "which labelled does not have"),
        ({"crop": {**CROP, "margin_voxels": [20, 10]}}, "least margin"),
        ({"layout": [{"kind": "list", "split": "train", "list": "a", "image": "a.h5"}]}, r"needs \{case\}"),
        ({"layout": [{"kind": "list", "split": "train", "list": "a", "image": "{case}{x}"}]}, "no other braces"),
        ({"layout": [{"kind": "folder", "split": "train", "images": "*.png", "labels": "mask"}]}, "needs a folder"),
        ({"layout": [{"kind": "folder", "split": "train", "images": "../a/*", "labels": "m"}]}, "inside the data set"),
        ({"layout": [{"kind": "folder", "split": "training", "images": "a/*", "labels": "m"}]}, "split"),
        ({"colour": 1}, "Extra inputs"),
        ({"preprocessing": {"intensity": {"kind": "min_max"}, "padding_value": 0}}, "either spacing_mm or plane_shape"),
    ],
)
def test_description_that_cannot_be_meant_is_refused(tmp_path: Path, changes: dict[str, Any], reason: str) -> None:
    path = tmp_path / "canary.yaml"
    path.write_text(yaml.safe_dump(dataset_fields(**changes)), encoding="utf-8")
    with pytest.raises(InputError, match=reason) as caught:
        load_dataset_spec(path)
    assert "canary" not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"tiling": {"tile_shape": [2, 32, 32]}}, "have one slice, not 2"),
        ({"tiling": {"tile_shape": [1, 16, 16]}}, "sees each plane whole"),
        ({"tiling": {"tile_shape": [1, 30, 30]}}, "multiple of 16"),
    ],
)
def test_tiles_of_planes_are_the_planes(changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        DatasetSpec.model_validate(plane_fields(**changes))


@pytest.mark.parametrize("content", ["{a: [", "- 1\n- 2\n", ""])
def test_file_that_describes_no_data_set_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "canary.yaml").write_text(content, encoding="utf-8")
    with pytest.raises(InputError, match="description of the data set") as caught:
        load_dataset_spec(tmp_path / "canary.yaml")
    assert "canary" not in str(caught.value)


def test_unknown_preset_is_refused_with_those_that_exist() -> None:
    with pytest.raises(InputError, match="cannot be read") as caught:
        load_dataset_spec("heart")
    assert "pancreas_ct" in caught.value.hint


@pytest.mark.parametrize(
    ("shape", "dim", "fits"),
    [((96, 96, 96), 3, True), ((1, 224, 224), 2, True), ((96, 96, 90), 3, False), ((16, 224, 224), 2, False)],
)
def test_tile_shapes_that_fit_four_halvings(shape: tuple[int, ...], dim: int, fits: bool) -> None:
    assert (tile_shape_problem(shape, dim) == "") == fits
